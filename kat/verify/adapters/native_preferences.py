"""kat's reward model, density weights and diversity metrics for the subject `native`.

Each method goes through what `kat train reward`, `kat eval reward`, `kat density build`, `kat train grpo` and
`kat eval diversity` run. A part is made when it is first asked for, so that other checks pay nothing for it.
"""

import copy
import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kat.data.encoded import PairData, encode_pairs
from kat.data.preferences import Pair, parse_pair
from kat.density import weights as density
from kat.density.embed import Embedder, open_embedder
from kat.density.folder import Row, finish_folder, load_density
from kat.density.schedule import draw_schedule
from kat.evals.protocol import DataSource, Judge
from kat.evals.reward import PairItem, RewardBackend, RewardSuite
from kat.evals.runner import run_suite
from kat.model.checkpoint import save_checkpoint, write_checkpoint
from kat.model.gpt import GPT
from kat.model.reward import RewardCheckpoint, load_reward, save_head
from kat.runs.files import new_folder, read_json, write_json
from kat.runs.settings import RewardSettings, make_settings
from kat.runtime import World
from kat.stats.diversity import DIRECTION, token_metrics, vendi_score
from kat.stats.windows import common_window, first_tokens, tokens
from kat.tokenizer.bpe import Tokenizer
from kat.trainers.loop import Loop
from kat.trainers.native import build_task, with_head
from kat.trainers.protocol import Job
from kat.trainers.run_folder import PROMPTS, load_state, newest_state, save_state
from kat.verify.subject import Message, Preference

STEPS, BATCH = 20, 8
METRICS = ("vendi", "distinct_2", "compression_ratio", "self_bleu_4", "duplicate_rate", "self_repetition_4")
TRAITS: dict[str, Any] = {
    "density_max_ratio": density.LARGEST_RATIO,
    "density_dose": 0.2,
    "diversity": {name: DIRECTION[name] for name in (*METRICS, "token_gini")},
}


class Preferences:
    """What a NativeSubject can do beyond text and next tokens; it brings `model`, `tokenizer` and `seed`."""

    model: GPT
    tokenizer: Tokenizer
    seed: int

    # Reward model

    @cached_property
    def reward(self) -> "RewardTraining":
        """The reward stage on a copy of the model, before its first step."""
        return RewardTraining(copy.deepcopy(self.model), self.tokenizer, self.seed)

    def reward_parameters(self) -> Iterable[tuple[str, Tensor]]:
        return self.reward.loop.model.named_parameters()

    def score(self, prompt: Sequence[Message], response: str) -> float:
        return self.reward.judge(prompt, (response,))[0]

    def score_pair(self, prompt: Sequence[Message], a: str, b: str) -> float:
        first, second = self.reward.judge(prompt, (a, b))
        return first - second

    def reward_step(
        self, micro_batches: Sequence[Sequence[Preference]], weights: Sequence[Sequence[float]] | None = None
    ) -> Mapping[str, float]:
        return self.reward.step(micro_batches, weights)

    def reward_accuracy(self, pairs: Sequence[Preference]) -> float:
        """`kat eval reward` on the checkpoint that training would leave here."""
        items = [PairItem(pair, {}) for pair in _pairs(pairs)]
        suite = RewardSuite(items, DataSource("pairs", "0" * 64, 0, ()))
        with tempfile.TemporaryDirectory(prefix="kat-verify-") as folder:
            self.reward.save(Path(folder))
            backend: Any = suite.open_backend(str(Path(folder) / "reward"), "cpu")[0]
            return run_suite(suite, backend, Path(folder) / "found").metrics["accuracy"].estimate

    def save_reward(self, path: Path) -> None:
        """Nothing where no reward model was made."""
        if "reward" in vars(self):
            self.reward.save(path)

    def load_reward(self, path: Path) -> None:
        vars(self).pop("reward", None)
        if (path / "reward").is_dir():
            self.reward = RewardTraining.load(path, self.tokenizer, self.seed)

    # Density

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self._embedder().embed(texts)

    def density_weights(self, embeddings: Any) -> np.ndarray:
        return density.density_weights(np.asarray(embeddings), dose=TRAITS["density_dose"]).values

    def sample_indices(self, weights: Any, n: int, seed: int) -> list[int]:
        drawn = draw_schedule([str(i) for i in range(len(weights))], n, seed, np.asarray(weights), "density")
        return [int(name) for name in drawn.ids]

    def weights_of(self, known: Mapping[str, float], ids: Sequence[str]) -> np.ndarray:
        """Through a density folder that holds the known weights."""
        values = np.array(list(known.values()))
        found = density.Weights(
            values,
            radii=np.ones(len(values)),
            k=1,
            alpha=1.0,
            dose=density.total_variation(values),
            ess=density.effective_size(values),
            max_over_median=float(values.max() / np.median(values)),
            cv=1.0,
            n_distinct=len(values),
        )
        rows = [Row(name, name, "", 0, 1.0, "") for name in known]
        said = {"model": "none", "model_hash": "0", "estimator": "given", "neighbours": "none", "versions": {}}
        with tempfile.TemporaryDirectory(prefix="kat-verify-") as folder:
            np.save(Path(folder) / "embeddings.npy", np.zeros((len(values), 1), np.float16))
            finish_folder(Path(folder), rows, found, dim=1, dose=found.dose, **said)
            return load_density(Path(folder), list(ids), subset=True)

    def diversity(self, texts: Sequence[str]) -> dict[str, float]:
        """The metrics of `kat eval diversity`, of the texts as the answers to one prompt."""
        window = common_window([[len(tokens(text)) for text in texts]]).size
        found = token_metrics(texts, window)
        found["vendi"] = vendi_score(self.embed([first_tokens(text, window) for text in texts]))
        return {name: found[name] for name in (*METRICS, "token_gini")}

    def _embedder(self) -> Embedder:
        """Opened from a checkpoint of the model as it is now."""
        state = tuple((id(weight), weight._version) for weight in self.model.parameters())
        held: tuple[Any, Embedder] | None = vars(self).get("_opened")
        if held is None or held[0] != state:
            with tempfile.TemporaryDirectory(prefix="kat-verify-") as folder:
                save_checkpoint(Path(folder) / "model", self.model, self.tokenizer, {"stage": "sft", "step": 0})
                held = (state, open_embedder(Path(folder) / "model"))
            self._opened = held
        return held[1]


class RewardTraining:
    """The loop of `kat train reward` around a model, and the checkpoint that it leaves."""

    def __init__(self, gpt: GPT, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer, self.context = tokenizer, gpt.config.sequence_len
        settings = make_settings(RewardSettings, {"steps": STEPS, "batch_size": BATCH}, "native")
        data = encode_pairs(_pairs([([{"role": "user", "content": "a"}], "b", "c")]), tokenizer, self.context)
        self.job = Job("reward", None, Path(), data, None, settings, seed, "cpu", "float32", Path("native"))
        model = with_head(gpt, settings)
        out = Path(tempfile.gettempdir()) / "kat-verify-reward"  # for the batch of a step that overflows
        self.loop = Loop(
            model,
            self._task(data, None),
            settings,
            world=World(),
            device=torch.device("cpu"),
            dtype=torch.float32,
            out=out,
        )
        self.prompts: set[str] = set()  # that were trained on

    def _task(self, data: PairData, weights: np.ndarray | None) -> Any:
        schedule = draw_schedule(data.names, STEPS * BATCH, self.job.seed)
        job = dataclasses.replace(self.job, train=data, schedule=schedule, loss_weights=weights)
        return build_task(job, None, self.tokenizer, World(), torch.float32)  # type: ignore[arg-type]

    def judge(self, prompt: Sequence[Message], responses: tuple[str, ...]) -> list[float]:
        """Their scores, from one batch."""
        model = self.loop.model.eval()
        backend = RewardBackend(RewardCheckpoint(Path("native"), model, self.tokenizer, {}, ""))  # type: ignore[arg-type]
        return backend.judge([Judge(tuple(prompt), responses)])[0]

    def step(
        self, micro_batches: Sequence[Sequence[Preference]], weights: Sequence[Sequence[float]] | None
    ) -> Mapping[str, float]:
        """One optimizer step. A pair's weight is what the data set would give it times the number of its pairs."""
        pairs = _pairs([pair for batch in micro_batches for pair in batch])
        data = encode_pairs(pairs, self.tokenizer, self.context)
        place = {name: i for i, name in enumerate(data.names)}
        shares = None
        if weights is not None:
            given = dict(zip((pair.id for pair in pairs), (w for batch in weights for w in batch), strict=True))
            shares = np.array([given[name] for name in data.names]) / len(data)
        task = self.loop.task = self._task(data, shares)
        batches, start = [], 0
        for batch in micro_batches:
            kept = [place[pair.id] for pair in pairs[start : start + len(batch)] if pair.id in place]
            start += len(batch)
            if kept:  # pairs that are too long were dropped
                batches.append(task._batch(data, kept))
        self.prompts |= set(data.prompts)
        self.loop.model.train()
        return self.loop.train_step(batches)

    def save(self, path: Path) -> None:
        """The reward checkpoint, and the trainer's state beside it."""
        with new_folder(path / "reward") as folder:
            save_head(folder, self.loop.model)  # type: ignore[arg-type]
            write_json(folder / PROMPTS, sorted(self.prompts))
            meta = {"stage": "reward", "step": self.loop.step}
            write_checkpoint(folder, self.loop.model.gpt, self.tokenizer, meta)  # type: ignore[arg-type]
        save_state(path / "reward-training", self.loop.state())

    @classmethod
    def load(cls, path: Path, tokenizer: Tokenizer, seed: int) -> "RewardTraining":
        """The weights are the checkpoint's: it is what evaluation and GRPO read. Moments and step are the state's."""
        checkpoint = load_reward(path / "reward")
        training = cls(copy.deepcopy(checkpoint.model.gpt), tokenizer, seed)
        state = newest_state(path / "reward-training")
        assert state is not None
        training.loop.restore(load_state(state))
        training.loop.model.load_state_dict(checkpoint.model.state_dict())
        training.prompts = set(read_json(path / "reward" / PROMPTS))
        return training


def _pairs(pairs: Sequence[Preference]) -> list[Pair]:
    """As `kat train reward` reads them from a file."""
    return [
        parse_pair({"id": f"pair-{i}", "prompt": list(prompt), "chosen": chosen, "rejected": rejected})
        for i, (prompt, chosen, rejected) in enumerate(pairs)
    ]
