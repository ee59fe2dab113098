"""Does the batch decide? Some items asked a second time, in batches of another size.

Padding and the order of sums move the last bits of a score, and where two options are close that is enough for another
letter (lm-evaluation-harness#3055: 2 points between batches of 16 and 32). How many items change their answer is
counted and stands in results.json, so that a report can show it beside the difference of two models.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kat.errors import UsageError
from kat.evals.asking import Planned, ask
from kat.evals.plan import batch_plan, score_item
from kat.evals.protocol import Key, Suite, sample_key
from kat.runs.schemas import BatchCheck, Sample

if TYPE_CHECKING:
    from kat.model.backends import Backend

IN_ONE = 16
STREAM = 0xBA7C  # keeps this draw apart from the draw of --limit, which has the same seed


def check_batches(
    suite: Suite,
    backend: "Backend",
    plan: Sequence[Planned],
    rows: Sequence[Sample],
    *,
    n: int,
    seed: int,
    batch_size: int,
) -> BatchCheck:
    """Ask `n` items of the plan again (all where there are no more), drawn by the seed: each alone where batches were
    larger, in batches of 16 rows where each was alone. `rows` are what they answered before.

    Raises :class:`UsageError` for a suite whose items have no answer that could change.
    """
    if all(row.expected is None for row in rows):
        raise UsageError(f"suite {suite.name}: its items have no answer that could change; leave out --batch-check")
    chosen = np.sort(np.random.default_rng([seed, STREAM]).permutation(len(plan))[:n])
    other = 1 if batch_size > 1 else IN_ONE
    before: dict[Key, Sample] = {sample_key(row): row for row in rows}
    answers: dict[str, bool] = defaultdict(bool)
    for batch in batch_plan([plan[i] for i in chosen], other):
        for planned, responses in zip(batch, ask(backend, batch), strict=True):
            for row in score_item(suite, planned, responses):
                answers[planned.stamp.item_id] |= row.extracted != before[sample_key(row)].extracted
    return BatchCheck(n=len(answers), n_flipped=sum(answers.values()), batch_size=batch_size, again_in=other)
