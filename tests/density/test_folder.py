"""The density folder: resumable, incremental, and never a stand-in for weights that are not there."""

import functools
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kat.data.preferences import make_prompt
from kat.density.build import build_density, read_prompts, update_density
from kat.density.folder import Metadata, load_density, read_density
from kat.density.store import EmbeddingStore
from kat.errors import EvidenceError, KatError, UsageError

K = {"k": 3, "dose": 0.1}
ARTIFACTS = ("embeddings.npy", "weights.npy", "ids.jsonl", "metadata.json")


class WordEmbedder:
    """A text's point is drawn from its hash near the centre of its first word; counts what it embeds."""

    name, dim = "words", 8

    def __init__(self, identity="1" * 64, fail_at=None):
        self.identity, self.fail_at, self.seen = identity, fail_at, []

    def embed(self, texts):
        found = np.empty((len(texts), self.dim), dtype=np.float32)
        for i, text in enumerate(texts):
            if self.fail_at is not None and len(self.seen) >= self.fail_at:
                raise RuntimeError("killed")
            self.seen.append(text)
            point = 3 * self._point(text.split()[0]) + self._point(text)
            found[i] = point / np.linalg.norm(point)
        return found

    def _point(self, text):
        seed = hashlib.sha256((self.identity + text).encode()).digest()
        return np.random.default_rng(list(seed)).normal(size=self.dim)


def prompt(i, source="hand"):
    return make_prompt([{"role": "user", "content": f"{'abcd'[i % 4]} question {i}"}], source)


def prompts(n=40, start=0):
    return [prompt(i) for i in range(start, start + n)]


def ids_of(some):
    return [one.id for one in some]


def contents(folder):
    return {name: (folder / name).read_bytes() for name in ARTIFACTS}


@pytest.fixture
def folder(tmp_path):
    build_density(prompts(), WordEmbedder(), tmp_path / "density", **K)
    return tmp_path / "density"


def test_what_stands_in_the_folder(folder):
    assert sorted(os.listdir(folder)) == sorted(ARTIFACTS)
    assert os.listdir(folder.parent) == ["density"], "nothing is left beside it"
    density = read_density(folder)
    assert density.embeddings.dtype == np.float16 and density.embeddings.shape == (40, 8)
    assert isinstance(density.embeddings, np.memmap)
    assert density.weights.dtype == np.float64 and abs(density.weights.sum() - 1) <= 1e-12
    assert [row.id for row in density.rows] == ids_of(prompts())
    said = density.metadata
    assert (said.n, said.k, said.dose, said.model, said.model_hash) == (40, 3, 0.1, "words", "1" * 64)
    assert said.statistics.min <= 1 / 40 <= said.statistics.max and said.statistics.mean == pytest.approx(1 / 40)
    np.testing.assert_allclose(density.embeddings, WordEmbedder().embed([r.text for r in density.rows]), atol=1e-3)


def test_the_same_command_again_does_nothing(folder):
    before, embedder = contents(folder), WordEmbedder()
    assert build_density(prompts()[::-1], embedder, folder, **K).n_embedded == 0
    assert embedder.seen == [] and contents(folder) == before
    for changed in ({"k": 4, "dose": 0.1}, {"k": 3, "dose": 0.05}):
        with pytest.raises(UsageError, match="use `kat density update`"):
            build_density(prompts(), embedder, folder, **changed)
    with pytest.raises(UsageError, match="use `kat density update`"):
        build_density(prompts(39), embedder, folder, **K)
    with pytest.raises(UsageError, match="use `kat density update`"):
        build_density(prompts(), WordEmbedder("2" * 64), folder, **K)


@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(0, 40), min_size=20), st.sets(st.integers(0, 40), min_size=20), st.randoms())
def test_an_update_is_a_build_from_nothing(tmp_path_factory, before, after, random):
    here = tmp_path_factory.mktemp("update")
    first = [prompt(i) for i in sorted(before)]
    then = [prompt(i) for i in random.sample(sorted(after), len(after))]
    build_density(first, WordEmbedder(), here / "updated", **K)
    embedder = WordEmbedder()
    built = update_density(here / "updated", then, embedder)
    assert sorted(embedder.seen) == sorted(prompt(i).messages[0]["content"] for i in after - before)
    assert (built.n_embedded, built.n_known, built.n_removed) == (
        len(after - before),
        len(after & before),
        len(before - after),
    )
    build_density(then, WordEmbedder(), here / "fresh", **K)
    assert contents(here / "updated") == contents(here / "fresh")
    shutil.rmtree(here)


def test_an_update_can_change_k_and_dose_without_embedding(folder, tmp_path):
    embedder = WordEmbedder()
    update_density(folder, prompts(), embedder, k=5, dose=0.05)
    build_density(prompts(), WordEmbedder(), tmp_path / "fresh", k=5, dose=0.05)
    assert embedder.seen == [] and contents(folder) == contents(tmp_path / "fresh")


def test_an_update_needs_the_same_model(folder):
    before = contents(folder)
    with pytest.raises(UsageError, match="an update needs the same model"):
        update_density(folder, prompts(), WordEmbedder("2" * 64))
    assert contents(folder) == before


@pytest.mark.parametrize("fail_at", [0, 3, 8, 39])
def test_a_run_that_broke_goes_on(tmp_path, folder, monkeypatch, fail_at):
    monkeypatch.setattr("kat.density.build.CHUNK", 4)
    out = tmp_path / "broken"
    with pytest.raises(RuntimeError, match="killed"):
        build_density(prompts(), WordEmbedder(fail_at=fail_at), out, **K)
    assert not out.exists()
    embedder = WordEmbedder()
    build_density(prompts(), embedder, out, **K)
    assert len(embedder.seen) == 40 - fail_at // 4 * 4
    assert contents(out) == contents(folder) and sorted(os.listdir(tmp_path)) == ["broken", "density"]


def test_a_killed_process_goes_on(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("kat.density.build.CHUNK", 4)
    child = os.fork()
    if child == 0:
        dying = WordEmbedder()
        embed = dying.embed
        dying.embed = lambda texts: os._exit(9) if len(dying.seen) >= 16 else embed(texts)
        build_density(prompts(), dying, tmp_path / "killed", **K)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    embedder = WordEmbedder()
    build_density(prompts(), embedder, tmp_path / "killed", **K)
    assert len(embedder.seen) == 24 and contents(tmp_path / "killed") == contents(folder)


@pytest.mark.parametrize(
    ("rows", "hashes", "kept"), [(33, 3 * 65, 2), (48, 3 * 65 - 9, 2), (48, 2 * 65, 2), (0, 65, 0)]
)
def test_a_store_cut_anywhere_keeps_whole_rows(tmp_path, rows, hashes, kept):
    names = [str(i) * 64 for i in range(3)]
    matrix = np.arange(24, dtype=np.float32).reshape(3, 8)
    EmbeddingStore(tmp_path / "store", "m", 8).append(names, matrix)
    os.truncate(tmp_path / "store" / "rows.f16", rows)
    os.truncate(tmp_path / "store" / "texts.txt", hashes)
    again = EmbeddingStore(tmp_path / "store", "m", 8)
    assert list(again.place) == names[:kept] and np.array_equal(again.matrix(), matrix[:kept])
    again.append(names[kept:], matrix[kept:])
    assert np.array_equal(EmbeddingStore(tmp_path / "store", "m", 8).matrix(), matrix)
    assert len(EmbeddingStore(tmp_path / "store", "other", 8).place) == 0, "another model's rows are of no use"


def test_a_store_never_takes_somebody_elses_folder(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match="not left by kat"):
        EmbeddingStore(tmp_path / "store", "m", 8)
    assert (tmp_path / "store" / "thesis.txt").exists()


def test_weights_of_prompts_in_any_order(folder):
    by_id = dict(zip(ids_of(prompts()), read_density(folder).weights, strict=True))
    order = ids_of(prompts())[::-1]
    found = load_density(folder, order, model="1" * 64, k=3, dose=0.1)
    np.testing.assert_allclose(found, [by_id[one] for one in order], rtol=1e-12)
    assert found.dtype == np.float64 and abs(found.sum() - 1) <= 1e-12


def test_a_prompt_that_is_asked_for_twice_gains_nothing(folder):
    ids = ids_of(prompts())
    once, thrice = load_density(folder, ids), load_density(folder, [*ids, ids[5], ids[5]])
    assert thrice[[5, 40, 41]].sum() == pytest.approx(once[5], rel=1e-12) and np.ptp(thrice[[5, 40, 41]]) == 0


def test_a_subset_has_to_be_asked_for(folder):
    some = ids_of(prompts())[3:17]
    with pytest.raises(UsageError, match="weights of 40 prompts, and 14 of them are asked for"):
        load_density(folder, some)
    found = load_density(folder, some, subset=True)
    whole = load_density(folder, ids_of(prompts()))[3:17]
    np.testing.assert_allclose(found, whole / whole.sum(), rtol=1e-12)


@pytest.mark.parametrize(
    ("ids", "options", "word"),
    [
        (ids_of(prompts(41)), {}, "no weight for 1 of 41 prompts"),
        (ids_of(prompts(41)), {"subset": True}, "no weight for 1 of 41 prompts"),
        (ids_of(prompts(40, 100)), {}, "no weight for 40 of 40 prompts"),
        ([], {}, "weights of no prompts"),
        (ids_of(prompts()), {"model": "2" * 64}, "stale weights: model is 111111111111 there, 222222222222 here"),
        (ids_of(prompts()), {"k": 10}, "stale weights: k is 3 there, 10 here"),
        (ids_of(prompts()), {"dose": 0.2}, "stale weights: dose is 0.1 there, 0.2 here"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(folder, ids, options, word):
    with pytest.raises(UsageError, match=word) as error:
        load_density(folder, ids, **options)
    assert "\n" not in str(error.value)


def test_no_folder_no_weights(tmp_path):
    with pytest.raises(UsageError, match="no density folder"):
        load_density(tmp_path / "none", ["a"])


@pytest.mark.parametrize("name", ["weights.npy", "ids.jsonl", "embeddings.npy"])
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damage_is_named(folder, name, damage):
    path = folder / name
    if damage == "remove":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    with pytest.raises(EvidenceError, match=name):
        read_density(folder)
    if name != "embeddings.npy":
        with pytest.raises(EvidenceError, match=name):
            load_density(folder, ids_of(prompts()))


@pytest.mark.parametrize(
    ("key", "value"), [("min", 0.000045), ("mean", 0.000036), ("max", 0.001), ("ess", 41.0), ("total_variation", 1.0)]
)
def test_impossible_statistics_are_refused(folder, key, value):
    """The seed's example among them: a minimum of .000045 above a mean of .000036."""
    content = json.loads((folder / "metadata.json").read_text())
    content["statistics"][key] = value
    if key == "min":
        content["statistics"] |= {"mean": 0.000036, "median": 0.000045, "max": 0.0001}
        content["n"] = 28_000
    (folder / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(EvidenceError, match="impossible statistics"):
        read_density(folder)


def test_metadata_is_a_published_schema():
    assert "statistics" in Metadata.model_json_schema(by_alias=True)["properties"]


class BrokenEmbedder(WordEmbedder):
    def embed(self, texts):
        found = super().embed(texts)
        found[len(found) // 2] = np.nan
        return found


class ConstantEmbedder(WordEmbedder):
    def embed(self, texts):
        return np.full((len(texts), 8), 8**-0.5, dtype=np.float32)


@pytest.mark.parametrize(
    ("some", "embedder", "options", "word"),
    [
        (prompts(), BrokenEmbedder(), K, "is not finite; is the model broken"),
        (prompts(), ConstantEmbedder(), K, "all 40 embeddings are equal"),
        (prompts(20), WordEmbedder(), {}, "20 distinct prompts for k = 10: more than 20 are needed"),
        (prompts() + prompts(3), WordEmbedder(), K, "3 prompts are given twice"),
        (prompts(), WordEmbedder(), K | {"dose": 0.9}, "can be reached"),
    ],
)
def test_bad_input_leaves_no_folder(tmp_path, some, embedder, options, word):
    with pytest.raises(KatError, match=word) as error:
        build_density(some, embedder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists() and "\n" not in str(error.value)


def test_too_many_prompts_are_refused_before_one_is_embedded(tmp_path, monkeypatch):
    monkeypatch.setattr("kat.density.neighbours.LARGEST", 39)
    embedder = WordEmbedder()
    with pytest.raises(UsageError, match="exactly, up to 39"):
        build_density(prompts(), embedder, tmp_path / "out", **K)
    assert embedder.seen == []


def test_prompts_of_the_same_text_share_a_weight(tmp_path):
    twin = make_prompt([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
    other = make_prompt([{"role": "user", "content": "a\n\nb"}])
    assert twin.id != other.id
    embedder = WordEmbedder()
    density = build_density([*prompts(), twin, other], embedder, tmp_path / "out", **K).density
    assert len(embedder.seen) == 41 and density.metadata.n_distinct == 41
    assert density.weights[40] == density.weights[41]


def test_prompts_from_prompt_and_pair_files(tmp_path):
    asked = [{"role": "user", "content": "why?"}]
    pairs = [{"prompt": asked, "chosen": "a", "rejected": c, "source": "x"} for c in "bc"]
    other = [{"messages": [{"role": "user", "content": "how?"}]}]
    for name, rows in (("pairs", pairs), ("prompts", other)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, said = read_prompts([tmp_path / "pairs.jsonl", tmp_path / "prompts.jsonl"])
    assert [one.messages[0]["content"] for one in found] == ["why?", "how?"] and found[0].source == "x"
    assert said == "3 rows read, 2 prompts"


def test_a_row_knows_only_the_start_of_a_prompt(tmp_path):
    long = make_prompt([{"role": "user", "content": "a " * 5000}])
    row = build_density([*prompts(), long], WordEmbedder(), tmp_path / "out", **K).density.rows[40]
    assert row.n_chars == 10_000 and len(row.text) == 200
    assert replace(row, text="") != row


def test_weights_of_a_checkpoint_that_was_trained_anew_are_stale(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedder's name is a folder; what lies there now must be what embedded the prompts."""
    from kat.density import folder as module
    from kat.model import checkpoint

    place = tmp_path / "sft"
    place.mkdir()
    named = module.read_metadata(folder).model_copy(update={"model": str(place)})
    check = functools.partial(module._refuse_retrained, folder, named)
    check()  # no kat checkpoint lies there: nothing can be said
    (place / "kat.json").write_text("{}")
    monkeypatch.setattr(checkpoint, "read_meta", lambda _: {"identity": named.model_hash})
    check()
    monkeypatch.setattr(checkpoint, "read_meta", lambda _: {"identity": "9" * 64})
    with pytest.raises(UsageError, match=r"stale weights: .* is 999999999999 by now and was 111111111111") as caught:
        check()
    assert "\n" not in str(caught.value)
