"""The verdict on a study in words: what was shown, what was excluded, and what would decide it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kat.audit.study_schema import Preregistration, StudyResult, sign
from kat.audit.words import bare_p, count
from kat.stats.study import Judgement, Part
from kat.stats.study_power import MOST_SEEDS

if TYPE_CHECKING:
    from kat.audit.study_report import Contrast

Contrasts = Mapping[str, Mapping[str, "Contrast"]]
"""[metric][the arm that the treatment is compared with]"""


def verdict_sentence(plan: Preregistration, judgement: Judgement, found: Contrasts, needed: int | None) -> str:
    """One or two sentences after the word, with the figures of the parts that decide."""
    if judgement.word == "supported":
        parts = _join([_claim(plan, part, found) for part in judgement.parts])
        return f"{plan.treatment} {parts}."
    if judgement.word == "not supported":
        return ". ".join(_refuted(plan, part, found) for part in judgement.parts if part.refuted) + "."
    open_parts = [part for part in judgement.parts if not part.holds]
    shown = [part for part in judgement.parts if part.holds]
    text = f"Not shown: that {plan.treatment} {_join([_claim(plan, part, found) for part in open_parts])}."
    if shown:
        text += f" Shown: that it {_join([_claim(plan, part, found) for part in shown])}."
    return f"{text} Nothing of what is of interest is excluded either. {_next_study(plan, found, needed)}"


def qualifications(
    plan: Preregistration,
    judgement: Judgement,
    found: Contrasts,
    mde: float | None,
    diverged: Sequence[StudyResult],
) -> list[str]:
    """What must be read with the verdict."""
    lines = []
    if judgement.word == "supported":
        for part in judgement.parts:
            one = found[plan.primary.metric].get(part.against)
            if part.kind == "primary" and one is not None and _largest_gain(plan, one) < plan.primary.smallest_effect:
                lines.append(
                    f"The gain over {part.against} is shown, but it is smaller than the smallest one of interest "
                    f"({number(plan.primary.smallest_effect)})."
                )
    for arm in plan.arms:
        dead = [one for one in diverged if one.arm == arm]
        if dead:
            why = "; ".join(f"seed {one.seed}: {one.reason}" for one in dead)
            lines.append(f"{arm}: {len(dead)} of {len(plan.seeds)} runs diverged ({why}). They count, and never help.")
    if mde is not None:
        lines.append(
            f"Said beforehand: with {len(plan.seeds)} seeds an arm a true gain of {number(mde)} in "
            f"{plan.primary.metric} is found 80 % of the time, a smaller one less often."
        )
    return lines


def _claim(plan: Preregistration, part: Part, found: Contrasts) -> str:
    """A part as a verb phrase with its figures: what is claimed, whether or not it holds."""
    one = found[plan.primary.metric if part.kind == "primary" else plan.guard.metric][part.against]
    figures = f"{_figures(one)}, p {_equals(part.p if part.kind == 'guard' else min(1.0, 2 * part.p))}"
    if part.kind == "primary":
        way = "higher" if plan.primary.higher_is == "better" else "lower"
        return f"has {way} {plan.primary.metric} than {part.against} ({figures})"
    margin = number(plan.guard.margin)
    return f"is not inferior to {part.against} in {plan.guard.metric} (margin {margin}; {figures})"


def _refuted(plan: Preregistration, part: Part, found: Contrasts) -> str:
    if part.kind == "primary":
        one = found[plan.primary.metric][part.against]
        return (
            f"A gain of {number(plan.primary.smallest_effect)} or more in {plan.primary.metric} over {part.against} is "
            f"excluded ({_figures(one)}, p {_equals(part.p_against)} against such a gain)"
        )
    one = found[plan.guard.metric][part.against]
    return (
        f"{plan.treatment} has {plan.guard.metric} worse than {part.against} by more than the margin of "
        f"{number(plan.guard.margin)} ({_figures(one)}, p {_equals(part.p_against)})"
    )


def _next_study(plan: Preregistration, found: Contrasts, needed: int | None) -> str:
    gain, k = number(plan.primary.smallest_effect), len(plan.seeds)
    tested = [(plan.primary.metric, plan.comparisons), (plan.guard.metric, plan.guard.against)]
    if any(found[metric][arm].difference is None for metric, arms in tested for arm in arms):
        return "Too few runs finished to say how many seeds would decide it."
    if needed is None:
        return f"With the spread seen here no study of up to {MOST_SEEDS:,} seeds an arm would find a gain of {gain}."
    if needed <= k:
        return (
            f"With the spread seen here {count(needed, 'seed')} an arm find a true gain of {gain} 80 % of the time, so "
            "the true gain is likely smaller, or this study was unlucky; only a new study can say more."
        )
    return (
        f"With the spread seen here a new study needs {needed:,} seeds an arm to find a true gain of {gain} 80 % of "
        "the time. Seeds added to this one do not count: their number was fixed before."
    )


def _largest_gain(plan: Preregistration, one: "Contrast") -> float:
    if one.low is None or one.high is None:
        return float("inf")
    return max(sign(plan.primary.higher_is) * one.low, sign(plan.primary.higher_is) * one.high)


def _figures(one: "Contrast") -> str:
    if one.difference is None:
        return "too few finished runs for a difference"
    if one.low is None or one.high is None:
        return f"{difference(one)}, no interval"
    low, high = interval(one)
    ranks = ", tested on ranks" if one.on_ranks else ""
    return f"{difference(one)}, {100 * one.level:g} % interval {low} to {high}{ranks}"


def _equals(p: float) -> str:
    text = bare_p(p)
    return text if text.startswith("<") else f"= {text}"


def _join(parts: Sequence[str]) -> str:
    return ", and ".join(parts) if len(parts) < 3 else "; ".join(parts[:-1]) + "; and " + parts[-1]


def difference(one: "Contrast") -> str:
    """The difference with its sign, to the digits that its interval warrants; a dash where there is none."""
    return "–" if one.difference is None else _to(one.difference, _width(one))


def interval(one: "Contrast") -> tuple[str, str]:
    """The ends of the interval; dashes where there is none."""
    if one.low is None or one.high is None:
        return "–", "–"
    return _to(one.low, _width(one)), _to(one.high, _width(one))


def _width(one: "Contrast") -> float:
    if one.low is None or one.high is None:
        return abs(one.difference or 0.0)
    return one.high - one.low


def _to(value: float, width: float) -> str:
    """As many decimals as give the interval's width three digits."""
    digits = min(6, max(0, 2 - math.floor(math.log10(width)))) if width > 0 else 3
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if float(text.replace("−", "-")) else text[1:]


def number(value: float, signed: bool = False) -> str:
    """Four significant digits without needless zeros, a true minus, and a sign where asked."""
    text = f"{value:{'+' if signed else ''}.3g}" if abs(value) < 1 else f"{value:{'+' if signed else ''}.4g}"
    return text.replace("-", "−")
