"""Where a suite's items come from: a local multiple-choice or document file, or ScienceQA from the hub."""

from collections.abc import Sequence
from pathlib import Path

from kat.data.choices import ChoiceItem
from kat.data.examples import Document, parse_example
from kat.data.rows import RowError, load_rows
from kat.data.scienceqa import HUB_NAME, load_scienceqa
from kat.errors import UsageError
from kat.evals.protocol import DataSource


def load_choice_items(
    data: str | Path, *, split: str = "test", text_only: bool = True, max_bad: float = 0.01
) -> tuple[list[ChoiceItem], DataSource]:
    """The items of a multiple-choice file (ScienceQA, ARC, MMLU …), or of ScienceQA's `split` where `data` is "hub".

    `text_only` leaves out the items that need an image; the source's notes say how many. Raises :class:`UsageError` as
    :func:`kat.data.rows.load_rows` does, and when no item is left.
    """
    rows = load_scienceqa("hub" if str(data) == "hub" else Path(data), split, text_only=False, max_bad=max_bad)
    items = [item for item in rows.rows if not (text_only and item.has_image)]
    name = f"hub:{HUB_NAME}/{split}" if str(data) == "hub" else str(data)
    if not items:
        raise UsageError(f"{name}: every item needs an image, and kat reads text only")
    notes = []
    if len(items) < len(rows.rows):
        notes.append(f"{len(rows.rows) - len(items):,} of {len(rows.rows):,} items need an image and are left out")
    if rows.faults:
        notes.append(rows.report())
    return items, DataSource(name, rows.hash, len(rows.faults), tuple(notes))


def load_documents(data: str | Path | Sequence[Path], *, max_bad: float = 0.01) -> tuple[list[Document], DataSource]:
    """The documents of one or several .jsonl(.gz) or .txt files."""
    paths = [Path(data)] if isinstance(data, str | Path) else [Path(path) for path in data]

    def parse(row: dict[str, object]) -> Document:
        example = parse_example(row)
        if not isinstance(example, Document):
            raise RowError("not a document: no text")
        return example

    rows = load_rows(paths, parse, key=lambda document: document.id, max_bad=max_bad)
    name = ", ".join(str(path) for path in paths)
    return rows.rows, DataSource(name, rows.hash, len(rows.faults), (rows.report(),) if rows.faults else ())
