"""audit.html: one self-contained file. No script, no request; a policy in its head forbids both.

Every value goes through Jinja's autoescape. The only markup that is trusted is the figures', which
:mod:`kat.audit.charts` builds from numbers and escaped labels.
"""

import re
from importlib.resources import files

import jinja2
from markupsafe import Markup, escape

from kat.audit.blocks import Figure, FlipBlock, Para, Table
from kat.audit.document import sections
from kat.audit.render_md import reading
from kat.audit.schema import Audit, Side
from kat.audit.words import count, short, visible

LONGEST = 4000
NARROW = "\u202f"  # narrow no-break space


def render_html(audit: Audit) -> str:
    """The whole report as one HTML page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(visible=visible, prose=prose, day=day, count=count, short=short)
    environment.tests.update(
        para=lambda block: isinstance(block, Para),
        table=lambda block: isinstance(block, Table),
        figure=lambda block: isinstance(block, Figure),
        flip=lambda block: isinstance(block, FlipBlock),
    )
    source = files("kat.audit").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        audit=audit,
        sections=sections(audit),
        svg=Markup,
        response=response,
        reading=reading,
        cut=cut,
        letters="ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    )


def prose(text: str) -> str:
    """A sentence of the report whose numbers keep their units and signs on the same line."""
    text = re.sub(r"(?<=\d) (?=%)", NARROW, visible(text))
    return re.sub(r"(?<=\bp) (?=[=<])|(?<=[=<]) (?=[.\d])|(?<=\bB) (?=−)|(?<=−) (?=A\b)", "\u00a0", text)


def day(created: str) -> str:
    """An ISO time to the minute, in words."""
    return visible(f"{created[:10]}, {created[11:16]} UTC")


def response(side: Side) -> Markup:
    """A model's words as text: escaped, control characters in sight, the words that were read marked."""
    start, end = side.span or (0, 0)
    end = max(start, end)
    first, marked, last = side.response[:start], side.response[start:end], side.response[end:]
    if len(side.response) > LONGEST:
        first = first if len(first) <= LONGEST // 2 else "… " + first[-LONGEST // 2 :]
        last = cut(last, LONGEST // 2)
        marked = cut(marked, LONGEST // 2)
    mark = Markup("<mark>{}</mark>").format(visible(marked)) if marked else Markup("")
    return escape(visible(first)) + mark + escape(visible(last))


def cut(text: str, length: int = LONGEST) -> str:
    """The text, or its beginning and how much is left out."""
    if len(text) <= length:
        return text
    return f"{text[:length]} … ({len(text) - length:,} more characters, all in audit.json)"
