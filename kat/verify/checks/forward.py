"""The forward pass: causality, padding, positions, batch rows, gradients, and agreement with a reference."""

import torch

from kat.verify.check import check
from kat.verify.lab import Lab


@check(family="forward", level=1, needs={"forward", "named_parameters"}, kind="metamorphic", tol=1e-5, catches=("MF4",))
def future_tokens_have_no_effect(lab: Lab) -> None:
    """Changing a token leaves the logits at all earlier positions as they are."""
    subject = lab.randomised()
    lab.require_context(subject)
    for length in (3, 8, min(33, lab.traits.max_len)):
        ids = lab.ids(3, length)
        with torch.no_grad():
            before = lab.forward(subject, ids)
            for t in sorted({1, length // 2, length - 1}):
                other = ids.clone()
                other[:, t:] = lab.ids(3, length - t)
                lab.close(
                    lab.forward(subject, other)[:, :t],
                    before[:, :t],
                    f"logits before position {t} move when the tokens from it on are others",
                    case=f"3 rows of {length} tokens, changed from {t}",
                )
