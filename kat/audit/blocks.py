"""The blocks a report is made of, before any typesetting: paragraphs, tables, figures and flipped items."""

from dataclasses import dataclass

from kat.audit.schema import Flip


@dataclass(frozen=True)
class Cell:
    """One cell of a table. `kind`: "mono" a hash or path, "a" or "b" a model's figure, "name" a stranger's text."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Para:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table: its caption, its columns (those named in `left` are flush left, the others right), its rows, a note."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: int = 1
    note: str | None = None


@dataclass(frozen=True)
class Figure:
    """A chart. The numbers in it stand in a table of the same section too, so markdown may leave it out."""

    caption: str
    svg: str


@dataclass(frozen=True)
class FlipBlock:
    """One flipped item."""

    number: int
    flip: Flip


@dataclass(frozen=True)
class AllFlips:
    """Every flipped item, to search and filter; only a page can show them."""

    flips: tuple[Flip, ...]


Block = Para | Table | Figure | FlipBlock | AllFlips


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    ident: str
    blocks: tuple[Block, ...]
