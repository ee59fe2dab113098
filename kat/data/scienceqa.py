"""ScienceQA (Lu et al. 2022) as choice items, from local JSONL files or from the hub."""

import hashlib
from pathlib import Path
from typing import Any

from kat.data.choices import ChoiceItem, parse_choice_item
from kat.data.rows import RowError, RowFault, Rows, load_rows
from kat.errors import UsageError
from kat.runs.files import canonical_json

HUB_NAME = "derek-thomas/ScienceQA"
NEEDED = ("question", "choices", "answer", "hint")
HUB_COLUMNS = (*NEEDED, "grade", "subject", "topic", "category", "skill", "lecture", "solution")
SPLITS = ("train", "validation", "test")


def load_scienceqa(source: Path | str, split: str, text_only: bool = True, max_bad: float = 0.01) -> Rows[ChoiceItem]:
    """One split of ScienceQA: `source` is a JSONL file, a folder with ``scienceqa_<split>.jsonl(.gz)``, or "hub".

    `text_only` leaves out the items with an image, which are counted in `n_lines` but are no faults. Raises
    :class:`UsageError` for a file that is not there or not usable, and where the hub can't be reached.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split!r}: ScienceQA has {', '.join(SPLITS)}")
    if source == "hub":
        rows = from_dataset(_fetch(split), split)
    else:
        rows = load_rows([_file(Path(source), split)], parse_choice_item, key=lambda item: item.id, max_bad=max_bad)
    return only_text(rows) if text_only else rows


def only_text(rows: Rows[ChoiceItem]) -> Rows[ChoiceItem]:
    """Without the items that have an image."""
    return Rows([item for item in rows.rows if not item.has_image], rows.faults, rows.n_lines, rows.hash)


def from_dataset(dataset: Any, split: str) -> Rows[ChoiceItem]:
    """The rows of a `datasets.Dataset` with the hub's columns; the id is ``<split>-<index>``.

    Only whether there is an image is read, never the image itself. The hash is that of the rows' canonical JSON.
    """
    missing = [name for name in ("image", *NEEDED) if name not in dataset.column_names]
    if missing:
        raise UsageError(f"{HUB_NAME}: the data set has no column {', '.join(missing)}")
    has_image = _has_image(dataset)
    dataset = dataset.select_columns([name for name in HUB_COLUMNS if name in dataset.column_names])
    digest = hashlib.sha256()
    items: list[ChoiceItem] = []
    faults: list[RowFault] = []
    for index, row in enumerate(dataset):
        row = dict(row, id=f"{split}-{index}", has_image=has_image[index])
        digest.update(canonical_json(row).encode() + b"\n")
        try:
            items.append(parse_choice_item(row))
        except RowError as error:
            faults.append(RowFault(Path(HUB_NAME), index + 1, str(error)))
    if not items or len(faults) > 0.01 * len(dataset):
        raise UsageError(f"{HUB_NAME} {split}: {len(faults)} of {len(dataset)} rows are faulty")
    return Rows(items, faults, len(dataset), digest.hexdigest())


def _has_image(dataset: Any) -> list[bool]:
    """Whether each row has an image, without decoding any."""
    import datasets

    column = dataset.select_columns(["image"])
    if isinstance(column.features["image"], datasets.Image):
        column = column.cast_column("image", datasets.Image(decode=False))
    return [row["image"] is not None for row in column]


def _file(path: Path, split: str) -> Path:
    if not path.is_dir():
        return path
    for name in (f"scienceqa_{split}.jsonl.gz", f"scienceqa_{split}.jsonl"):
        if (path / name).exists():
            return path / name
    raise UsageError(f"{path}: holds no scienceqa_{split}.jsonl or .jsonl.gz")


def _fetch(split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(f"{HUB_NAME}: reading the hub needs the package datasets: pip install 'kat[hf]'") from None
    try:
        return datasets.load_dataset(HUB_NAME, split=split)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{HUB_NAME}: can't be fetched from the hub ({reason}); give a local JSONL file") from None
