"""Is B more diverse than A at no loss of reward? Two evaluations of the diversity suite, paired prompt by prompt.

Diversity and reward make one claim (an intersection-union test, each at .05): more diverse AND the reward not inferior
by the margin. Both sides are measured in the same window of tokens, lowered for both where one side's answers are too
short for it. The other per-prompt metrics are secondary, Holm-corrected; the unit is always the prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kat.audit.load import load_evidence
from kat.audit.pair import Pair, pair
from kat.audit.words import p_value
from kat.errors import UsageError
from kat.runs.schemas import Sample
from kat.stats.diversity import DIRECTION, distinct, duplicate_rate, self_bleu, token_metrics, vendi_score
from kat.stats.multiplicity import holm
from kat.stats.real import RealDifference, compare_real
from kat.stats.windows import QUANTILE, WANTED, Window, common_window, first_tokens, tokens
from kat.stats.wording import is_refusal

if TYPE_CHECKING:
    from kat.density.embed import Embedder

ALPHA = 0.05
LABELS = {
    "vendi": "Vendi, mean over prompts",
    "reward": "reward",
    "distinct_2": "distinct-2 within a prompt",
    "self_bleu_4": "self-BLEU-4 within a prompt",
    "duplicate_rate": "exact duplicates within a prompt",
    "length": "length, tokens",
    "truncation_rate": "truncated",
    "refusal_rate": "refusals",
}


@dataclass(frozen=True)
class Line:
    """One metric of both sides: a paired comparison with what a higher value is (None: neither), p after Holm."""

    name: str
    higher_is: str | None
    found: RealDifference
    p_adjusted: float | None = None

    @property
    def word(self) -> str:
        """``better``, ``worse`` (of B, by the metric's direction), ``higher``, ``lower``, or ``not shown``."""
        p = self.found.p if self.p_adjusted is None else self.p_adjusted
        if self.found.shown == 0 or p > ALPHA:
            return "not shown"
        if self.higher_is is None:
            return "higher" if self.found.shown > 0 else "lower"
        return "better" if (self.found.shown > 0) == (self.higher_is == "better") else "worse"


@dataclass(frozen=True)
class DiversityComparison:
    """What two evaluations say: the primary line, the reward's, the secondary ones, the figures of the whole sets."""

    a: str
    b: str
    window: Window
    draws: int
    primary: Line
    reward: Line | None
    secondary: tuple[Line, ...]
    whole: dict[str, tuple[float, float]]
    margin: float | None
    sentence: str


def compare_diversity(
    a: Path, b: Path, embedder: "Callable[[], Embedder] | None" = None, margin: float | None = None
) -> DiversityComparison:
    """Pair two folders of the diversity suite.

    `margin` is by how much the reward may be worse, in its units. The rows' own Vendi scores are used where the common
    window is the one they were scored in; where it had to be lowered, the embedder that both were scored with is opened
    and reads the shorter beginnings. Raises :class:`EvidenceError` for what :func:`kat.audit.pair.pair` refuses, and
    :class:`UsageError` for another suite or where the embedder is needed and not given.
    """
    if margin is not None and margin <= 0:
        raise UsageError(f"margin {margin:g}: by how much the reward may be worse, above 0")
    sides = [load_evidence(folder) for folder in (a, b)]
    for side in sides:
        if side.results.suite != "diversity":
            raise UsageError(f"{side.folder}: an evaluation on {side.results.suite}, not on diversity")
    both = pair(sides[0], sides[1], real=True)
    window, draws = _window(both), len(both.items[0].a)
    primary = Line("vendi", DIRECTION["vendi"], _vendi(both, window, embedder))
    reward = _reward(both)
    return DiversityComparison(
        a=sides[0].results.model,
        b=sides[1].results.model,
        window=window,
        draws=draws,
        primary=primary,
        reward=reward,
        secondary=_secondary(both, window),
        whole=_whole(both, window),
        margin=margin,
        sentence=verdict(primary, reward, margin),
    )


def verdict(primary: Line, reward: Line | None, margin: float | None) -> str:
    """The claim in words: superiority at two-sided .05 AND non-inferiority at one-sided .05."""
    found = primary.found
    figures = f"Vendi {number(found.difference, True)} {bracket(found)}, {p_value(found.p)}"
    if primary.word == "not shown":
        return f"It is not shown which of A and B is more diverse: {figures}."
    if primary.word == "worse":
        return f"B is less diverse than A: {figures}."
    if reward is None or margin is None:
        return (
            f"B's answers differ more than A's ({figures}); whether that is worth anything is open, for gibberish "
            "differs most: give a reward (--reward) and by how much it may be worse (--margin)."
        )
    held = reward.found
    loss = f"reward {number(held.difference, True)} {bracket(held)} against a margin of {margin:g}"
    if held.low > -margin:
        return f"B is more diverse than A at no loss of reward: {figures}; {loss}."
    if held.high < -margin:
        return f"B's answers differ more than A's, at a loss of reward, so they count for nothing: {figures}; {loss}."
    return f"B's answers differ more than A's, but it is not shown that the reward is no worse: {figures}; {loss}."


def _window(both: Pair) -> Window:
    """The protocol's own window where it is fixed, else lowered for both sides to what both can fill."""
    wanted = both.a.results.protocol.get("window")
    wanted = wanted if isinstance(wanted, int) else WANTED
    lengths = [[int(row.slices["tokens"]) for row in rows] for rows in _all_rows(both)]
    if both.a.results.protocol.get("window_quantile") is None:
        return Window(wanted, wanted, tuple(sum(n < wanted for n in arm) for arm in lengths))
    return common_window(lengths, wanted, QUANTILE)


def _all_rows(both: Pair) -> tuple[list[Sample], list[Sample]]:
    return [row for item in both.items for row in item.a], [row for item in both.items for row in item.b]


def _vendi(both: Pair, window: Window, embedder: "Callable[[], Embedder] | None") -> RealDifference:
    if not window.lowered:
        return compare_real([item.score_a for item in both.items], [item.score_b for item in both.items])
    opened = embedder() if embedder is not None else None
    if opened is None or opened.identity != both.a.results.protocol.get("embedder"):
        raise UsageError(
            f"too many answers are shorter than {window.wanted} tokens, so both sides are measured in their first "
            f"{window.size}: name the embedder that they were evaluated with (--embedder)"
        )

    def score(rows: Sequence[Sample]) -> float:
        return vendi_score(opened.embed([first_tokens(row.response, window.size) for row in rows]))

    return compare_real([score(item.a) for item in both.items], [score(item.b) for item in both.items])


def _reward(both: Pair) -> Line | None:
    """The reward's mean over the answers to each prompt, with the 90 % interval of one-sided .05."""
    if both.a.results.protocol.get("reward") is None:
        return None
    return Line("reward", "better", _by_prompt(both, lambda rows: _mean(rows, _reward_of), level=1 - 2 * ALPHA))


def _secondary(both: Pair, window: Window) -> tuple[Line, ...]:
    def cut(rows: Sequence[Sample]) -> list[list[str]]:
        return [tokens(row.response)[: window.size] for row in rows]

    measures: list[tuple[str, str | None, Callable[[Sequence[Sample]], float]]] = [
        ("distinct_2", DIRECTION["distinct_2"], lambda rows: distinct(cut(rows), 2)),
        ("self_bleu_4", DIRECTION["self_bleu_4"], lambda rows: self_bleu(cut(rows), 4)),
        ("duplicate_rate", "worse", lambda rows: duplicate_rate([row.response for row in rows])),
        ("length", None, lambda rows: _mean(rows, lambda row: float(row.slices["tokens"]))),
        ("refusal_rate", None, lambda rows: _mean(rows, lambda row: float(is_refusal(row.response)))),
    ]
    if all(row.finish_reason != "recorded" for rows in _all_rows(both) for row in rows):
        measures.append(("truncation_rate", None, lambda rows: _mean(rows, _cut_off)))
    lines = [Line(name, higher_is, _by_prompt(both, of)) for name, higher_is, of in measures]
    adjusted = holm([line.found.p for line in lines])
    return tuple(Line(one.name, one.higher_is, one.found, float(p)) for one, p in zip(lines, adjusted, strict=True))


def _by_prompt(
    both: Pair,
    of: Callable[[Sequence[Sample]], float],
    level: float = 1 - ALPHA,
) -> RealDifference:
    return compare_real([of(item.a) for item in both.items], [of(item.b) for item in both.items], level=level)


def _whole(both: Pair, window: Window) -> dict[str, tuple[float, float]]:
    """The token metrics of all answers, of as many that fill the window on either side: two figures, no test."""
    full = [[row.response for row in rows if int(row.slices["tokens"]) >= window.size] for rows in _all_rows(both)]
    n, rng = min(map(len, full)), np.random.default_rng(0)
    a, b = ([texts[i] for i in sorted(rng.permutation(len(texts))[:n])] for texts in full)
    left, right = token_metrics(a, window.size), token_metrics(b, window.size)
    return {name: (left[name], right[name]) for name in left}


def _mean(rows: Sequence[Sample], of: Callable[[Sample], float]) -> float:
    return float(np.mean([of(row) for row in rows]))


def _cut_off(row: Sample) -> float:
    return float(row.finish_reason == "length")


def _reward_of(row: Sample) -> float:
    return float(row.slices["reward"])


def number(value: float, signed: bool = False) -> str:
    """Three decimals, a true minus, a sign where asked and not at zero."""
    text = f"{value:{'+' if signed else ''}.3f}"
    return (text if float(text) else text.lstrip("+-")).replace("-", "−")


def bracket(found: RealDifference) -> str:
    """``(95 % interval +0.101 to +0.402)``"""
    return f"({100 * found.level:g} % interval {number(found.low, True)} to {number(found.high, True)})"


def table(found: DiversityComparison) -> list[str]:
    """The comparison as plain lines: B − A for each metric, what it means, then the figures of the whole sets."""
    window = f"first {found.window.size} tokens"
    if found.window.lowered:
        window += f" (of the {found.window.wanted} wanted; too many answers are shorter)"
    shorter = " and ".join(f"{n:,}" for n in found.window.n_shorter)
    lines = [
        f"A {found.a}",
        f"B {found.b}",
        f"{found.primary.found.n:,} prompts, {found.draws} answers each, {window}; shorter: {shorter}",
        f"{'':34s}{'A':>9s}{'B':>9s}{'B − A':>9s}  {'interval':22s}{'p':>8s}  B is",
    ]
    for line in (found.primary, *([found.reward] if found.reward else []), *found.secondary):
        one, p = line.found, line.found.p if line.p_adjusted is None else line.p_adjusted
        mark = "*" if line is found.primary else " "
        between = f"[{number(one.low, True)}, {number(one.high, True)}]"
        lines.append(
            f"{mark} {LABELS[line.name]:32s}{number(one.mean_a):>9s}{number(one.mean_b):>9s}"
            f"{number(one.difference, True):>9s}  {between:22s}{p:8.4f}  {_word(line, found.margin)}"
        )
    lines.append("Intervals are 95 %, of the reward 90 % (one-sided .05); p below the reward are Holm's.")
    lines.append(f"{'of all answers, no test':34s}{'A':>9s}{'B':>9s}")
    for name, (left, right) in found.whole.items():
        meaning = "higher is better" if DIRECTION[name] == "better" else "higher is worse"
        lines.append(f"  {name:32s}{number(left):>9s}{number(right):>9s}  {meaning}")
    return [*lines, found.sentence]


def _word(line: Line, margin: float | None) -> str:
    if line.name != "reward":
        return line.word
    if margin is None:
        return "no margin given"
    return "not inferior" if line.found.low > -margin else "not shown to be no worse"
