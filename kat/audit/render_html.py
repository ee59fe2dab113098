"""audit.html: one self-contained file. No request, and no script but the one that filters the flipped items: a policy
in its head forbids the one and admits the other by its hash.

Every value goes through Jinja's autoescape. The only markup that is trusted is the figures', which
:mod:`kat.audit.charts` builds from numbers and escaped labels, and the script, which is kat's own file.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files

import jinja2
from markupsafe import Markup, escape

from kat.audit.blocks import AllFlips, Figure, FlipBlock, Para, Table
from kat.audit.document import sections
from kat.audit.render_md import reading
from kat.audit.schema import Audit, Flip, Side
from kat.audit.words import count, short, visible

LONGEST = 4000
ALL_FLIPS = 1_600_000  # characters of strangers' text that all flipped items together may take
MOST_VALUES = 40  # of a slice that can be filtered by
NARROW = "\u202f"  # narrow no-break space


def render_html(audit: Audit) -> str:
    """The whole report as one HTML page."""
    found = sections(audit)
    script, script_source = "", ""
    if any(isinstance(block, AllFlips) for section in found for block in section.blocks):
        script = files("kat.audit").joinpath("filter.js").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        script_source = f"; script-src 'sha256-{digest}'"
    return page(
        "report.html.j2", audit=audit, sections=found, script=Markup(script), script_source=Markup(script_source)
    )


def page(template: str, **values: object) -> str:
    """One of the templates beside this file, filled in: audit.html, study.html."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: files("kat.audit").joinpath(name).read_text(encoding="utf-8")),
    )
    environment.filters.update(visible=visible, prose=prose, day=day, count=count, short=short)
    environment.tests.update(
        para=lambda block: isinstance(block, Para),
        table=lambda block: isinstance(block, Table),
        figure=lambda block: isinstance(block, Figure),
        flip=lambda block: isinstance(block, FlipBlock),
        all_flips=lambda block: isinstance(block, AllFlips),
    )
    environment.globals.update(facets=facets, room=room, svg=Markup, response=response, reading=reading, cut=cut)
    return environment.get_template(template).render(letters="ABCDEFGHIJKLMNOPQRSTUVWXYZ", **values)


def prose(text: str) -> str:
    """A sentence of the report whose numbers keep their units and signs on the same line."""
    text = re.sub(r"(?<=\d) (?=%)", NARROW, visible(text))
    return re.sub(r"(?<=\bp) (?=[=<])|(?<=[=<]) (?=[.\d])|(?<=\bB) (?=−)|(?<=−) (?=A\b)", "\u00a0", text)


def day(created: str) -> str:
    """An ISO time to the minute, in words."""
    return visible(f"{created[:10]}, {created[11:16]} UTC")


def facets(flips: Sequence[Flip]) -> list[tuple[str, list[str]]]:
    """The slices that flipped items can be filtered by: name and values, those with 2 to 40 values."""
    names = sorted({name for flip in flips for name in flip.slices})
    values = {name: sorted({flip.slices.get(name, "") for flip in flips} - {""}) for name in names}
    return [(name, found) for name, found in values.items() if 2 <= len(found) <= MOST_VALUES]


def room(flips: Sequence[Flip]) -> int:
    """Characters that one response may take where all flipped items are shown; what is cut is in audit.json."""
    return min(LONGEST, max(160, ALL_FLIPS // (4 * max(1, len(flips)))))


def response(side: Side, longest: int = LONGEST) -> Markup:
    """A model's words as text: escaped, control characters in sight, the words that were read marked."""
    start, end = side.span or (0, 0)
    end = max(start, end)
    first, marked, last = side.response[:start], side.response[start:end], side.response[end:]
    if len(side.response) > longest:
        first = first if len(first) <= longest // 2 else "… " + first[-longest // 2 :]
        last = cut(last, longest // 2)
        marked = cut(marked, longest // 2)
    mark = Markup("<mark>{}</mark>").format(visible(marked)) if marked else Markup("")
    return escape(visible(first)) + mark + escape(visible(last))


def cut(text: str, length: int = LONGEST) -> str:
    """The text, or its beginning and how much is left out."""
    if len(text) <= length:
        return text
    return f"{text[:length]} … ({len(text) - length:,} more characters, all in audit.json)"
