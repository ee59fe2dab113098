"""trl's rollouts are kat's: its schedule, its engine, its reward function, called once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kat.data.preferences import Prompt
from kat.errors import EvidenceError
from kat.runs.settings import GrpoSettings
from kat.trainers.grpo import GrpoTask
from kat.trainers.protocol import Job, Reward
from kat.trainers.rollout import ALL_TRUNCATED, CollapseError
from kat.trainers.trl_run import Run


class Remembered:
    """A reward whose last values can be read: trl asks for them again."""

    def __init__(self, reward: Reward) -> None:
        self.reward, self.name, self.identity = reward, reward.name, reward.identity
        self.values: list[float] = []

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        self.values = [float(value) for value in self.reward(prompts, responses)]
        return self.values


def on_rollouts(job: Job, score: Remembered | None) -> Job:
    """The job that kat's sampling sees: all completions whole. Masking the truncated ones is left to trl."""
    if not isinstance(job.settings, GrpoSettings):
        return job
    return replace(job, reward=score, settings=job.settings.model_copy(update={"mask_truncated": False}))


def remembered_rewards(reward: Sequence[float], **_: Any) -> list[float | None]:
    """trl's reward function: the rewards that came with the completions."""
    return list(reward)


@dataclass
class Rollouts:
    """trl's `rollout_func`: the schedule's next prompts, completed by kat's engine and judged by the job's reward."""

    run: Run
    task: GrpoTask
    score: Remembered
    mask_truncated: bool

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """`prompts` are numbers of draws, each as often as it has completions."""
        s, task = self.task.settings, self.task
        draws = range(task.n_rollouts * s.prompts_per_rollout, (task.n_rollouts + 1) * s.prompts_per_rollout)
        rows = [draw for draw in draws for _ in range(s.completions)]
        if list(prompts) != [str(draw) for draw in rows]:
            raise EvidenceError(
                f"--trainer trl: asks for draws {', '.join(prompts[:: s.completions])} of the schedule where "
                f"{draws.start} to {draws.stop - 1} come next"
            )
        rollout = task.roll_out()
        self.run.rollout_metrics = rollout.metrics
        if self.mask_truncated and rollout.metrics["truncated"] == 1:
            raise CollapseError(ALL_TRUNCATED)
        return {
            "prompt_ids": [list(task.data.ids[task.draws[draw]]) for draw in rows],
            "completion_ids": [ids[mask].tolist() for ids, mask in zip(rollout.ids, rollout.mask, strict=True)],
            "logprobs": [old[mask].tolist() for old, mask in zip(rollout.old, rollout.mask, strict=True)],
            "reward": self.score.values,
        }
