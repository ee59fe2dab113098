"""The audit: read two evaluations, pair them, compare them, say what is shown, and write it down three times."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kat.audit import compare as comparing
from kat.audit.attempts import read_attempts
from kat.audit.curves import read_curves
from kat.audit.extractors import extractors
from kat.audit.floor import Rule, contaminated, floor, likeness, rules
from kat.audit.load import Evidence, load_evidence
from kat.audit.pair import Pair, PairedItem, pair
from kat.audit.provenance import provenance
from kat.audit.questions import find_items
from kat.audit.render_html import render_html
from kat.audit.render_md import render_md
from kat.audit.schema import (
    AUDIT_SCHEMA,
    Arm,
    Attempts,
    Audit,
    Baseline,
    Comparison,
    Curve,
    Flip,
    Provenance,
    Side,
    Verified,
)
from kat.audit.steady import steadiness
from kat.audit.table import Table, table
from kat.audit.unparsed import decomposition
from kat.audit.unparsed import sensitivity as sensitivity_of
from kat.audit.verdict import verdict
from kat.audit.verified import read_verified
from kat.audit.words import count
from kat.data import letters
from kat.data.choices import ChoiceItem
from kat.errors import EvidenceError, UsageError
from kat.runs.files import write_json, write_text
from kat.runs.provenance import now, versions
from kat.runs.schemas import Sample

FLIPS_SHOWN = 10


def audit(
    a: Path,
    b: Path,
    out: Path | None,
    *,
    data: Path | Sequence[ChoiceItem] | None = None,
    train_items: Sequence[ChoiceItem] | None = None,
    twin: Path | None = None,
    checkpoints: tuple[Path, Path] | None = None,
    verify: Path | None = None,
    policy: Path | None = None,
    protocol_is_treatment: bool = False,
) -> Audit:
    """Compare the evaluations in the folders `a` (baseline) and `b` (candidate); write the report into `out`.

    `data` is the evaluated file or its items (default: the file that results.json names, if it is still there);
    `train_items` are the training questions, which the baselines that learn and the split by likeness need; `twin` is
    the evaluation of an untrained model of the same shape; `checkpoints` are the folders of both models, for their
    training curves and provenance; `verify` is what `kat verify --json` wrote; `policy` a gate's, whose ledger holds
    the attempts so far. `out` None writes nothing. Raises
    :class:`EvidenceError` for evidence that must not be trusted and :class:`UsageError` for a suite without an accuracy
    or a folder that cannot be written.
    """
    if out is not None:
        _writable(Path(out))
    paired = pair(load_evidence(a), load_evidence(b), protocol_is_treatment=protocol_is_treatment)
    facts = provenance(paired.a, paired.b, checkpoints)
    curves = {} if checkpoints is None else {"A": read_curves(checkpoints[0]), "B": read_curves(checkpoints[1])}
    items, why_not = find_items(paired, data)
    verified = read_verified(verify) if verify is not None else None
    tried = read_attempts(policy, paired) if policy is not None else None
    found = _audit(paired, items, why_not, train_items, _twin(paired, twin), facts, curves, verified, tried)
    if out is not None:
        write_report(found, Path(out))
    return found


def _writable(out: Path) -> None:
    """Make the folder before the work, so that a wrong --out is said at once."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot write the report ({error.strerror}); choose another --out") from None


def write_report(found: Audit, out: Path) -> None:
    """audit.json, audit.md and audit.html, each written atomically."""
    try:
        write_json(out / "audit.json", found.model_dump(by_alias=True))
        write_text(out / "audit.md", render_md(found))
        write_text(out / "audit.html", render_html(found))
    except OSError as error:
        raise UsageError(f"{out}: cannot write the report ({error.strerror}); choose another --out") from None


def _audit(
    paired: Pair,
    items: list[ChoiceItem] | None,
    why_not: str,
    train_items: Sequence[ChoiceItem] | None,
    twin: np.ndarray | None,
    facts: list[Provenance],
    curves: dict[str, list[Curve]],
    verified: Verified | None,
    tried: Attempts | None,
) -> Audit:
    data = table(paired)
    primary, tested = comparing.compare("accuracy", "Accuracy", data.a, data.b, data.score_type, data.clusters)
    seen = comparing.seen(tested)
    baselines, not_computed = _baselines(paired, data, items, why_not, train_items, twin)
    sensitivity = sensitivity_of(paired, data)
    prompts = _prompts(paired)
    recorded = all(one.recorded for one in (paired.a, paired.b))
    slices, left_out = comparing.slices(paired, data)
    contamination = contaminated(data, items, train_items)
    similarity, similarity_note = likeness(data, items, why_not, train_items)
    flips = [_flip(item, gained, question) for item, gained, question in _flipped(paired, items)]
    results = paired.a.results
    return Audit(
        schema=AUDIT_SCHEMA,
        created=now(),
        versions=versions(),
        suite=results.suite,
        suite_version=results.suite_version,
        score_type=data.score_type,
        data=results.data,
        n_items=len(paired.items),
        n_clusters=data.n_clusters,
        bit_identical=paired.same_model,
        recorded=recorded,
        prompts=prompts,
        notes=[*paired.notes, *(f"Declared difference of protocol: {one}." for one in paired.protocol_differences)],
        a=_arm("A", paired.a),
        b=_arm("B", paired.b),
        verdict=verdict(
            primary,
            tested,
            seen,
            baselines,
            same_model=paired.same_model,
            recorded=recorded,
            sensitivity=sensitivity,
            prompts=prompts,
        ),
        primary=primary,
        seen=seen,
        secondary=comparing.secondary(paired, data),
        attempts=tried,
        steady=steadiness(paired),
        decomposition=decomposition(paired, data),
        sensitivity=sensitivity,
        extractors=extractors(paired, data),
        baselines=baselines,
        not_computed=not_computed,
        similarity=similarity,
        similarity_note=similarity_note,
        contamination=contamination,
        slices=slices,
        slices_left_out=left_out,
        n_gained=sum(flip.direction == "gained" for flip in flips),
        n_lost=sum(flip.direction == "lost" for flip in flips),
        flips=flips,
        flips_shown=_shown(flips),
        curves=curves,
        verified=verified,
        provenance=facts,
        methods=_methods(paired, data, primary),
    )


def _baselines(
    paired: Pair,
    data: Table,
    items: list[ChoiceItem] | None,
    why_not: str,
    train_items: Sequence[ChoiceItem] | None,
    twin: np.ndarray | None,
) -> tuple[list[Baseline], list[str]]:
    known, not_computed = rules(paired, items, why_not, train_items)
    found = [floor(one, data) for one in known]
    if twin is not None:
        rule = Rule("untrained twin", "the same shape with its first random weights", twin, needs_no_model=False)
        found.append(floor(rule, data))
    else:
        not_computed.append("No evaluation of an untrained twin was given.")
    return found, not_computed


def _twin(paired: Pair, folder: Path | None) -> np.ndarray | None:
    """The untrained twin's item scores in the pairs' order; it must have met the same items by the same protocol."""
    if folder is None:
        return None
    twin = load_evidence(folder)
    if twin.results.model_hash in (paired.a.results.model_hash, paired.b.results.model_hash):
        raise EvidenceError(f"{folder}: the untrained twin has the weights of a model that it should stand beside")
    other = pair(paired.a, twin, protocol_is_treatment=bool(paired.protocol_differences))
    by_key = {item.key: item.score_b for item in other.items}
    return np.array([by_key[item.key] for item in paired.items])


def _arm(letter: str, evidence: Evidence) -> Arm:
    results = evidence.results
    return Arm(
        letter=letter,
        model=results.model,
        model_hash=results.model_hash,
        run_id=results.run_id,
        folder=str(evidence.folder),
        created=results.created,
        metrics=results.metrics,
    )


def _prompts(paired: Pair) -> str:
    n = sum(len(item.a) for item in paired.items)
    if paired.n_prompts_unrecorded:
        return f"unrecorded for {paired.n_prompts_unrecorded:,} of {count(n, 'row')}, so they may have differed"
    if paired.n_prompts_differ:
        return f"different token ids in {paired.n_prompts_differ:,} of {count(n, 'row')}"
    return "equal"


def _flipped(paired: Pair, items: list[ChoiceItem] | None) -> list[tuple[PairedItem, bool, str | None]]:
    """Items whose scores differ, whether B gained, and the question in words where it is known."""
    texts: dict[str, str] = {}
    for item in items or ():
        texts[item.hash] = f"{item.hint}\n{item.question}".strip()
    return [
        (item, gained, texts.get(item.key[0], item.a[0].prompt)) for item, gained in comparing.flipped(paired.items)
    ]


def _flip(item: PairedItem, gained: bool, question: str | None) -> Flip:
    row = item.a[0]
    return Flip(
        item_id=row.item_id,
        item_hash=row.item_hash,
        question=question,
        choices=row.choices,
        expected=row.expected or "",
        direction="gained" if gained else "lost",
        slices=row.slices,
        a=_side(item.a, item.score_a),
        b=_side(item.b, item.score_b),
    )


def _side(rows: Sequence[Sample], score: float) -> Side:
    """One row as it is; of several rotations only their mean score."""
    if len(rows) > 1:
        return Side(score=score, response="", extracted=None, rule="rotations", span=None)
    row = rows[0]
    return Side(score=score, response=row.response, extracted=row.extracted, rule=row.rule, span=row.span)


def _shown(flips: Sequence[Flip]) -> list[int]:
    """Ten flips, gains and losses in turn while both last; their order is that of the item hashes, nobody's choice."""
    gains = [i for i, flip in enumerate(flips) if flip.direction == "gained"]
    losses = [i for i, flip in enumerate(flips) if flip.direction == "lost"]
    half = FLIPS_SHOWN // 2
    n_losses = min(len(losses), max(half, FLIPS_SHOWN - len(gains)))
    n_gains = min(len(gains), FLIPS_SHOWN - n_losses)
    turns: list[int] = []
    for i in range(max(n_gains, n_losses)):
        turns += gains[i : min(i + 1, n_gains)] + losses[i : min(i + 1, n_losses)]
    return turns


def _methods(paired: Pair, data: Table, primary: Comparison) -> list[str]:
    """What was done, with its sources, in the words of this comparison."""
    said = [
        "Items pair by the hash of their content (question, options in order, answer, hint). Every item is in the "
        "denominator and an unparsed response is wrong.",
    ]
    if data.score_type == "binary":
        said.append(
            "By item, the difference has Tango's score interval (Tango 1998) and McNemar's mid-p test (Fagerland, "
            "Lydersen and Laake 2013); single shares have Wilson's interval."
        )
    else:
        said.append(
            "An item's score is its mean over rotations or draws. By item, the difference has a t interval from 100 "
            "items with 20 that differ, below that the generalised Bonett-Price interval, and a sign-flip permutation "
            "test."
        )
    if primary.by_cluster is not None:
        said.append(
            "Items of one cluster are not independent, so the result by cluster decides: an interval from a "
            "cluster-robust variance (CR2) with Satterthwaite's degrees of freedom (Bell and McCaffrey 2002), and as "
            f"its test {primary.by_cluster.test}."
        )
    said.append(
        "Secondary measures are adjusted by Holm (1979), exploratory slices by Benjamini and Hochberg (1995). All "
        "intervals are 95 %. No equivalence test was made, so this report never says that there is no difference."
    )
    if paired.a.results.extractor_version is not None:
        again = " and read once more while auditing" if paired.a.results.extractor_version == letters.VERSION else ""
        said.append(f"Letters were read by version {paired.a.results.extractor_version} of kat's extraction{again}.")
    return said
