"""The forward pass: causality, padding, positions, batch rows, gradients, and agreement with a reference."""

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kat.verify.check import Failed, check
from kat.verify.lab import EFFECT, Lab, accepts, largest_difference, parameters, snapshot, zero_grad

LARGE = 2_000_000  # weights; above it not every tensor is nudged
NOTHING = 1e-6  # a change of a logit that rounding can explain


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


@check(
    family="forward", level=1, needs={"forward", "named_parameters"}, kind="metamorphic", catches=("MF5", "DM12", "VQ7")
)
def earlier_tokens_have_an_effect(lab: Lab) -> None:
    """Every token moves the logits at its own and at every later position that a declared window lets it reach."""
    subject = lab.randomised()
    reach = lab.traits.window or lab.traits.max_len
    length = min(10, lab.traits.max_len)
    ids = lab.ids(1, length)
    others = ids.repeat(length, 1)  # row t has another token at t
    others.diagonal()[:] = different(lab, ids[0])
    with torch.no_grad():
        change = (lab.forward(subject, others) - lab.forward(subject, ids)).abs().amax(-1)  # (t, position)
        for t in range(length):
            for position in range(t, min(length, t + reach)):
                if float(change[t, position]) <= NOTHING:
                    raise Failed(
                        f"another token at {t} does not move the logits at position {position}",
                        measured=float(change[t, position]),
                        tolerance=NOTHING,
                        case=f"a row of {length} tokens",
                    )
        length = min(lab.traits.max_len, reach, 96)
        ids = lab.ids(2, length)
        other = ids.clone()
        other[:, 0] = different(lab, ids[:, 0])
        far = float((lab.forward(subject, other) - lab.forward(subject, ids))[:, -1].abs().amax(-1).min())
    if far <= NOTHING:
        raise Failed(
            f"the first of {length} tokens does not move the last logits, though no such window is declared",
            measured=far,
            tolerance=NOTHING,
            case=f"2 rows of {length} tokens",
            resembles="MF5",
        )


@check(family="forward", level=1, needs={"forward", "named_parameters"}, kind="metamorphic", tol=1e-4, catches=("MF9",))
def batch_rows_are_independent(lab: Lab) -> None:
    """A row's logits are the same alone and in any batch, and another row's tokens do not move them."""
    subject = lab.randomised()
    lab.require_context(subject)
    # As many rows as tokens, because there a mix-up of batch and time has the right shape.
    for rows, length in ((2, 2), (3, 3), (2, 5), (4, 9), (8, min(8, lab.traits.max_len))):
        ids = lab.ids(rows, length)
        case = f"{rows} rows of {length} tokens"
        with torch.no_grad():
            together = lab.forward(subject, ids)
            alone = torch.cat([lab.forward(subject, row[None]) for row in ids])
            lab.close(together, alone, "logits of a row differ alone and in a batch", case=case)
            other = ids.clone()
            other[0] = different(lab, ids[0])
            changed = lab.forward(subject, other)
            lab.close(changed[1:], together[1:], "logits move with the tokens of another row", case=case, tol=1e-5)
            order = torch.arange(rows).roll(1)
            moved = lab.forward(subject, ids[order])
            lab.close(moved, together[order], "logits depend on a row's place in the batch", case=case)


@check(
    family="forward",
    level=1,
    needs={"forward", "named_parameters"},
    kind="metamorphic",
    tol=1e-4,
    catches=("MF9", "DM5", "MF19"),
)
def padding_has_no_effect(lab: Lab) -> None:
    """Under an attention mask a row's logits at real positions are those of the row alone, whatever stands on whichever
    side of it, and the pad id is an ordinary token where the mask is 1."""
    traits = lab.traits
    subject = lab.randomised()
    lab.require(traits.attn_mask and accepts(subject.forward, "attention_mask"), "forward takes no attention mask")
    lab.require_context(subject)
    takes_positions = accepts(subject.forward, "position_ids")
    longest = min(17, traits.max_len - 2)
    rows = [lab.ids(1, length)[0] for length in (2, longest, 5, 9 if longest > 9 else 3)]
    if traits.pad_id is not None:  # as content: inside, first and last
        rows[1][longest // 2] = rows[2][0] = rows[3][-1] = traits.pad_id
    with torch.no_grad():
        alone = [lab.forward(subject, row[None])[0] for row in rows]
        for side in traits.padding:
            # Twice the pad id where there is one, then anything at all.
            for chosen, extra, filler in (((0, 2), 0, "pad"), ((0, 1, 2, 3), 0, "pad"), ((3, 0, 1), 2, "anything")):
                width = max(len(rows[i]) for i in chosen) + extra
                ids = lab.ids(len(chosen), width)
                filled = filler == "pad" and traits.pad_id is not None
                if filled:
                    ids[:] = traits.pad_id  # type: ignore[assignment]
                mask = torch.zeros(len(chosen), width, dtype=torch.long)
                for b, i in enumerate(chosen):
                    real = slice(width - len(rows[i]), None) if side == "left" else slice(0, len(rows[i]))
                    ids[b, real], mask[b, real] = rows[i], 1
                given = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if takes_positions else {}
                # They may be left out too, except on the left where they are absolute. There a shift moves the logits
                # a little if tables are kept in bfloat16, which is a design.
                apart = given and (side == "right" or traits.positions != "absolute")
                for kwargs in [given, {}] if apart else [given]:
                    logits = lab.forward(subject, ids, attention_mask=mask.clone(), **kwargs)
                    for b, i in enumerate(chosen):
                        lab.close(
                            logits[b][mask[b].bool()],
                            alone[i],
                            f"padding on the {side} changes the logits at real positions",
                            case=f"rows of {[len(rows[i]) for i in chosen]} tokens in a width of {width}, row {b}, "
                            f"padded with {'the pad id' if filled else 'random ids'}"
                            + (", position_ids given" if kwargs else ""),
                            tol=0.1 if side == "left" and not kwargs else None,
                        )
        if traits.pad_id is not None:
            _pad_id_counts(lab, subject, traits.pad_id)


def _pad_id_counts(lab: Lab, subject: Any, pad: int) -> None:
    """Fail where later logits do not depend on the embedding of a pad id whose mask is 1."""
    ids = lab.ids(1, min(6, lab.traits.max_len))
    ids[0, 1] = pad
    mask = torch.ones_like(ids)
    tables = [w for w in parameters(subject).values() if w.ndim == 2 and w.size(0) == lab.traits.vocab]
    before = lab.forward(subject, ids, attention_mask=mask.clone())[0, 3:]
    for table in tables:
        table[pad] += 0.5 * table[pad].roll(1) + 0.1
    change = (lab.forward(subject, ids, attention_mask=mask.clone())[0, 3:] - before).abs()
    change[:, pad] = 0.0  # of a head that shares the table
    if tables and float(change.max()) <= NOTHING:
        raise Failed(
            "a pad id that the attention mask calls real is masked: later logits do not depend on its embedding",
            measured=float(change.max()),
            tolerance=NOTHING,
            case=f"a row of {ids.size(1)} tokens with the pad id {pad} at 1, attention_mask all 1",
            resembles="DM5",
        )


@check(
    family="forward",
    level=1,
    needs={"forward", "named_parameters"},
    kind="metamorphic",
    tol=0.1,
    catches=("MF9", "MF14"),
)
def position_ids_act_as_declared(lab: Lab) -> None:
    """Positions that are left out are 0, 1, 2, …; other distances give other logits, row by row, past max_len too if it
    is not refused; a shift of all positions changes nothing where they are relative, and something where absolute."""
    traits = lab.traits
    subject = lab.randomised()
    lab.require(accepts(subject.forward, "position_ids"), "forward takes no position_ids")
    lab.require(traits.positions != "none", "the model has no positions")
    lab.require_context(subject)
    length = min(10, traits.max_len // 2)
    ids = lab.ids(2, length)
    plain = torch.arange(length).expand(2, -1)
    # Without a mask, transformers reads a jump of positions as the start of another packed document.
    kwargs = {}
    if traits.attn_mask and accepts(subject.forward, "attention_mask"):
        kwargs["attention_mask"] = torch.ones_like(ids)

    def logits(positions: Tensor) -> Tensor:
        return lab.forward(subject, ids, position_ids=positions.contiguous(), **kwargs)

    with torch.no_grad():
        expected = lab.forward(subject, ids)
        lab.close(
            logits(plain),
            expected,
            "logits differ with positions 0, 1, 2, … given and left out",
            tol=1e-4,
            case="2 rows",
        )
        stretched = torch.stack([plain[0], 2 * plain[1]])
        moved = logits(stretched) - expected
        lab.at_most(
            float(moved[0].abs().max()), "a row's logits move with another row's position_ids", tol=1e-4, case="2 rows"
        )
        effect = float(moved[1].abs().max())
        if effect <= EFFECT:
            raise Failed(
                "twice the distance between all tokens does not move the logits: position_ids are not used",
                measured=effect,
                tolerance=EFFECT,
                case=f"position_ids 0, 2, 4, … of a row of {length} tokens",
            )
        for shift in sorted({1, 7, min(traits.max_len, 1024) - length}):
            if shift + length > traits.max_len:
                continue
            drift = float((logits(plain + shift) - expected).abs().max())
            if traits.positions == "absolute" and drift <= EFFECT:
                raise Failed(
                    f"a shift of all positions by {shift} does not move the logits, though positions are absolute",
                    measured=drift,
                    tolerance=EFFECT,
                )
            # Measured against what positions do at all: tables kept in bfloat16 are a design, not a bug.
            if traits.positions == "relative":
                lab.at_most(
                    drift / effect,
                    "a shift of all positions moves the logits, though positions are relative "
                    "(largest move over that of twice the distances)",
                    case=f"2 rows of {length} tokens shifted by {shift}",
                    resembles="MF14",
                )
        try:
            near, far = logits(plain + traits.max_len), logits(2 * plain + traits.max_len)
        except Exception:  # noqa: BLE001 (refusing is right, in whatever words)
            return
        effect = float((far - near).abs().max())
        if not effect > EFFECT:
            raise Failed(
                "positions past max_len are taken and not told apart: twice the distance between all tokens does not "
                "move the logits",
                measured=effect,
                tolerance=EFFECT,
                case=f"position_ids {traits.max_len}, {traits.max_len + 1}, … and {traits.max_len}, "
                f"{traits.max_len + 2}, … of a row of {length} tokens",
            )


@check(family="forward", level=1, needs={"forward", "named_parameters"}, kind="oracle", tol=0.1, catches=("MF10",))
def gradient_matches_finite_difference(lab: Lab) -> None:
    """Every parameter's gradient of the cross-entropy of forward's logits is the slope that finite differences find."""
    subject = lab.randomised()
    length = min(9, lab.traits.max_len)
    ids = lab.ids(2, length)

    def loss() -> Tensor:
        logits = lab.forward(subject, ids)[:, :-1].double()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    zero_grad(subject)
    with torch.enable_grad():
        value = loss()
    if not value.requires_grad:
        raise Failed("forward's logits are not on the graph: nothing gets a gradient", resembles="MF10")
    value.backward()
    trained = {name: weight for name, weight in parameters(subject).items() if weight.requires_grad}
    without = [name for name, weight in trained.items() if weight.grad is None or not bool(weight.grad.any())]
    # Those without any gradient first: where a tensor is off the graph, what feeds it has a wrong gradient too.
    order = without + [name for name in trained if name not in without]
    large = sum(weight.numel() for weight in trained.values()) > LARGE
    if large:  # the first and the last layer stand for all
        kinds: dict[str, list[str]] = {}
        for name in trained:
            kinds.setdefault(re.sub(r"\d+", "", name), []).append(name)
        chosen = {name for names in kinds.values() for name in (names[0], names[-1])}
        order = [name for name in order if name in chosen or name in without]
    for name in order:
        # Two random directions: a gradient that lacks some heads or rows is right in some directions.
        for direction in range(1 if large else 2):
            _compare_slope(lab, name, trained[name], loss, direction)
    zero_grad(subject)


@torch.no_grad()
def _compare_slope(lab: Lab, name: str, weight: Tensor, loss: Callable[[], Tensor], direction: int) -> None:
    """Fail where the gradient's slope in a random direction is none that central differences find."""
    generator = torch.Generator().manual_seed(lab.seed * 1000 + direction)
    unit = torch.randn(weight.shape, generator=generator) * float(weight.square().mean().sqrt() or 1.0)
    kept, gradient = weight.clone(), weight.grad
    claimed = float((gradient * unit).sum()) if gradient is not None else 0.0
    typical = float(gradient.norm() * unit.norm()) / unit.numel() ** 0.5 if gradient is not None else 0.0
    slopes: list[tuple[float, float]] = []  # with what rounding and curvature may do to each
    # Smaller steps in case a larger one passes a kink (ReLU, routing to experts).
    for step in (0.02, 0.005, 0.00125):
        values = []
        for sign in (1, -1):
            weight.copy_((kept + sign * step * unit).to(weight))
            values.append(loss())
        weight.copy_(kept)
        slope = float(values[0] - values[1]) / (2 * step)
        slopes.append((slope, lab.tol * max(abs(slope), abs(claimed), typical) + 2e-6 / step))
        if abs(slope - claimed) <= slopes[-1][1]:
            return
    found = [slope for slope, _ in slopes]
    if max(found) - min(found) > max(tolerance for _, tolerance in slopes):
        return  # the steps disagree: there is no slope to be found
    measured = found[1]
    nothing = gradient is None or not bool(gradient.any())
    raise Failed(
        f"{name} gets no gradient, though the loss depends on it"
        if nothing
        else f"the gradient of {name} gives a slope of {claimed:.4g}, finite differences one of {measured:.4g}",
        measured=abs(measured - claimed),
        tolerance=slopes[1][1],
        case=f"a random direction (number {direction}) of {name}, 2 rows of tokens",
        resembles="MF10",
    )


@check(family="forward", level=1, needs={"forward", "named_parameters"}, kind="metamorphic", tol=1e-6, catches=("MF8",))
def forward_has_no_memory(lab: Lab) -> None:
    """The same call gives the same logits whatever was run in between, and changes neither its inputs nor weights."""
    subject = lab.randomised()
    ids = lab.ids(2, min(7, lab.traits.max_len))
    kept, weights = ids.clone(), snapshot(subject)
    with torch.no_grad():
        first = lab.forward(subject, ids).clone()
        lab.close(lab.forward(subject, ids), first, "two equal calls of forward differ", case="2 rows of 7 tokens")
        longer = lab.ids(3, min(40, lab.traits.max_len))
        between = {"a longer batch": lambda: lab.forward(subject, longer)}
        if lab.traits.attn_mask and accepts(subject.forward, "attention_mask"):
            mask = torch.ones_like(longer)
            mask[0, slice(-2, None) if "right" in lab.traits.padding else slice(2)] = 0
            before = mask.clone()
            between["a padded batch"] = lambda: lab.forward(subject, longer, attention_mask=mask)
        if lab.has("forward_cached"):
            between["cached decoding"] = lambda: lab.forward_cached(subject, longer[:, :5])[0]
        for what, call in between.items():
            call()
            lab.close(lab.forward(subject, ids), first, f"logits differ after {what}", case="2 rows of 7 tokens")
        if "a padded batch" in between:
            lab.equal(torch.equal(mask, before), True, "forward left its attention_mask as it was")
    lab.equal(torch.equal(ids, kept), True, "forward left its ids as they were")
    change, where = largest_difference(snapshot(subject), weights)
    lab.at_most(change, f"forward changed {where}", tol=0.0)


@check(
    family="forward",
    level=1,
    needs={"forward", "reference_logits", "named_parameters"},
    kind="oracle",
    tol=1e-3,
    catches=("MF14", "MF15"),
)
def forward_matches_reference(lab: Lab) -> None:
    """The logits are those of an independent implementation with the same weights."""
    subject = lab.randomised()
    lab.require_context(subject)
    end = lab.traits.max_len
    for rows, length in ((1, 1), (1, 4), (2, 9), (2, min(end, 128)), *([(1, end + 6)] if end <= 512 else [])):
        ids = lab.ids(rows, length)
        with torch.no_grad():
            try:
                logits, expected = lab.forward(subject, ids), subject.reference_logits(ids)
            except Exception:
                if length <= end:
                    raise
                return  # refusing what is too long is right, in whatever words
        lab.close(
            logits,
            expected,
            "logits differ from those of the reference implementation",
            case=f"{rows} row(s) of {length} tokens",
            tol=lab.tol * max(1.0, float(expected.abs().max()) / 10),
        )


def different(lab: Lab, ids: Tensor) -> Tensor:
    """Another ordinary id in place of each (N,)."""
    ordinary = lab.ordinary_ids()[:200]
    return torch.tensor([lab.rng.choice([i for i in ordinary if i != old]) for old in ids.tolist()])
