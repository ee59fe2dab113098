"""The gate's attempts on this policy and these items, from its ledger, as a section of the report."""

from pathlib import Path

from kat.audit.blocks import Cell, Para, Section, Table
from kat.audit.ledger import items_hash, read_ledger
from kat.audit.pair import Pair
from kat.audit.policy import place, read_policy
from kat.audit.schema import Attempt, Attempts, Audit
from kat.audit.words import count, short

SHOWN = 20


def read_attempts(policy_file: Path, pair: Pair) -> Attempts:
    """Every attempt on the pair's items under the policy in `policy_file`, the oldest first.

    Raises :class:`~kat.errors.UsageError` for a wrong policy, :class:`~kat.errors.EvidenceError` for a broken ledger.
    """
    policy = read_policy(policy_file)
    data_hash = items_hash(pair.a.items)
    if policy.ledger is None:
        return Attempts(policy_hash=policy.hash, data_hash=data_hash, kept=False, attempts=[], under_other_policies=0)
    rows = [row for row in read_ledger(place(policy_file, policy.ledger)) if row["data_hash"] == data_hash]
    mine = [row for row in rows if row["policy_hash"] == policy.hash]
    return Attempts(
        policy_hash=policy.hash,
        data_hash=data_hash,
        kept=True,
        attempts=[Attempt(time=row["time"], a=row["a"], b=row["b"], outcome=row["outcome"]) for row in mine],
        under_other_policies=len(rows) - len(mine),
    )


def attempts(audit: Audit) -> Section:
    """How often this gate was tried, and what came of it; the last 20 in a table."""
    title, found = "Attempts at the gate", audit.attempts
    if found is None:
        text = "Not known: no policy of a gate was given (kat audit --policy FILE)."
        return Section(title, "attempts", (Para(text),))
    policy = f"policy {short(found.policy_hash)}, items {short(found.data_hash)}"
    if not found.kept:
        return Section(title, "attempts", (Para(f"Not known: the policy declares no ledger ({policy})."),))
    n, others = len(found.attempts), found.under_other_policies
    said = f"{count(n, 'attempt')} on this policy and these items ({policy})" if n else f"None yet ({policy})"
    if others:
        said += f", and {others:,} on these items under other policies"
    tried = " Each further attempt is another chance to pass by luck." if n > 1 else ""
    if not n:
        return Section(title, "attempts", (Para(f"{said}."),))
    rows = []
    for number, one in list(enumerate(found.attempts, 1))[-SHOWN:]:
        here = audit.b.model_hash in one.b and audit.a.model_hash in one.a
        rows.append(
            (
                Cell(f"{number:,}"),
                Cell(one.time),
                Cell(", ".join(short(name) for name in one.a) or "unread", "mono"),
                Cell(", ".join(short(name) for name in one.b) or "unread", "mono"),
                Cell(f"{one.outcome}{', this pair' if here else ''}"),
            )
        )
    note = f"The last {SHOWN} of {n:,}; audit.json has them all." if n > SHOWN else None
    columns = ("attempt", "when", "A", "B", "outcome")
    table = Table("Attempts, the oldest first", columns, tuple(rows), left=5, note=note)
    return Section(title, "attempts", (Para(f"{said}.{tried}"), table))
