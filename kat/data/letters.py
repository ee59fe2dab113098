"""Which letter a response gives as its answer: final-answer anchored, offered letters only, or no letter at all.

The main path: split the response at hallucinated new questions; in the first part that says anything, collect every
explicit statement ("the answer is B", "\\boxed{B}", "B is correct"), let the last word stand, and only without any
statement look for a line that is nothing but an answer ("B", "(B) bird", "bird"). The patterns stand in
:mod:`kat.data.letter_rules`.

Decisions: a letter beats the text behind it ("The answer is B. mammal" is B even where mammal is option A); text in
place of a letter must be an option word for word; two different final letters are ambiguous; a stated letter that is
not offered is no answer; letters of other scripts are not read. Every quantifier is bounded: time is linear.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from kat.data.letter_rules import (
    ANCHORS,
    ANOTHER,
    ARTICLE,
    CLAUSE_END,
    CLOSING,
    CORRECTED,
    FILLED,
    FIRST_WORDS,
    FOLD,
    IS_CORRECT,
    JOINED,
    LEAD,
    LETTER,
    LETTER_BEFORE,
    LINE,
    LINE_END,
    MARKED,
    NEW_TURN,
    ONE_BEFORE,
    OPENING,
    PHRASE_END,
    PREDICATE,
    SENTENCE_END,
    SPACES,
    UNSAID,
    WORD_GOES_ON,
)

VERSION = "kat-letters/3"
LETTERS = "ABCDEFGHIJ"
UNPARSED, AMBIGUOUS = "unparsed", "ambiguous"


@dataclass(frozen=True)
class Extraction:
    """`letter` is None where `rule` is "unparsed" or "ambiguous". `span` are the characters that decided, if any."""

    letter: str | None
    rule: str
    span: tuple[int, int] | None


def extract(text: str, choices: Sequence[str]) -> Extraction:
    """The letter that `text` gives as its answer to an item with these `choices` (2 to 10)."""
    reader = _Reader(text if text.isascii() else text.translate(FOLD), choices)
    start = 0
    for end in [*(turn.start() for turn in NEW_TURN.finditer(reader.text)), len(text)]:
        found = _settle(reader.statements(start, end), reader.text) or reader.bare_line(start, end)
        if found is not None:
            return found
        start = end
    return Extraction(None, UNPARSED, None)


@dataclass(frozen=True)
class Statement:
    """One explicit claim; `letter` is "" where it is no offered letter and None where it names several."""

    start: int
    end: int
    letter: str | None
    strength: int
    rule: str


def _settle(statements: list[Statement], text: str) -> Extraction | None:
    """The last word. A different letter later on is a contradiction, unless it is stated more strongly or corrects."""
    last: Statement | None = None
    conflict = False
    for one in statements:
        if one.letter is None or last is None or last.letter is None:
            conflict = one.letter is None
        elif one.letter != last.letter:
            conflict = not (one.strength > last.strength or CORRECTED.search(text, last.end, one.end))
        elif one.strength < last.strength:
            continue
        last = one
    if last is None:
        return None
    if conflict:
        return Extraction(None, AMBIGUOUS, (last.start, last.end))
    if not last.letter:
        return Extraction(None, UNPARSED, None)
    return Extraction(last.letter, last.rule, (last.start, last.end))


class _Reader:
    """One response and its item: finds statements, and lines that are answers."""

    def __init__(self, text: str, choices: Sequence[str]) -> None:
        self.text = text
        self.lower = _lower(text)
        self.flat = self.lower.translate(SPACES)
        self.offered = LETTERS[: len(choices)]
        self.options = _options(tuple(choices))
        self.anchors = [rule[:4] for rule in ANCHORS if any(map(self.lower.__contains__, rule[4]))]

    def statements(self, start: int, end: int) -> list[Statement]:
        """Every explicit claim between start and end, in order; of claims that end together the strongest."""
        found: dict[int, Statement] = {}
        for one in [*self._anchored(start, end), *self._correct(start, end)]:
            if one.end not in found or one.strength > found[one.end].strength:
                found[one.end] = one
        return [found[key] for key in sorted(found)]

    def _anchored(self, start: int, end: int) -> Iterator[Statement]:
        for name, strength, anchor, strict in self.anchors:
            for match in anchor.finditer(self.lower, start, end):
                read = self._read(match.end(), end, strict, match.start())
                if read is not None and not self._unsaid(match.start()):
                    letter, stop, suffix = read
                    yield Statement(match.start(), stop, letter, strength, name + suffix)

    def _read(self, at: int, end: int, strict: bool, anchor: int) -> tuple[str | None, int, str] | None:
        """The option's text, or else the letter, that stands at `at`, after an anchor that begins at `anchor`: (letter,
        end, suffix of the rule's name)."""
        filled = self._past(FILLED, at, end)
        if not strict:
            for begin in (self._past(OPENING, at, end), filled):
                option = self._option(begin, at, end)
                if option and PHRASE_END.match(self.text, option[1], end):
                    joined = self._past(JOINED, option[1], end)
                    second = self._option(joined, joined, end) if joined > option[1] else None
                    return (None, second[1], "") if second and second[0] != option[0] else (*option, " (text)")
        match = LETTER.match(self.text, filled, end)
        same_line = match is not None and "\n" not in self.text[anchor : match.start("letter")]
        letter = self._letter(match, end, strict, same_line) if match else None
        if match is None or letter is None:
            return None
        other = ANOTHER.match(self.text, self._after_own_text(letter, match.end(), end), end)
        if other and other["letter"] in self.offered and other["letter"] != letter and self._names(other, end):
            return None, other.end(), ""
        return letter, match.end(), ""

    def _letter(self, match: re.Match[str], end: int, strict: bool, same_line: bool) -> str | None:
        """The matched letter in upper case, "" where it is not offered, None where it may be a word or, below a strict
        anchor, the first of a list of options."""
        written, letter = match["letter"], match["letter"].upper()
        clause = bool(CLAUSE_END.match(self.text, match.end(), end))
        own = self._after_own_text(letter, match.end(), end) > match.end()
        if strict and not clause and not (own and same_line):
            return None
        if strict and match[0] == "a" and match.end() == end:
            return None  # "So it is a": cut off after an article
        if letter not in self.offered:
            return "" if written.isupper() and (clause or match["close"]) else None
        if match["close"] or letter not in "AI":
            return letter
        follows = PHRASE_END if written == "A" else SENTENCE_END if written == "I" else CLAUSE_END
        return letter if (own and written == "A") or follows.match(self.text, match.end(), end) else None

    def _names(self, other: re.Match[str], end: int) -> bool:
        """Whether the letter after "or" or "," is a second answer: not the subject of a new clause, not a word."""
        stop = other.end()
        if PREDICATE.match(self.text, stop, end) or WORD_GOES_ON.match(self.text, stop, end):
            return False
        return other["letter"] not in "AI" or PHRASE_END.match(self.text, stop, end) is not None

    def _correct(self, start: int, end: int) -> Iterator[Statement]:
        """What stands before "is correct": a letter, a letter with its option's text, or the text alone."""
        for match in IS_CORRECT.finditer(self.lower, start, end):
            at, by_text = self._trimmed(start, match.start()), None
            for option, letter in self.options:
                begin = at - len(option)
                whole = begin == start or (begin > start and not self.text[begin - 1].isalnum())
                if whole and self.flat.startswith(option, begin):
                    at, by_text = begin, letter
                    break
            before = LETTER_BEFORE.search(self.text, max(start, at - 40), at)
            named = before and (before["letter"] in "ABCDEFGHJ" or before["noun"] or before["close"])
            if before and by_text and by_text != "A" and before.group().strip() == "A":
                named = False  # "A bird is correct": an article before an option's text
            if before and named and before["letter"].upper() in self.offered:
                first = before.start()
                several = ONE_BEFORE.search(self.text, max(start, first - 40), before.start("letter"))
                letter_or_none, rule = None if several else before["letter"].upper(), "is correct"
            elif by_text:
                first, letter_or_none, rule = at, by_text, "is correct (text)"
            else:
                continue
            if not self._unsaid(first):
                yield Statement(first, match.end(), letter_or_none, 1, rule)

    def _past(self, pattern: re.Pattern[str], at: int, end: int) -> int:
        """Where the pattern, matched at `at`, ends; `at` itself where it does not match."""
        match = pattern.match(self.text, at, end)
        return match.end() if match else at

    def _trimmed(self, start: int, at: int) -> int:
        """`at` without up to eight characters of white space before it."""
        begin = max(start, at - 8)
        return begin + len(self.text[begin:at].rstrip())

    def _unsaid(self, at: int) -> bool:
        return UNSAID.search(self.text, max(0, at - 80), at) is not None

    def _option(self, begin: int, at: int, end: int) -> tuple[str, int] | None:
        """The longest option whose text stands at `begin`, or up to three opening signs before it: (letter, end)."""
        article = ARTICLE.match(self.text, begin, end)
        for place in [*range(max(at, begin - 3), begin + 1), *([article.end()] if article else [])]:
            for option, letter in self.options:
                stop = place + len(option)
                there = stop <= end and self.flat.startswith(option, place)
                if there and not WORD_GOES_ON.match(self.text, stop, end):
                    return letter, self._past(CLOSING, stop, end)
        return None

    def _after_own_text(self, letter: str, at: int, end: int) -> int:
        """Where the text of the letter's own option ends, if it follows ("B. bird" → after bird), else `at`."""
        begin = at + (self.text[at : at + 1] in (".", ")", ":", ";", ","))
        option = self._option(self._past(OPENING, begin, end), begin, end)
        return option[1] if option and option[0] == letter else at

    def bare_line(self, start: int, end: int) -> Extraction | None:
        """Without any statement: all of the text, or its first or last line, where it is nothing but an answer.

        The first line may also begin with one ("B. bird", "(B) because …"). Lines that begin with different letters
        are a list of options, not an answer; a first and a last line that differ are ambiguous.
        """
        spans = (match.span() for match in LINE.finditer(self.text, start, end))
        lines = [(a, a + len(self.text[a:b].rstrip())) for a, b in spans if not self.text[a:b].isspace()]
        whole = self._lone(lines[0][0], lines[-1][1], first=True, only=True) if lines else None
        if whole is not None:
            return whole
        marks = {line: m for line in lines if (m := FIRST_WORDS.match(self.text, *line)) and m["mark"] in ".):"}
        listed = len({mark["letter"].upper() for mark in marks.values()}) > 1
        able = [line for line in (lines[:1] + lines[1:][-1:]) if not (listed and line in marks)]
        found = [read for line in able if (read := self._lone(*line, first=line == lines[0], only=len(lines) == 1))]
        if not found and able and able[0] == lines[0]:
            found = [read for line in able[:1] if (read := self._first_words(*line))]
        if len({read.letter for read in found}) > 1:
            return Extraction(None, AMBIGUOUS, found[-1].span)
        return found[0] if found else None

    def _lone(self, start: int, end: int, first: bool, only: bool) -> Extraction | None:
        """The answer that is all of this line.

        An option's text counts in the first line only (later it is a quotation), "I" above other lines is a heading.
        """
        begin = self._past(LEAD, start, end)
        option = self._option(begin, start, end)
        if first and option and LINE_END.match(self.text, option[1], end):
            first_character = begin if begin < option[1] else start  # an option such as "*" is itself an opening sign
            return Extraction(option[0], "lone line (text)", (first_character, option[1]))
        match = LETTER.match(self.text, begin, end)
        letter = match["letter"].upper() if match else ""
        if match is None or letter not in self.offered or (letter == "I" and first and not only):
            return None
        if match[0] == "a" and match.end() == end and any(map(str.isalnum, self.text[start : match.start()])):
            return None  # "It is a": cut off after an article
        alone = LINE_END.match(self.text, self._after_own_text(letter, match.end(), end), end)
        return Extraction(letter, "lone line", (start, match.end())) if alone else None

    def _first_words(self, start: int, end: int) -> Extraction | None:
        match = FIRST_WORDS.match(self.text, start, end)
        if match is None or match["letter"] not in self.offered or self._listed_on(start, end):
            return None
        if match["letter"] == "I" and match["mark"] not in "):":
            return None  # a pronoun, or a heading's number
        initials = self.lower[match.start("letter") : match.start("letter") + 6]
        if any(text[1:2] == "." and text.startswith(initials) for text, _ in self.options):
            return None  # an option's own text begins like that: "E. coli"
        other = ANOTHER.match(self.text, match.end("close"), end)
        if other and other["letter"] in self.offered and other["letter"] != match["letter"] and self._names(other, end):
            return Extraction(None, AMBIGUOUS, (start, other.end()))  # "A, B, C": no choice
        return Extraction(match["letter"], "first words", (start, match.end("close")))

    def _listed_on(self, start: int, end: int) -> bool:
        """Whether one line holds two letters, each with its own option's text: a list of options."""
        marks = MARKED.finditer(self.text, start, end)
        return len({m[1] for m in marks if self._after_own_text(m[1], m.end(1), end) > m.end(1)}) > 1


@lru_cache(maxsize=8192)
def _options(choices: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(text, letter), longest first; without texts that stand twice or that are an offered letter themselves."""
    texts = [_lower(choice.translate(FOLD)).translate(SPACES).strip().rstrip(" .;:!") for choice in choices]
    own = set(LETTERS[: len(choices)].lower()) | {""}
    able = [(text, LETTERS[i]) for i, text in enumerate(texts) if texts.count(text) == 1 and text not in own]
    return tuple(sorted(able, key=lambda pair: -len(pair[0])))


def _lower(text: str) -> str:
    """Lower case, character for character, so that positions hold (a few letters would grow)."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(c if len(c.lower()) != 1 else c.lower() for c in text)
