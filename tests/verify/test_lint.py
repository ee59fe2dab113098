"""Tests that cannot fail are found, and tests that look like them but can are not."""

import textwrap
from pathlib import Path

import pytest

from kat.errors import UsageError
from kat.verify.lint import lint

HEAD = "import pytest\nimport torch\nimport numpy as np\nfrom mypkg import f, Model\n\n"


def rules(folder: Path, source: str, head: str = HEAD, name: str = "tests/test_it.py") -> list[str]:
    """The rules that a test file of a project breaks."""
    (folder / "pyproject.toml").touch()
    (folder / "mypkg").mkdir(exist_ok=True)
    (folder / "mypkg" / "__init__.py").touch()
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(head + textwrap.dedent(source))
    return [finding.rule for finding in lint([file])]


# What the catalogue has, and its cousins; each fixture is named by its row where it has one

BAD = {
    "VQ1 placeholder": ("constant-assertion", "def test_x():\n    assert True\n"),
    "VQ1 after a call": ("constant-assertion", "def test_x():\n    f(1)\n    assert True, 'it ran'\n"),
    "VQ1 in unittest": (
        "constant-assertion",
        "import unittest\nclass T(unittest.TestCase):\n    def test_x(self):\n        f(1)\n"
        "        self.assertTrue(True)\n",
    ),
    "tuple": ("constant-assertion", "def test_x():\n    assert f(1) == 2\n    assert (f(2) == 3, 'three')\n"),
    "or True": ("constant-assertion", "def test_x():\n    assert f(1) == 2 or True\n"),
    "a value against itself": ("constant-assertion", "def test_x():\n    y = f(1)\n    assert y == y\n"),
    "length at least 0": ("constant-assertion", "def test_x():\n    y = f(1)\n    assert len(y) >= 0\n"),
    "any object": ("constant-assertion", "def test_x():\n    assert isinstance(f(1), object)\n"),
    "allclose to itself": ("constant-assertion", "def test_x():\n    y = f(1)\n    assert np.allclose(y, y)\n"),
    "assert_close to itself": (
        "constant-assertion",
        "def test_x():\n    y = f(1)\n    torch.testing.assert_close(y, y)\n",
    ),
    "all equal to itself": ("constant-assertion", "def test_x():\n    y = f(1)\n    assert (y == y).all()\n"),
    "approximately itself": ("constant-assertion", "def test_x():\n    y = f(1)\n    assert y == pytest.approx(y)\n"),
    "almost itself in unittest": (
        "constant-assertion",
        "import unittest\nclass T(unittest.TestCase):\n    def test_x(self):\n        y = f(1)\n"
        "        self.assertAlmostEqual(y, y)\n",
    ),
    "sums": ("constant-assertion", "def test_x():\n    f(1)\n    assert 1 + 1 == 2\n"),
    "length of what is written there": (
        "constant-assertion",
        "def test_x():\n    y = f(1)\n    assert len([y]) == 1\n",
    ),
    "the same call twice": ("weak-assertion", "def test_x():\n    assert f(1) == f(1)\n"),
    "the same call twice, allclose": ("weak-assertion", "def test_x():\n    assert torch.allclose(f(1), f(1))\n"),
    "in a loop over nothing": ("no-assertion", "def test_x():\n    f(1)\n    for k in []:\n        assert f(k) == k\n"),
    "in a loop over range(0)": ("no-assertion", "def test_x():\n    for k in range(0):\n        assert f(k) == k\n"),
    "early return": (
        "early-return",
        "def test_x():\n    y = f(1)\n    if y is None:\n        return\n    assert y == 2\n",
    ),
    "early return in unittest": (
        "early-return",
        "import unittest\nclass T(unittest.TestCase):\n    def test_x(self):\n        if not f(0):\n"
        "            print('no f')\n            return\n        self.assertEqual(f(1), 2)\n",
    ),
    "raises anything": ("broad-raises", "def test_x():\n    with pytest.raises(Exception):\n        f(1)\n"),
    "raises anything, as a function": ("broad-raises", "def test_x():\n    pytest.raises(BaseException, f, 1)\n"),
    "raises anything, kept and not looked at": (
        "broad-raises",
        "def test_x():\n    with pytest.raises(Exception) as error:\n        f(1)\n",
    ),
    "nothing": ("no-assertion", "def test_x():\n    f(1)\n"),
    "only a print": ("no-assertion", "def test_x():\n    print(f(1))\n"),
    "only a comparison": ("no-assertion", "def test_x():\n    f(1) == 2\n"),
    "behind a return": ("no-assertion", "def test_x():\n    return\n    assert f(1) == 2\n"),
    "in a function nobody calls": (
        "no-assertion",
        "def test_x():\n    f(1)\n    def inner():\n        assert f(1) == 2\n",
    ),
    "async": ("no-assertion", "async def test_x():\n    await f(1)\n"),
    "in a class": ("no-assertion", "class TestX:\n    def test_x(self):\n        f(1)\n"),
    "helper that asserts nothing": ("no-assertion", "def run(x):\n    f(x)\n\ndef test_x():\n    run(1)\n"),
    "helpers that only call each other": (
        "no-assertion",
        "def a(n):\n    b(n)\ndef b(n):\n    a(n)\ndef test_x():\n    a(1)\n",
    ),
    "if False": ("no-assertion", "def test_x():\n    f(1)\n    if False:\n        assert f(1) == 2\n"),
    "VQ2 shapes": ("weak-assertion", "def test_x():\n    y = f(torch.randn(2, 3))\n    assert y.shape == (2, 3)\n"),
    "VQ2 ones and shapes": ("weak-assertion", "def test_x():\n    assert f(torch.ones(2, 3)).shape == (2, 3)\n"),
    "VQ2 shape and dtype": (
        "weak-assertion",
        "def test_x():\n    y = f(1)\n    assert y.shape[0] == 2 and y.dtype == torch.float32\n"
        "    assert y.ndim == 2\n",
    ),
    "VQ3 something came back": ("weak-assertion", "def test_x():\n    m = Model.load('x')\n    assert m is not None\n"),
    "VQ5 not empty": ("weak-assertion", "def test_x():\n    text = f(1)\n    assert len(text) > 0\n"),
    "VQ5 with Hypothesis": (
        "weak-assertion",
        "from hypothesis import given, strategies as st\n@given(st.text())\ndef test_x(s):\n    assert len(f(s)) > 0\n",
    ),
    "type": ("weak-assertion", "def test_x():\n    assert isinstance(f(1), dict)\n"),
    "type in unittest": (
        "weak-assertion",
        "import unittest\nclass T(unittest.TestCase):\n    def test_x(self):\n"
        "        self.assertIsInstance(f(1), dict)\n        self.assertIsNotNone(f(1))\n",
    ),
    "length": ("weak-assertion", "def test_x():\n    rows = f(1)\n    assert len(rows) == 4\n"),
    "all of them are dicts": ("weak-assertion", "def test_x():\n    assert all(isinstance(y, dict) for y in f(1))\n"),
    "VQ6 pass": (
        "swallowed-exception",
        "def test_x():\n    try:\n        assert f(1) == 2\n    except Exception:\n        pass\n",
    ),
    "VQ6 continue": (
        "swallowed-exception",
        "def test_x():\n    for k in range(3):\n        try:\n            assert f(k) == 2\n        except:\n"
        "            continue\n",
    ),
    "printed": (
        "swallowed-exception",
        "def test_x():\n    try:\n        assert f(1) == 2\n    except AssertionError as e:\n"
        "        print('failed', e)\n",
    ),
    "returned": (
        "swallowed-exception",
        "def test_x():\n    try:\n        y = f(1)\n    except (ValueError, Exception):\n"
        "        return\n    assert y == 2\n",
    ),
    "suppressed": (
        "swallowed-exception",
        "import contextlib\ndef test_x():\n    with contextlib.suppress(Exception):\n        assert f(1) == 2\n",
    ),
    "a failure that is caught": (
        "swallowed-exception",
        "def test_x():\n    try:\n        f(1)\n        assert False\n    except Exception:\n        pass\n",
    ),
    "VQ2 ones": (
        "constant-input",
        "def test_x():\n    x = torch.ones(2, 4, 8)\n    y = f(x)\n    assert torch.allclose(y, f(x))\n",
    ),
    "VQ2 zeros in place": (
        "constant-input",
        "def test_x():\n    torch.testing.assert_close(f(torch.zeros(2, 4)), torch.zeros(2, 4))\n",
    ),
    "skip": ("skip-without-reason", "@pytest.mark.skip\ndef test_x():\n    assert f(1) == 2\n"),
    "skip with an empty reason": (
        "skip-without-reason",
        "@pytest.mark.skip(reason='')\ndef test_x():\n    assert f(1) == 2\n",
    ),
    "skip inside": ("skip-without-reason", "def test_x():\n    pytest.skip()\n    assert f(1) == 2\n"),
    "skipif": ("skip-without-reason", "@pytest.mark.skipif(True)\ndef test_x():\n    assert f(1) == 2\n"),
    "unittest skip": (
        "skip-without-reason",
        "import unittest\nclass T(unittest.TestCase):\n    @unittest.skip\n    def test_x(self):\n"
        "        assert f(1) == 2\n",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_test_that_cannot_fail_is_found(tmp_path: Path, case: str) -> None:
    rule, source = BAD[case]
    assert rules(tmp_path, source) == [rule]


# Nothing of the code under test

ALONE = {
    "VQ4 maths of its own": (
        "import math\ndef loss(x):\n    return -math.log(x)\ndef test_x():\n    assert loss(1.0) == 0.0\n",
        ["no-code-under-test"],
    ),
    "VQ4 imported and never used": (
        "from mypkg import loss\nimport torch\ndef test_x():\n    assert torch.ones(3).sum() == 3.0\n",
        ["no-code-under-test"],
    ),
    "test tools only": (
        "import numpy as np\nimport pytest\ndef test_x():\n    with pytest.raises(ValueError):\n        np.zeros(-1)\n",
        ["no-code-under-test"],
    ),
    "by a subprocess": (
        "import subprocess\ndef test_x():\n    assert subprocess.run(['mypkg']).returncode == 0\n",
        [],
    ),
    "by a relative import": ("from ..mypkg import loss\ndef test_x():\n    assert loss(1.0) == 0.0\n", []),
    "a module on the path": ("import gpt\ndef test_x():\n    assert gpt.loss(1.0) == 0.0\n", []),
    "imported inside": ("def test_x():\n    from mypkg import loss\n    assert loss(1.0) == 0.0\n", []),
    "by a conftest's fixture": ("def test_x(model):\n    assert model.loss(1.0) == 0.0\n", []),
    "by a helper": ("from tests.helpers import loss\ndef test_x():\n    assert loss(1.0) == 0.0\n", []),
    "by a helper beside": ("from .helpers import loss\ndef test_x():\n    assert loss(1.0) == 0.0\n", []),
    "a helper that has none": (
        "from tests.maths import loss\ndef test_x():\n    assert loss(1.0) == 0.0\n",
        ["no-code-under-test"],
    ),
}


@pytest.mark.parametrize("case", ALONE)
def test_a_file_that_tests_its_own_copy_is_found(tmp_path: Path, case: str) -> None:
    source, expected = ALONE[case]
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "conftest.py").write_text(
        "import pytest\nfrom mypkg import Model\n@pytest.fixture\ndef model():\n    return Model()\n"
    )
    (tests / "helpers.py").write_text("import mypkg\ndef loss(x):\n    return mypkg.loss(x)\n")
    (tests / "maths.py").write_text("import math\ndef loss(x):\n    return -math.log(x)\n")
    assert rules(tmp_path, source, head="") == expected


def test_tests_beside_the_code_use_it(tmp_path: Path) -> None:
    source = "from .model import loss\ndef test_x():\n    assert loss(1.0) == 0.0\n"
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "model.py").write_text("import math\nloss = math.log\n")
    assert rules(tmp_path, source, head="", name="mypkg/test_model.py") == []


# Good tests that look bad

GOOD = {
    "raises": "def test_x():\n    with pytest.raises(ValueError):\n        f(1)\n",
    "raises as a function": "def test_x():\n    pytest.raises(ValueError, f, 1)\n",
    "warns": "def test_x():\n    with pytest.warns(UserWarning):\n        f(1)\n",
    "assert_close": "def test_x():\n    torch.testing.assert_close(f(1), f(2))\n",
    "numpy's assertion": "def test_x():\n    np.testing.assert_array_equal(f(1), [1, 2])\n",
    "a helper named so": "from mypkg.testing import assert_same\ndef test_x():\n    assert_same(f(1), f(2))\n",
    "a helper here": "def same(a, b):\n    assert a == b\n\ndef test_x():\n    same(f(1), 2)\n",
    "a helper of a helper": "def one(a):\n    assert a == 1\ndef two(a):\n    one(a)\ndef test_x():\n    two(f(1))\n",
    "a test of several cases": "def test_x():\n    for n in (1, 2):\n        _test_one(f, n)\n",
    "a method": (
        "class TestX:\n    def same(self, y):\n        assert y == 2\n    def test_x(self):\n        self.same(f(1))\n"
    ),
    "Hypothesis inside": (
        "from hypothesis import given, strategies as st\ndef test_x():\n    @given(st.integers())\n    def run(n):\n"
        "        assert f(n) == n\n    run()\n"
    ),
    "a thread's target": (
        "import threading\ndef work():\n    assert f(1) == 2\ndef test_x():\n"
        "    threading.Thread(target=work).start()\n"
    ),
    "a raise": "def test_x():\n    if f(1) != 2:\n        raise AssertionError('not 2')\n",
    "pytest.fail": "def test_x():\n    for k in range(3):\n        if f(k) != k:\n            pytest.fail(str(k))\n",
    "a fixture that asserts": (
        "@pytest.fixture\ndef clean():\n    yield\n    assert f(0) == 0\n\ndef test_x(clean):\n    f(1)\n"
    ),
    "a fixture by name": (
        "@pytest.fixture\ndef clean():\n    yield\n    assert f(0) == 0\n\n"
        "@pytest.mark.usefixtures('clean')\ndef test_x():\n    f(1)\n"
    ),
    "a mock": "def test_x(mocker):\n    spy = mocker.spy(Model, 'g')\n    f(1)\n    spy.assert_called_once_with(1)\n",
    "a check that is given": "def test_x(check, subject):\n    check(f(subject))\n",
    "unittest": (
        "import unittest\nclass T(unittest.TestCase):\n    def test_x(self):\n        self.assertEqual(f(1), 2)\n"
        "    def test_y(self):\n        with self.assertRaises(ValueError):\n            f(1)\n"
    ),
    "twice the same": "def test_f_repeats_itself():\n    assert f(1) == f(1)\n",
    "twice with a seed": "def test_x():\n    assert f(1, seed=3) == f(1, seed=3)\n",
    "twice, and a value": "def test_x():\n    assert f(1) == f(1)\n    assert f(1) == 2\n",
    "raises anything that says": "def test_x():\n    with pytest.raises(Exception, match='no f'):\n        f(1)\n",
    "raises anything that is looked at": (
        "def test_x():\n    with pytest.raises(Exception) as error:\n        f(1)\n    assert error.value.code == 2\n"
    ),
    "a branch that asserts and returns": (
        "def test_x(fast):\n    if fast:\n        assert f(1) == 2\n        return\n    assert f(2) == 3\n"
    ),
    "a return after an assertion": (
        "def test_x():\n    y = f(1)\n    assert y != 3\n    if y == 2:\n        return\n    assert f(y) == 5\n"
    ),
    "a sum of its own": "def test_x():\n    assert f(1) + 1 == 2\n",
    "length of what comes": "def test_x():\n    assert len([*f(1)]) == 1\n    assert f(1)[0] == 2\n",
    "close to another": "def test_x():\n    y = f(1)\n    torch.testing.assert_close(y, y + f(0))\n",
    "a constant that fails": "def test_x():\n    if f(1) != 2:\n        assert 1 == 2\n",
    "not itself": "def test_x():\n    y = f(1)\n    assert y != y\n",
    "reached": "def test_x():\n    assert f(1) == 2\n    assert True  # reached\n",
    "assert False": "def test_x():\n    try:\n        f(1)\n    except ValueError:\n        return\n    assert False\n",
    "or that is no constant": "def test_x(fast):\n    assert f(1) == 2 or fast\n",
    "shape and a value": "def test_x():\n    y = f(1)\n    assert y.shape == (2, 3)\n    assert y[0, 0] == 5\n",
    "shape and assert_close": (
        "def test_x():\n    y = f(1)\n    assert y.shape == (2,)\n"
        "    torch.testing.assert_close(y, torch.tensor([1., 2.]))\n"
    ),
    "unique": "def test_x():\n    ids = f(9)\n    assert len(set(ids)) == len(ids)\n",
    "how many fit": "def test_x():\n    assert len([y for y in f(9) if y > 2]) == 3\n",
    "dtype is the point": "def test_x():\n    assert f(torch.randn(2)).dtype == torch.bfloat16\n",
    "gradients arrive": (
        "def test_x():\n    f(1).backward()\n    assert all(p.grad is not None for p in Model().parameters())\n"
    ),
    "None is the answer": "def test_x():\n    assert f('no letter') is None\n",
    "empty is the answer": "def test_x():\n    assert f('') == []\n    assert not f('x')\n",
    "exception is kept": (
        "def test_x():\n    errors = []\n    try:\n        f(1)\n    except Exception as e:\n        errors.append(e)\n"
        "    assert not errors\n"
    ),
    "exception is looked at": (
        "def test_x():\n    try:\n        f(1)\n    except Exception as e:\n        assert 'one' in str(e)\n"
        "    else:\n        pytest.fail('no error')\n"
    ),
    "expected to raise": (
        "def test_x():\n    try:\n        f(1)\n    except Exception:\n        pass\n    else:\n"
        "        raise AssertionError\n"
    ),
    "fail inside, which Exception does not catch": (
        "def test_x():\n    try:\n        f(1)\n        pytest.fail('no error')\n    except Exception:\n        pass\n"
    ),
    "a narrow exception": (
        "def test_x():\n    try:\n        f(1)\n    except KeyError:\n        pass\n    assert f(2) == 2\n"
    ),
    "cleaning up": (
        "def test_x():\n    m = Model()\n    try:\n        assert m.f(1) == 2\n    finally:\n        try:\n"
        "            m.close()\n        except Exception:\n            pass\n"
    ),
    "ones as a mask": (
        "def test_x(ids):\n    mask = torch.ones(2, 4)\n    assert torch.equal(f(ids, mask), f(ids))\n"
        "    assert torch.equal(f(attention_mask=torch.ones(2, 4)), f(ids))\n"
    ),
    "ones, then changed": (
        "def test_x():\n    x = torch.ones(2, 4)\n    x[0, 1] = 5\n    assert torch.equal(f(x), f(x) + 0)\n"
    ),
    "a vector of zeros is an edge": "def test_x():\n    assert torch.equal(f(torch.zeros(3)), torch.zeros(3))\n",
    "ones with other values": (
        "def test_x():\n    a = f(torch.ones(2, 3))\n    assert torch.allclose(a, torch.arange(3.0).expand(2, 3))\n"
    ),
    "skip with a reason": (
        "@pytest.mark.skip(reason='needs a GPU')\ndef test_x():\n    pass\n\n"
        "@pytest.mark.skipif(not f(0), reason='no f')\ndef test_y():\n    assert f(1) == 2\n\n"
        "def test_z():\n    if not f(0):\n        pytest.skip('no f')\n    assert f(1) == 2\n"
    ),
    "loaders that skip": "def test_x():\n    it = f(1)\n    it.skip()\n    assert next(it) == 2\n",
    "a process": "import subprocess\ndef test_x():\n    subprocess.run(['mypkg', f(1)], check=True)\n",
    "no test at all": "def helper(x):\n    return f(x)\n",
}


@pytest.mark.parametrize("case", GOOD)
def test_a_good_test_is_left_alone(tmp_path: Path, case: str) -> None:
    assert rules(tmp_path, GOOD[case]) == []


# Files and places


def test_a_folder_in_a_hidden_one_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    rules(tmp_path, "def test_x():\n    f(1)\n", name=".venv/tests/test_it.py")
    assert lint([tmp_path]) == []
    assert [finding.rule for finding in lint([tmp_path / ".venv" / "tests"])] == ["no-assertion"]


def test_findings_name_file_line_and_test(tmp_path: Path) -> None:
    rules(tmp_path, "\n\nclass TestX:\n    def test_x(self):\n        f(1)\n", name="tests/deep/test_it.py")
    (finding,) = lint([tmp_path / "tests"])
    assert (finding.file.name, finding.line, finding.test) == ("test_it.py", 9, "TestX.test_x")
    assert str(finding) == f"{finding.file}:9: no-assertion: TestX.test_x: asserts nothing: only a crash can fail it"


def test_a_helper_of_the_conftest_above_asserts(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").write_text("def same(a, b):\n    assert a == b\n")
    source = "from tests.conftest import same\ndef test_x():\n    same(f(1), 2)\n"
    assert rules(tmp_path, source, name="tests/deep/test_it.py") == []


def test_a_file_that_is_no_python_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_bad.py").write_text("def test_x(:\n")
    (tmp_path / "test_bytes.py").write_bytes(b"x = '\xff'\n")
    found = [(finding.file.name, finding.rule) for finding in lint([tmp_path])]
    assert found == [("test_bad.py", "not-read"), ("test_bytes.py", "not-read")]
    with pytest.raises(UsageError, match="no such file"):
        lint([tmp_path / "nothing"])


def test_kats_own_tests_can_fail() -> None:
    """kat's own tests are no exception."""
    assert lint([Path(__file__).parents[1]]) == []
