"""What is shown of a density folder: figures that can be checked, and strangers' text that stays text."""

import json
import re
import shutil

import numpy as np
import pytest

from kat.data.preferences import make_prompt
from kat.density.build import build_density
from kat.density.map import OTHER, colour_by, lay_out, write_map
from kat.density.report import agreement, heaviest, one_line, rank_correlation, summarise
from kat.errors import UsageError
from tests.density.test_folder import WordEmbedder

HOSTILE = "</script><img src=x onerror=alert(1)> $\\frac{a}$ [bold] \x1b[31m \u202e <!-- "
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
needs_viz = "needs kat[viz]"


def ask(i):
    text = f"{'abcd'[i % 4]} question {i} {HOSTILE}{'very ' * (i % 9)}long"
    return make_prompt([{"role": "user", "content": text}], ["one", "<b>two</b>", "$x$", ""][i % 4])


PROMPTS = [ask(i) for i in range(60)]


@pytest.fixture(scope="module")
def density(tmp_path_factory):
    out = tmp_path_factory.mktemp("density") / "first"
    return build_density(PROMPTS, WordEmbedder(), out, k=3, dose=0.1).density


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    out = tmp_path_factory.mktemp("density") / "second"
    return build_density(PROMPTS, WordEmbedder("2" * 64), out, k=3, dose=0.1).density


@pytest.fixture(scope="module")
def places():
    return np.random.default_rng(0).random((60, 2)).astype(np.float32)


def test_the_figures(density, second):
    found = summarise(density, second)
    assert (found.n, found.n_distinct, found.k) == (60, 60, 3)
    assert found.ess == pytest.approx(1 / (density.weights**2).sum())
    assert found.dose == pytest.approx(np.abs(density.weights - 1 / 60).sum() / 2) and found.dose >= 0.1
    assert found.with_second == pytest.approx(agreement(second, density))
    assert summarise(density).with_second is None and len(found.rows()) == len(summarise(density).rows()) + 1


def test_rank_correlation_by_hand():
    assert rank_correlation(np.array([1, 2, 3, 4]), np.array([1, 10, 100, 90])) == pytest.approx(0.8)
    assert rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == -1
    assert rank_correlation(np.ones(4), np.arange(4)) == 0


def test_a_second_opinion_must_be_one(density, second, tmp_path):
    with pytest.raises(UsageError, match="the same embedder"):
        summarise(density, density)
    other = build_density(PROMPTS[1:], WordEmbedder("3" * 64), tmp_path / "other", k=3, dose=0.1).density
    with pytest.raises(UsageError, match="made of other prompts"):
        summarise(density, other)


def test_the_heaviest_prompts(density):
    found = heaviest(density, 10)
    shares = [share for _, share in found]
    assert len(found) == 10 and shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(density.weights.max() * 60)
    rest = {row.id for row in density.rows} - {row.id for row, _ in found}
    assert max(w for row, w in zip(density.rows, density.weights, strict=True) if row.id in rest) * 60 <= shares[-1]
    assert len(heaviest(density, 1000)) == 60


def test_one_line_is_short_and_safe():
    line = one_line(HOSTILE + "\n\n" + "x" * 500)
    assert len(line) == 100 and line.endswith("…") and "\n" not in line and "\x1b" not in line and "\u202e" not in line
    assert one_line("short\n\ttext") == "short text"


def test_colours_by_density_source_and_reward(density, tmp_path):
    pytest.importorskip("matplotlib", reason=needs_viz)
    by_density = colour_by(density, "density")
    radii = np.array([row.radius for row in density.rows])
    assert by_density.colours[radii.argmax()] == "#fde725" and by_density.colours[radii.argmin()] == "#440154"
    by_source = colour_by(density, "source")
    assert len(set(by_source.colours)) == 4 and by_source.legend[0][1].endswith("(15)")
    rewards = [{"id": one.id, "reward": r} for one in PROMPTS[:50] for r in (0, 2)]
    (tmp_path / "rewards.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rewards))
    by_reward = colour_by(density, "reward", tmp_path / "rewards.jsonl")
    assert by_reward.values[0] == "1" and by_reward.values[59] == "unknown" and by_reward.colours[59] == OTHER
    assert by_reward.legend[-1] == (OTHER, "unknown (10)")


def test_many_sources_share_a_colour(density, tmp_path):
    many = [make_prompt(one.messages, f"source {i % 20}") for i, one in enumerate(PROMPTS)]
    found = colour_by(build_density(many, WordEmbedder(), tmp_path / "many", k=3, dose=0.1).density, "source")
    assert len(found.legend) == 9 and found.legend[-1] == (OTHER, "other (36)")


@pytest.mark.parametrize(
    ("what", "rows", "word"),
    [
        ("reward", None, "by --values"),
        ("density", [{"id": "x"}], "needs no --values"),
        ("reward", [{"id": "x", "reward": 1}], "no row is of a prompt"),
        ("reward", [{"id": "x", "reward": "high"}], "no number 'reward'"),
    ],
)
def test_no_colour(density, tmp_path, what, rows, word):
    path = None if rows is None else tmp_path / "values.jsonl"
    if path is not None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match=word):
        colour_by(density, what, path)


def test_the_page_is_one_file_and_text_stays_text(density, places, tmp_path):
    pytest.importorskip("matplotlib", reason=needs_viz)
    picture, page = write_map(tmp_path / "map", density, places, colour_by(density, "source"))
    assert picture.read_bytes().startswith(b"\x89PNG")
    html = page.read_text()
    assert "<img" not in html and "<b>" not in html and "onerror=alert(1)>" not in html and "\x1b" not in html
    assert html.count("</script>") == 2 and "<!--" not in html
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", html)
    points = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S).group(1))["points"]
    assert len(points) == 60 and points[0][7].startswith("a question 0 </script><img")
    assert sum(point[3] for point in points) == pytest.approx(60, abs=0.1)
    write_map(tmp_path / "map", density, places, colour_by(density, "density"))  # drawn over
    (tmp_path / "map" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="other files than a map"):
        write_map(tmp_path / "map", density, places, colour_by(density, "density"))


def test_a_page_of_many_prompts_says_that_it_is_a_sample(density, places, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason=needs_viz)
    monkeypatch.setattr("kat.density.map.MOST_DRAWN", 20)
    page = write_map(tmp_path / "map", density, places, colour_by(density, "source"))[1].read_text()
    points = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))["points"]
    assert len(points) == 20 and "a random 20 of 60" in page


@pytest.mark.slow
def test_near_prompts_are_near_on_the_plane(density):
    pytest.importorskip("umap", reason=needs_viz)
    said = []
    places = lay_out(density, 0, lambda phase, done, total: said.append((phase, done, total)))
    assert places.shape == (60, 2) and places.min() == 0 and places.max() == 1 and said[-1] == ("layout", 1, 1)
    assert np.array_equal(places, lay_out(density, 0))
    group = np.arange(60) % 4  # the first word, which decides most of a WordEmbedder's point
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (group[distances.argmin(axis=1)] == group).mean() > 0.9


@pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver")
def test_the_page_in_a_browser(density, places, tmp_path):
    pytest.importorskip("matplotlib", reason=needs_viz)
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (kat[dev])")
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    _, page = write_map(tmp_path / "map", density, places, colour_by(density, "source"))
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    flags = ["headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update"]
    flags += ["disable-sync", "disable-dev-shm-usage", "window-size=1100,900", f"user-data-dir={tmp_path / 'profile'}"]
    for flag in flags:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get(page.as_uri())
        canvas, shown = driver.find_element("id", "map"), driver.find_element("id", "point")
        assert "none chosen" in shown.text
        canvas.send_keys(Keys.ARROW_DOWN)
        heavy = heaviest(density, 2)
        assert "1 of 60 by weight" in shown.text and one_line(heavy[0][0].text, 240)[:60] in shown.text
        canvas.send_keys(Keys.ARROW_RIGHT)
        assert "2 of 60" in shown.text
        canvas.send_keys(Keys.END)
        assert "60 of 60" in shown.text
        x, y = places[7]
        size = canvas.size["width"]
        to = [round((0.03 + 0.94 * share - 0.5) * size) for share in (x, 1 - y)]
        ActionChains(driver).move_to_element_with_offset(canvas, *to).perform()
        assert "question 7 </script><img src=x onerror=alert(1)>" in shown.text
        drawn = (
            "return document.getElementById('map').getContext('2d').getImageData(0, 0, 2000, 2000).data.some(v => v)"
        )
        assert driver.execute_script(drawn)
        assert driver.get_log("browser") == []
    finally:
        driver.quit()
