"""Build a density folder from prompts, and bring one up to date.

Both embed only what is not there yet, from the same inputs to the same bytes: an update is a build that knows some
embeddings already. What makes an embedding reusable is the hash of its text and of the model.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kat.data.preferences import Prompt, parse_pair, parse_prompt, prompt_text
from kat.data.rows import load_rows
from kat.density.embed import Embedder
from kat.density.folder import PREVIEW, Density, Row, finish_folder, hash_data, read_density, read_metadata
from kat.density.neighbours import check_size, method
from kat.density.store import EmbeddingStore
from kat.density.weights import CLIP, UNIFORM, density_weights
from kat.errors import UsageError
from kat.runs.files import new_folder, recover_folder
from kat.runs.provenance import versions

CHUNK = 64  # texts between two writes to the disk
K, DOSE = 10, 0.2
ESTIMATOR = f"r^alpha, r = exp(mean log r_k..r_2k), clip q{CLIP[0]:g}/q{CLIP[1]:g}, {UNIFORM:.0%} uniform, centred"

Report = Callable[[str, int, int], None]  # phase, done, total


@dataclass(frozen=True)
class Built:
    """A density folder, and how many of its prompts were embedded now, were known before, and left it."""

    density: Density
    n_embedded: int
    n_known: int
    n_removed: int


def read_prompts(paths: Sequence[Path], max_bad: float = 0.01) -> tuple[list[Prompt], str]:
    """The prompts of prompt files and of pair files, each once, in the order in which they first come; and a line that
    says what was read."""
    parse = lambda row: parse_prompt(row) if "messages" in row else parse_pair(row).prompt  # noqa: E731
    rows = load_rows(paths, parse, key=None, max_bad=max_bad)
    prompts = list({prompt.id: prompt for prompt in reversed(rows.rows)}.values())[::-1]
    return prompts, f"{rows.report()}, {len(prompts):,} prompts"


def build_density(
    prompts: Sequence[Prompt],
    embedder: Embedder,
    out: Path,
    *,
    k: int = K,
    dose: float = DOSE,
    report: Report = lambda phase, done, total: None,
) -> Built:
    """Write the density folder `out`. A folder that is there and of the same inputs is left as it is.

    A run that was killed or refused goes on from `<out>.embedding/`. UsageError where `out` is something else, where
    the prompts are too few, too many or alike, or where an embedding is not finite.
    """
    out = Path(out)
    recover_folder(out)
    if out.exists():
        there = read_metadata(out)
        asked = (embedder.identity, hash_data([prompt.id for prompt in prompts]), k, dose)
        if (there.model_hash, there.data_hash, there.k, there.dose) == asked:
            return Built(read_density(out), 0, there.n, 0)
        raise UsageError(f"{out}: of another model, other prompts, k or dose; use `kat density update`, or --out")
    return _write(prompts, embedder, out, None, k, dose, report)


def update_density(
    folder: Path,
    prompts: Sequence[Prompt],
    embedder: Embedder,
    *,
    k: int | None = None,
    dose: float | None = None,
    report: Report = lambda phase, done, total: None,
) -> Built:
    """Make a density folder that of exactly these prompts: new ones are embedded, those that are gone leave, and all
    weights are computed anew. k and dose stay as they were unless given. The result is that of a build from nothing.
    """
    folder = Path(folder)
    recover_folder(folder)
    old = read_density(folder)
    if embedder.identity != old.metadata.model_hash:
        raise UsageError(
            f"{folder}: embedded by {old.metadata.model_hash:.12}, and {embedder.name} is {embedder.identity:.12}: "
            "an update needs the same model; build another folder"
        )
    k, dose = k or old.metadata.k, dose or old.metadata.dose
    return _write(prompts, embedder, folder, old, k, dose, report)


def _write(
    prompts: Sequence[Prompt], embedder: Embedder, out: Path, old: Density | None, k: int, dose: float, report: Report
) -> Built:
    texts = {prompt.id: prompt_text(prompt) for prompt in prompts}
    if len(texts) < len(prompts):
        raise UsageError(f"{len(prompts) - len(texts):,} prompts are given twice; name each once")
    hashes = {one: hashlib.sha256(text.encode()).hexdigest() for one, text in texts.items()}
    check_size(len(prompts))
    if len(set(hashes.values())) <= 2 * k:  # the same word as density_weights has, before hours of embedding
        raise UsageError(f"{len(set(hashes.values())):,} distinct prompts for k = {k}: more than {2 * k} are needed")
    known = {} if old is None else {row.text_hash: i for i, row in enumerate(old.rows)}
    store = EmbeddingStore(out.with_name(f"{out.name}.embedding"), embedder.identity, embedder.dim)
    embedded = _embed_missing(texts, hashes, known, embedder, store, report)
    with new_folder(out) as temporary:
        matrix = _gather(temporary / "embeddings.npy", list(hashes.values()), old, known, store)
        phase = "neighbours"
        found = density_weights(
            matrix, list(hashes.values()), k=k, dose=dose, report=lambda done, total: report(phase, done, total)
        )
        matrix.flush()
        rows = [
            Row(one.id, hashes[one.id], one.source, len(texts[one.id]), float(radius), texts[one.id][:PREVIEW])
            for one, radius in zip(prompts, found.radii, strict=True)
        ]
        finish_folder(
            temporary,
            rows,
            found,
            dim=embedder.dim,
            model=embedder.name,
            model_hash=embedder.identity,
            dose=dose,
            estimator=ESTIMATOR,
            neighbours=method(),
            versions=versions(),
        )
    store.remove()
    ids_before = set() if old is None else {row.id for row in old.rows}
    return Built(read_density(out), embedded, len(hashes) - embedded, len(ids_before - set(texts)))


def _embed_missing(
    texts: dict[str, str],
    hashes: dict[str, str],
    known: dict[str, int],
    embedder: Embedder,
    store: EmbeddingStore,
    report: Report,
) -> int:
    """Embed each text that neither the old folder nor the store has, chunk by chunk into the store; how many."""
    wanted = {hashes[one]: one for one in reversed(texts) if hashes[one] not in known}
    todo = [(text_hash, one) for text_hash, one in reversed(wanted.items()) if text_hash not in store.place]
    for start in range(0, len(todo), CHUNK):
        chunk = todo[start : start + CHUNK]
        found = embedder.embed([texts[one] for _, one in chunk])
        finite = np.isfinite(found).all(axis=1)
        if not finite.all():
            raise UsageError(
                f"{embedder.name}: the embedding of prompt {chunk[int(np.argmin(finite))][1]:.16} is not finite; "
                "is the model broken?"
            )
        store.append([text_hash for text_hash, _ in chunk], found)
        report("embedding", start + len(chunk), len(todo))
    return len(wanted)


def _gather(
    path: Path, hashes: Sequence[str], old: Density | None, known: dict[str, int], store: EmbeddingStore
) -> np.memmap:
    """The embeddings of all prompts in their order, written to an .npy file that stays open."""
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(len(hashes), store.dim))
    fresh = store.matrix()
    for i, one in enumerate(hashes):
        if old is not None and one in known:
            matrix[i] = old.embeddings[known[one]]
        else:
            matrix[i] = fresh[store.place[one]]
    return matrix
