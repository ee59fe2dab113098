"""The prompts that a density folder weighs most: what the treatment really did, for people to read."""

import json
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kat.data.preferences import load_prompts, prompt_text
from kat.errors import EvidenceError

SHOWN = 50


class Heavy(BaseModel):
    """One prompt. `text` is None where no file of prompts was given or does not hold it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    id: str
    weight: float
    times_uniform: float = Field(description="its weight over 1/n")
    text: str | None


def heaviest(folder: Path, prompts: Path | None = None, n: int = SHOWN) -> list[Heavy]:
    """The n heaviest prompts of a density folder (weights.npy, ids.jsonl), heaviest first; `prompts` gives their texts.

    Raises :class:`EvidenceError` where the folder holds no weights, or other ids than weights.
    """
    try:
        weights = np.load(folder / "weights.npy", allow_pickle=False)
        lines = (folder / "ids.jsonl").read_text(encoding="utf-8").splitlines()
        ids = [row["id"] if isinstance(row, dict) else str(row) for row in map(json.loads, lines)]
    except (OSError, ValueError, KeyError) as error:
        raise EvidenceError(f"{folder}: no density folder that can be read ({error}); build it again") from None
    if weights.shape != (len(ids),) or not np.isfinite(weights).all() or abs(weights.sum() - 1) > 1e-6:
        raise EvidenceError(
            f"{folder}: not one weight for each of {len(ids)} ids, or they do not sum to 1; build again"
        )
    texts = {prompt.id: prompt_text(prompt) for prompt in load_prompts([prompts]).rows} if prompts else {}
    order = sorted(range(len(ids)), key=lambda i: (-weights[i], ids[i]))[:n]
    return [
        Heavy(id=ids[i], weight=float(weights[i]), times_uniform=float(weights[i]) * len(ids), text=texts.get(ids[i]))
        for i in order
    ]
