"""audit.md: the report for a pull request. Strangers' text stands in fenced code, where nothing is markup."""

import re
from collections.abc import Sequence

from kat.audit.blocks import AllFlips, Block, Cell, Figure, FlipBlock, Para, Table
from kat.audit.document import sections
from kat.audit.schema import Audit, Flip, Side
from kat.audit.words import count, visible

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&@])")


def render_md(audit: Audit) -> str:
    """The whole report as GitHub-flavoured markdown."""
    lines = [
        f"# Audit: {text(audit.b.model)} against {text(audit.a.model)}",
        "",
        f"**{text(audit.verdict.word)}.** {text(audit.verdict.sentence)}",
        "",
    ]
    lines += [f"- {text(one)}" for one in audit.verdict.qualifications]
    lines += [
        "",
        f"A is the baseline, {text(audit.a.model)}; B is the candidate, {text(audit.b.model)}. "
        f"Suite {text(audit.suite)} {text(audit.suite_version)}, {count(audit.n_items, 'item')}.",
        "",
    ]
    for section in sections(audit):
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [*block_lines(block), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def text(value: str) -> str:
    """Text that can't become markup, in one line, its control characters in sight."""
    return _SPECIAL.sub(r"\\\1", " ".join(visible(value).split()))


def fence(value: str) -> list[str]:
    """A code block around any text: its fence is longer than every run of backticks inside."""
    shown = visible(value)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    mark = "`" * max(3, longest + 1)
    return [f"{mark}text", *shown.split("\n"), mark]


def block_lines(block: Block) -> list[str]:
    """One block as lines of markdown; figures are left out, their numbers stand in a table."""
    if isinstance(block, Para):
        return [text(block.text)]
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figure | AllFlips):
        return []
    return _flip(block)


def _table(table: Table) -> list[str]:
    rule = ["---" if number < table.left else "---:" for number in range(len(table.columns))]
    lines = [f"**{text(table.caption)}**", "", _row([Cell(name) for name in table.columns]), f"| {' | '.join(rule)} |"]
    lines += [_row(row) for row in table.rows]
    return [*lines, "", text(table.note)] if table.note else lines


def _row(cells: Sequence[Cell]) -> str:
    return f"| {' | '.join(text(cell.text) for cell in cells)} |"


def _flip(block: FlipBlock) -> list[str]:
    flip = block.flip
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    lines = [f"### {block.number}. Item {text(flip.item_id)}, {flip.direction}", ""]
    if flip.question:
        lines += [*fence(flip.question), ""]
    for letter, choice in zip(letters, flip.choices, strict=False):
        lines.append(f"- {letter}. {text(choice)}{' (right)' if letter == flip.expected else ''}")
    for name, side in (("A", flip.a), ("B", flip.b)):
        words = "" if side.span is None else f", from “{side.response[side.span[0] : side.span[1]]}”"
        lines += ["", text(f"Model {name} {reading(side, flip)}{words}"), ""]
        lines += fence(side.response) if side.response else []
    return lines


def reading(side: Side, flip: Flip) -> str:
    """How a response was read, after the model's name: its letter, whether that is right, by which rule."""
    if side.rule == "rotations":
        return f"scored {side.score:.2f}, the mean over its rotations or draws"
    if side.extracted is None:
        return f"gave no letter ({side.rule or 'unparsed'}), counted as wrong"
    right = "right" if side.extracted == flip.expected else "wrong"
    return f"answered {side.extracted}, {right} (rule “{side.rule}”)"
