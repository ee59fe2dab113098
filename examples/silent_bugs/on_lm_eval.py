"""EleutherAI/lm-evaluation-harness: few-shot samplers, two tasks' prompts, pooled errors, and its token pairs."""

import functools
import importlib.util
import logging
import math
import random
import string
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from lift import lift, passage
from toy import Bytes

from kat.verify.subject import Traits

Item = dict[str, Any]


def _file(path: str | Path) -> Any:
    """A module by its path, without the packages around it."""
    spec = importlib.util.spec_from_file_location(f"checkout_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _question(item: Item) -> str:
    lines = [item["question"], item.get("hint") or ""]
    lines += [f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, item["choices"], strict=False)]
    return "\n".join(line for line in lines if line)


def _letter(item: Item) -> str:
    return string.ascii_uppercase[item["answer"]]


def _spare() -> list[Item]:
    return [{"question": f"Spare question {i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(40)]


class FirstN:
    """Examples chosen by FirstNSampler from a pool that may hold the item itself."""

    def __init__(self, checkout: str) -> None:
        self.samplers = _file(Path(checkout, "lm_eval/api/samplers.py"))
        self.traits = Traits(name="lm-eval FirstNSampler")

    def build_prompt(self, item: Item, shots: Any = ()) -> list[dict[str, str]]:
        messages = []
        if shots:
            pool = [*shots, *_spare()]
            for shot in self.samplers.FirstNSampler(pool).sample(len(shots), eval_doc=dict(item)):
                messages.append({"role": "user", "content": _question(shot)})
                messages.append({"role": "assistant", "content": _letter(shot)})
        return [*messages, {"role": "user", "content": _question(item)}]


def first_n(seed: int = 0, tiny: bool = True, *, checkout: str) -> FirstN:
    return FirstN(checkout)


class Gpqa:
    """Options as preprocess of the GPQA tasks leaves them, in the words of the task's doc_to_text."""

    def __init__(self, checkout: str) -> None:
        self.utils = _file(Path(checkout, "lm_eval/tasks/gpqa/zeroshot/utils.py"))
        self.traits = Traits(name="lm-eval gpqa")

    def build_prompt(self, item: Item) -> list[dict[str, str]]:
        options = [self.utils.preprocess(choice) for choice in item["choices"]]
        text = f"{item.get('hint') or ''}\nWhat is the correct answer to this question:{item['question']}\nChoices:"
        for letter, option in zip(string.ascii_uppercase, options, strict=False):
            text += f"\n({letter}) {option}"
        return [{"role": "user", "content": f"{text}\nAnswer:"}]


def gpqa(seed: int = 0, tiny: bool = True, *, checkout: str) -> Gpqa:
    return Gpqa(checkout)


class MmluPro:
    """Messages as the harness makes them under a chat template: each example's text, then its target if it has one."""

    def __init__(self, checkout: str) -> None:
        import yaml

        folder = Path(checkout, "lm_eval/tasks/mmlu_pro")
        utils = _file(folder / "utils.py")

        class Loader(yaml.SafeLoader):
            pass

        def function(loader: Any, node: Any) -> Any:
            return getattr(utils, node.value.rpartition(".")[2])

        Loader.add_constructor("!function", function)
        text = (folder / "_default_template_yaml").read_text(encoding="utf-8")
        self.config = yaml.load(text, Loader)
        self.traits = Traits(name="lm-eval mmlu_pro")

    def build_prompt(self, item: Item, shots: Any = ()) -> list[dict[str, str]]:
        if any(shot["question"] == item["question"] for shot in shots):
            raise ValueError("examples come from another split")
        fewshot, messages = self.config["fewshot_config"], []
        for shot in map(self._document, shots):
            messages.append({"role": "user", "content": _apply(fewshot["doc_to_text"], shot)})
            if target := _apply(fewshot["doc_to_target"], shot):
                messages.append({"role": "assistant", "content": target})
        return [*messages, {"role": "user", "content": _apply(self.config["doc_to_text"], self._document(item))}]

    def _document(self, item: Item) -> Item:
        thought = f"A: Let's think step by step. {item.get('solution', '')} The answer is ({_letter(item)})."
        question = "\n".join(part for part in (item.get("hint"), item["question"]) if part)
        return {"question": question, "options": item["choices"], "cot_content": thought, "answer": _letter(item)}


def _apply(rule: str | Callable[[Item], str], document: Item) -> str:
    return rule(document) if callable(rule) else rule


def mmlu_pro(seed: int = 0, tiny: bool = True, *, checkout: str) -> MmluPro:
    return MmluPro(checkout)


class SeededShots:
    """A task whose file sets num_fewshot, evaluated without the option: each call is a run of its own.

    What simple_evaluate does to the task is done to it, then the task's sampler draws two examples.
    """

    def __init__(self, checkout: str) -> None:
        self.set_seed = lift(Path(checkout, "lm_eval/api/task.py"), "Task.set_fewshot_seed", random=random)
        self.sampler = _file(Path(checkout, "lm_eval/api/samplers.py")).ContextSampler
        self.prepare = passage(
            Path(checkout, "lm_eval/evaluator.py"),
            "simple_evaluate",
            "if num_fewshot is not None",
            "task_obj.set_fewshot_seed(",
        )
        self.traits = Traits(name="lm-eval few-shot seed")

    def build_prompt(self, item: Item) -> list[dict[str, str]]:
        names = {"num_fewshot": 2}
        task = SimpleNamespace(
            _config=SimpleNamespace(
                target_delimiter=" ",
                fewshot_delimiter="\n\n",
                doc_to_choice=None,
                fewshot_split="train",
                test_split="test",
            ),
            doc_to_text=_question,
            doc_to_target=_letter,
            doc_to_choice=None,
            get_config=names.get,
            set_config=lambda key, value: names.update({key: value}),
            fewshot_rnd=random.Random(),  # as ConfigurableTask makes it, "to be overridden at a later time"
        )
        task.sampler = self.sampler(_spare(), task, rnd=task.fewshot_rnd)
        task.set_fewshot_seed = functools.partial(self.set_seed, task)
        self.prepare(
            {
                "task_obj": task,
                "task_name": "tiny",
                "num_fewshot": None,
                "fewshot_random_seed": 1234,
                "eval_logger": logging.getLogger("silent"),
            }
        )
        return [{"role": "user", "content": task.sampler.get_context(item, names["num_fewshot"]) + _question(item)}]


def _has(file: Path, text: str) -> bool:
    return text in file.read_text(encoding="utf-8")


def seeded_shots(seed: int = 0, tiny: bool = True, *, checkout: str) -> SeededShots:
    return SeededShots(checkout)


class Pooled:
    """A group of two subtasks, one twice the other's size: their scores dealt out in turn, their means and errors
    pooled by the harness."""

    def __init__(self, checkout: str) -> None:
        names = ("mean", "sample_stddev", "mean_stderr", "pooled_sample_stderr", "aggregate_subtask_metrics")
        given = {"np": np, "math": math, "register_aggregation": lambda name: lambda function: function}
        self.metrics = lift(Path(checkout, "lm_eval/api/metrics.py"), *names, **given)
        self.traits = Traits(name="lm-eval groups")

    def aggregate(self, scores: Any) -> dict[str, float]:
        tasks = [[s for i, s in enumerate(scores) if i % 3 != 0], [s for i, s in enumerate(scores) if i % 3 == 0]]
        sizes = [len(task) for task in tasks]
        means = [self.metrics.mean(task) for task in tasks]
        errors = [self.metrics.mean_stderr(task) for task in tasks]
        return {
            "value": float(self.metrics.aggregate_subtask_metrics(means, sizes)),
            "stderr": float(self.metrics.pooled_sample_stderr(errors, sizes)),
        }


def pooled(seed: int = 0, tiny: bool = True, *, checkout: str) -> Pooled:
    return Pooled(checkout)


class _WithBos(Bytes):
    """A tokenizer as transformers has them: encode adds <s> where it is asked to, and reads typed special tokens."""

    BOS, EOS = "<s>", "</s>"
    bos_token = BOS

    def __init__(self) -> None:
        super().__init__(first=2)

    def encode(self, text: str, add_special_tokens: bool | None = True) -> list[int]:
        ids = [0] if add_special_tokens else []
        while text:
            for i, name in enumerate((self.BOS, self.EOS)):
                if text.startswith(name):
                    ids.append(i)
                    text = text[len(name) :]
                    break
            else:
                ids += super().encode(text[0])
                text = text[1:]
        return ids

    def decode(self, ids: Any) -> str:
        ids = [ids] if isinstance(ids, int) else list(ids)
        return (self.BOS, self.EOS)[ids[0]] if len(ids) == 1 and ids[0] < 2 else super().decode(ids)


class Pairs:
    """A question from a chat template that writes <s>, and its answer, as _encode_pair of HFLM makes ids of them.

    The model is one that wants a beginning token: add_bos_token is set.
    """

    def __init__(self, checkout: str) -> None:
        self.tokenizer = _WithBos()
        utils = Path(checkout, "lm_eval/models/utils.py")
        given = {}
        for name in ("has_bos_prefix", "_add_special_kwargs"):
            if _has(utils, f"def {name}"):
                given[name] = lift(utils, name)
        tok_encode = lift(Path(checkout, "lm_eval/models/huggingface.py"), "HFLM.tok_encode", **given)
        pair = lift(Path(checkout, "lm_eval/api/model.py"), "TemplateLM._encode_pair")
        model = SimpleNamespace(backend="causal", add_bos_token=True, tokenizer=self.tokenizer, prefix_token_id=0)
        model.tok_encode = functools.partial(tok_encode, model)
        self.pair = functools.partial(pair, model)
        self.traits = Traits(
            name="lm-eval HFLM",
            vocab=self.tokenizer.vocab_size,
            bos_id=0,
            eos_ids=(1,),
            special_ids=(0, 1),
            parses_specials=True,
        )

    def encode_conversation(self, messages: Any) -> tuple[list[int], list[int]]:
        if len(messages) != 2 or messages[0]["role"] != "user":
            raise ValueError("one question and one answer")
        context, continuation = self.pair(
            f"<s>User: {messages[0]['content']}\nAnswer:", f" {messages[1]['content']}</s>"
        )
        return [*context, *continuation], [0] * len(context) + [1] * len(continuation)

    def decode(self, ids: Any) -> str:
        return self.tokenizer.decode(ids)


def pairs(seed: int = 0, tiny: bool = True, *, checkout: str) -> Pairs:
    return Pairs(checkout)
