"""Decoding with a cache against one pass without."""

import torch

from kat.verify.check import check
from kat.verify.lab import Lab


@check(
    family="cache",
    level=1,
    needs={"forward", "forward_cached", "named_parameters"},
    kind="metamorphic",
    tol=1e-4,
    catches=("MF1", "MF2", "MF5"),
)
def decode_matches_forward(lab: Lab) -> None:
    """Prefill and single steps with a cache give the logits of one pass over all tokens."""
    subject = lab.randomised()
    lab.require_context(subject)
    end = min(lab.traits.max_len, 96)
    for batch, length, prefill in ((1, 4, 1), (1, 8, 3), (2, 12, 6), (3, end, 1), (2, end, end // 2)):
        ids = lab.ids(batch, length)
        with torch.no_grad():
            expected = lab.forward(subject, ids)
            logits, state = lab.forward_cached(subject, ids[:, :prefill])
            parts = [logits]
            for t in range(prefill, length):
                logits, state = lab.forward_cached(subject, ids[:, t : t + 1], state)
                parts.append(logits)
        lab.close(
            torch.cat(parts, dim=1),
            expected,
            "logits of cached decoding differ from those of one pass",
            case=f"{batch} row(s) of {length} tokens, prefill of {prefill}, then one at a time",
        )
