"""The verdict: one sentence and one colour that claim no more than the interval, the test and the baselines allow.

"No difference" is never said: this form of the report has no equivalence test, so what is not shown is INCONCLUSIVE,
with the number of items that would decide. A difference between two models of which not even the higher is shown to
be above guessing and above always saying one letter is no finding either: it may be the preference for a letter.
"""

from collections.abc import Sequence

from kat.audit.schema import Baseline, Comparison, Seen, Sensitivity, Verdict
from kat.audit.words import count, interval, p_value, percent, points
from kat.stats.result import Comparison as Found

NEEDED = ("chance", "best constant letter")
"""The rules that the higher model must beat before its lead counts."""


def verdict(
    primary: Comparison,
    found: Found,
    seen: Seen,
    baselines: Sequence[Baseline],
    *,
    same_model: bool,
    recorded: bool,
    sensitivity: Sensitivity | None,
    prompts: str,
) -> Verdict:
    """Judge the primary comparison by the gating interval and test, and say what qualifies the judgement."""
    gap = primary.gating
    figures = (
        f"{percent(primary.a.estimate)} for A and {percent(primary.b.estimate)} for B, a difference of "
        f"{points(gap.estimate)} points, 95 % interval {interval(gap.low, gap.high, signed=True)}, {p_value(gap.p)}"
    )
    notes = _qualifications(primary, baselines, sensitivity, prompts)
    silent = _silent(primary, sensitivity)
    if "A" in silent and (recorded or not same_model):
        who = "Neither model gave a" if "B" in silent else "A gave no"
        sentence = (
            f"{who} readable letter to any of {count(primary.by_item.n, 'item')}, which shows nothing: {figures}."
        )
        return Verdict(colour="inconclusive", word="Inconclusive", sentence=sentence, qualifications=notes)
    if same_model:
        return _same_model(primary, figures, notes, "the same responses" if recorded else "the same weights")
    shown = found.direction != "not shown" and gap.p < 0.05
    if not shown:
        sentence = _open(primary, figures, seen)
        return Verdict(colour="inconclusive", word="Inconclusive", sentence=sentence, qualifications=notes)
    higher = "B" if found.direction == "better" else "A"
    unproven = _not_above(higher, baselines)
    if unproven:
        sentence = (
            f"{higher} scores higher ({figures}), but it is not shown to be above {unproven}, which needs no model. "
            "The difference may be no more than a preference for a letter."
        )
        if silent:
            sentence = f"{higher} scores higher ({figures}), as B gave no readable letter to any item."
        return Verdict(colour="inconclusive", word="Inconclusive", sentence=sentence, qualifications=notes)
    word = "B is better" if higher == "B" else "B is worse"
    unit = "new clusters of items like these" if gap.unit == "cluster" else "new items like these"
    sentence = f"{primary.label}: {figures}. This is about {unit}."
    return Verdict(colour="better" if higher == "B" else "worse", word=word, sentence=sentence, qualifications=notes)


def _same_model(primary: Comparison, figures: str, notes: list[str], what: str) -> Verdict:
    if primary.a_only == primary.b_only == 0:
        sentence = f"Both runs evaluated {what}, bit for bit, and every item scored the same."
        return Verdict(colour="identical", word="Bit-identical", sentence=sentence, qualifications=notes)
    sentence = (
        f"Both runs evaluated {what}, bit for bit, yet {count(primary.a_only + primary.b_only, 'item')} "
        f"scored otherwise ({figures}): what differs is the evaluation, not the model."
    )
    return Verdict(colour="inconclusive", word="Bit-identical weights", sentence=sentence, qualifications=notes)


def _open(primary: Comparison, figures: str, seen: Seen) -> str:
    if seen.effect is None:
        few = f"they differ on {count(primary.a_only + primary.b_only, 'item')} of {primary.by_item.n:,}"
        could = f"No true difference could have been found reliably: {few}."
    else:
        chance = percent(seen.power, 0)
        could = f"A true difference of {100 * seen.effect:.1f} points would have been found {chance} of the time."
    if seen.n_for_observed is not None and seen.n_for_observed > primary.by_item.n:
        needed = f" About {count(seen.n_for_observed, 'item')} would decide a difference of the size observed."
    elif seen.n_for_points:
        label, n = list(seen.n_for_points.items())[-1]
        needed = f" About {count(n, 'item')} would decide a difference of {label}."
    else:
        needed = " More items would have to tell: these two models differ on almost none of these."
    return f"It is not shown which is better: {figures}. {could}{needed}"


def _silent(primary: Comparison, sensitivity: Sensitivity | None) -> list[str]:
    """The models that gave no readable letter at all."""
    if sensitivity is None:
        return []
    unread = (("A", sensitivity.n_unparsed_a), ("B", sensitivity.n_unparsed_b))
    return [letter for letter, n in unread if n == primary.by_item.n]


def _not_above(higher: str, baselines: Sequence[Baseline]) -> str:
    """The labels of the needed rules that the model is not shown to beat."""
    failed = []
    for one in baselines:
        above = one.a_above if higher == "A" else one.b_above
        if one.name in NEEDED and above.low <= 0:
            failed.append(f"{one.name} ({percent(one.score.estimate)})")
    return " or ".join(failed)


def _qualifications(
    primary: Comparison, baselines: Sequence[Baseline], sensitivity: Sensitivity | None, prompts: str
) -> list[str]:
    notes = []
    for letter in ("A", "B"):
        below = _not_above(letter, baselines)
        if below:
            notes.append(f"{letter} is not shown to be above {below}.")
    strongest = max((one for one in baselines if one.needs_no_model), key=lambda one: one.score.estimate, default=None)
    if strongest is not None and strongest.name not in NEEDED:
        behind = [letter for letter, gap in (("A", strongest.a_above), ("B", strongest.b_above)) if gap.high < 0]
        if behind:
            who = "Both are" if len(behind) == 2 else f"{behind[0]} is"
            score = percent(strongest.score.estimate)
            notes.append(f"{who} below the {strongest.name} ({score}), which needs no model.")
    if sensitivity is not None and (sensitivity.n_unparsed_a or sensitivity.n_unparsed_b):
        notes.append(sensitivity.sentence)
    if primary.by_cluster is not None:
        naive = primary.by_item
        notes.append(
            "Items that share a lecture are not independent; taken as if they were, the interval would be "
            f"{interval(naive.low, naive.high, signed=True)} ({p_value(naive.p)})."
        )
    if prompts != "equal":
        notes.append(f"Prompts: {prompts}.")
    notes.append(
        "This speaks of these two checkpoints. Whether the recipe is better is a question about training seeds, which "
        "one run a side cannot answer."
    )
    return notes
