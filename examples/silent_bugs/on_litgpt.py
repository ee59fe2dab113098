"""Lightning-AI/litgpt (once lit-gpt): its model and sampling, its losses, schedules, initialisation and chat loop."""

import math
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lift import lift, passage, use
from torch import Tensor, nn
from toy import Bytes, WithToy, padded

from kat.verify.subject import Completion, Traits

STUBS = (
    "lightning",
    "torchmetrics",
    "lightning_utilities",
    "jsonargparse",
    "tqdm",
    "bitsandbytes",
    "litdata",
    "psutil",
)
TINY = {"n_layer": 2, "n_head": 4, "n_query_groups": 2, "n_embd": 32, "block_size": 64, "padded_vocab_size": 48}


class Model:
    """litgpt.model.GPT with litgpt's own sampling. reference: a transformers model to compare it with."""

    def __init__(self, checkout: str, seed: int, config_name: str | None = None, **config: Any) -> None:
        self.module = use(checkout, "litgpt.model", stubs=STUBS, bare=("litgpt", "litgpt.scripts"))
        sizes = {**TINY, "vocab_size": TINY["padded_vocab_size"], **config}
        if config_name is None:
            style = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "intermediate_size": 48}
            sizes |= {"name": "tiny", "rotary_percentage": 1.0, "parallel_residual": False, "bias": False, **style}
            self.config = self.module.Config(**sizes)
        else:
            self.config = self.module.Config.from_name(config_name, **{"intermediate_size": 48, **sizes})
        torch.manual_seed(seed)
        self.model = self.module.GPT(self.config).eval()
        names = ("multinomial_num_samples_1", "sample_top_p", "sample", "next_token", "generate_fn", "generate")
        file = Path(checkout, "litgpt/generate/base.py")
        given = {"torch": torch, "warnings": warnings, "GPT": self.module.GPT, "Any": Any}
        self.sampling = lift(file, *names, **given)
        self.traits = Traits(
            name="litgpt",
            vocab=self.config.padded_vocab_size,
            max_len=self.config.block_size,
            eos_ids=(2,),
            special_ids=(2,),
            attn_mask=False,
            padding=("right",),
        )

    def named_parameters(self) -> Any:
        return self.model.named_parameters()

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)

    def forward_cached(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The model keeps its cache in its blocks; a state is what they hold, and where it ends."""
        blocks = self.model.transformer.h
        if state is None:
            self.model.clear_kv_cache()
            self.model.set_kv_cache(batch_size=len(ids))
            state = {"caches": [block.attn.kv_cache for block in blocks], "mask": self.model.mask_cache, "end": 0}
        for block, cache in zip(blocks, state["caches"], strict=True):
            block.attn.kv_cache = cache
        self.model.mask_cache = state["mask"]
        end = state["end"] + ids.shape[1]
        logits = self.model(ids, torch.arange(state["end"], end))
        self.model.clear_kv_cache()
        return logits, {**state, "end": end}

    def generate(
        self, prompts: Any, n: int = 1, max_new_tokens: int = 32, temperature: float = 1.0, top_k: Any = None, seed=0
    ) -> list[list[Completion]]:
        groups = []
        for i, prompt in enumerate(prompts):
            torch.manual_seed(seed * 100_003 + i)
            group = []
            for _ in range(n):
                self.model.set_kv_cache(batch_size=1)
                found = self.sampling.generate(
                    self.model,
                    torch.tensor(prompt),
                    len(prompt) + max_new_tokens,
                    temperature=temperature,
                    top_k=top_k,
                    eos_id=2,
                    include_prompt=False,
                ).tolist()
                self.model.clear_kv_cache()
                group.append(Completion(found, None, "stop" if found and found[-1] == 2 else "length"))
            groups.append(group)
        return groups


def model(seed: int = 0, tiny: bool = True, *, checkout: str, **config: Any) -> Model:
    return Model(checkout, seed, **config)


class Mistral(Model):
    """The configuration that litgpt has for Mistral-7B-Instruct-v0.3, in small, beside transformers' Mistral with the
    rotary base of the published checkpoint's config.json, 1e6."""

    ROTARY_BASE = 1e6

    def __init__(self, checkout: str, seed: int, **config: Any) -> None:
        super().__init__(checkout, seed, config_name="Mistral-7B-Instruct-v0.3", **config)

    def reference_logits(self, ids: Tensor) -> Tensor:
        import transformers

        c = self.config
        other = transformers.MistralForCausalLM(
            transformers.MistralConfig(
                vocab_size=c.padded_vocab_size,
                hidden_size=c.n_embd,
                intermediate_size=c.intermediate_size,
                num_hidden_layers=c.n_layer,
                num_attention_heads=c.n_head,
                num_key_value_heads=c.n_query_groups,
                head_dim=c.head_size,
                max_position_embeddings=c.block_size,
                rms_norm_eps=c.norm_eps,
                rope_theta=self.ROTARY_BASE,
                sliding_window=None,
                tie_word_embeddings=False,
            )
        ).eval()
        ours = self.model.state_dict()
        theirs = {
            "model.embed_tokens.weight": ours["transformer.wte.weight"],
            "model.norm.weight": ours["transformer.ln_f.weight"],
            "lm_head.weight": ours["lm_head.weight"],
        }
        for i in range(c.n_layer):
            mine, his = f"transformer.h.{i}", f"model.layers.{i}"
            kv = c.n_query_groups * c.head_size
            q, k, v = ours[f"{mine}.attn.qkv.weight"].split([c.n_head * c.head_size, kv, kv])
            theirs |= {f"{his}.self_attn.{name}_proj.weight": w for name, w in zip("qkv", (q, k, v), strict=True)}
            theirs |= {
                f"{his}.self_attn.o_proj.weight": ours[f"{mine}.attn.proj.weight"],
                f"{his}.input_layernorm.weight": ours[f"{mine}.norm_1.weight"],
                f"{his}.post_attention_layernorm.weight": ours[f"{mine}.norm_2.weight"],
                f"{his}.mlp.gate_proj.weight": ours[f"{mine}.mlp.fc_1.weight"],
                f"{his}.mlp.up_proj.weight": ours[f"{mine}.mlp.fc_2.weight"],
                f"{his}.mlp.down_proj.weight": ours[f"{mine}.mlp.proj.weight"],
            }
        other.load_state_dict(theirs, strict=True)
        with torch.no_grad():
            return other(ids).logits


def mistral(seed: int = 0, tiny: bool = True, *, checkout: str, **config: Any) -> Mistral:
    return Mistral(checkout, seed, **config)


class ChunkedLoss(WithToy):
    """chunked_cross_entropy on shifted logits, in chunks of 7, with a toy model."""

    def __init__(self, checkout: str, seed: int) -> None:
        super().__init__(seed)
        self.cross_entropy = lift(Path(checkout, "lit_gpt/utils.py"), "chunked_cross_entropy", torch=torch)
        self.traits = Traits(name="lit-gpt", vocab=self.VOCAB, max_len=self.MAX_LEN, pad_id=0, positions="absolute")

    def collate(self, rows: Any) -> dict[str, Tensor]:
        ids, mask, attention = padded(rows, 0)
        return {"ids": ids, "mask": mask, "attention_mask": attention}

    def loss(self, batch: Any) -> Tensor:
        labels = batch["ids"].masked_fill(batch["mask"] == 0, -1)
        logits = self.model(batch["ids"], batch["attention_mask"])
        return self.cross_entropy(logits[:, :-1], labels[:, 1:], chunk_size=7)


def chunked_loss(seed: int = 0, tiny: bool = True, *, checkout: str) -> ChunkedLoss:
    return ChunkedLoss(checkout, seed)


class Validation(WithToy):
    """eval_loss by validate() of finetune/full.py; get_batch hands it the batch, one iteration."""

    def __init__(self, checkout: str, seed: int) -> None:
        super().__init__(seed)
        self.model.reset_cache = lambda: None
        script = Path(checkout, "finetune/full.py")
        cross_entropy = lift(Path(checkout, "lit_gpt/utils.py"), "chunked_cross_entropy", torch=torch)
        self.batch: tuple[Tensor, Tensor] | None = None
        self.validate = lift(
            script,
            "validate",
            torch=torch,
            eval_iters=1,
            get_batch=lambda *_: self.batch,
            chunked_cross_entropy=cross_entropy,
            generate_prompt=lambda sample: "",
            generate=lambda model, **_: torch.zeros(1),
        )
        self.fabric = SimpleNamespace(print=lambda *_: None, device="cpu")
        self.tokenizer = SimpleNamespace(encode=lambda *_, **__: torch.zeros(1), decode=lambda ids: "")
        self.traits = Traits(name="lit-gpt", vocab=self.VOCAB, max_len=self.MAX_LEN, pad_id=0, positions="absolute")

    def collate(self, rows: Any) -> dict[str, Tensor]:
        ids, mask, attention = padded(rows, 0)
        return {"ids": ids, "mask": mask, "attention_mask": attention}

    def eval_loss(self, batch: Any) -> float:
        self.batch = batch["ids"], batch["ids"].masked_fill(batch["mask"] == 0, -1)
        value = self.validate(self.fabric, self.model, [], self.tokenizer, 0)
        self.model.eval()
        return float(value)


def validation(seed: int = 0, tiny: bool = True, *, checkout: str) -> Validation:
    return Validation(checkout, seed)


class PretrainSchedule:
    """The lines of pretrain.fit that set the learning rate, run step after step on an optimizer."""

    PEAK, FINAL, WARMUP, TOTAL = 1e-3, 1e-4, 5, 40

    def __init__(self, checkout: str) -> None:
        script = Path(checkout, "litgpt/pretrain.py")
        self.get_lr = lift(script, "get_lr", math=math)
        self.lines = passage(script, "fit", "lr = get_lr(", "for param_group in optimizer.param_groups")
        self.traits = Traits(
            name="litgpt pretrain",
            lr_peak=self.PEAK,
            lr_final=self.FINAL,
            warmup_steps=self.WARMUP,
            total_steps=self.TOTAL,
        )

    def lr(self, step: int) -> float:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=self.PEAK)
        state = {"iter_num": 0}
        train = SimpleNamespace(min_lr=self.FINAL)
        namespace = {"get_lr": self.get_lr, "optimizer": optimizer, "state": state, "train": train}
        namespace |= {"warmup_iters": self.WARMUP, "max_iters": self.TOTAL, "max_lr": self.PEAK}
        for _ in range(step + 1):
            self.lines(namespace)
            state["iter_num"] += 1
        return optimizer.param_groups[0]["lr"]


def pretrain_schedule(seed: int = 0, tiny: bool = True, *, checkout: str) -> PretrainSchedule:
    return PretrainSchedule(checkout)


class FinetuneWarmup:
    """The constants of finetune/full.py and the lines of train() that warm the rate up; its comment says two epochs.

    In small: an epoch of 640 examples, so two of them are 1280 micro-batches of one, or 20 optimizer steps of 64.
    """

    EPOCH, STEPS = 640, 20

    def __init__(self, checkout: str) -> None:
        script = Path(checkout, "finetune/full.py")
        constants = ("devices =", "learning_rate =", "batch_size =", "micro_batch_size =", "num_epochs =")
        self.constants = passage(script, None, *constants, "gradient_accumulation_iters =")
        self.derived = passage(script, None, "warmup_")
        self.lines = passage(script, "train", "if step_count <= warmup_")
        self.values = self.derived({**self.constants({}), "epoch_size": self.EPOCH})
        self.traits = Traits(
            name="lit-gpt finetune", lr_peak=self.values["learning_rate"], warmup_steps=self.STEPS, total_steps=40
        )

    def lr(self, step: int) -> float:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=self.values["learning_rate"])
        for step_count in range(step + 1):
            self.lines({**self.values, "optimizer": optimizer, "step_count": step_count})
        return optimizer.param_groups[0]["lr"]


def finetune_warmup(seed: int = 0, tiny: bool = True, *, checkout: str) -> FinetuneWarmup:
    return FinetuneWarmup(checkout)


class Initialised:
    """A model in empty memory, then what pretrain.main does to it before training."""

    def __init__(self, checkout: str, seed: int) -> None:
        self.module = use(checkout, "litgpt.model", stubs=STUBS, bare=("litgpt", "litgpt.scripts"))
        script, utils = Path(checkout, "litgpt/pretrain.py"), Path(checkout, "litgpt/utils.py")

        class FSDPStrategy:
            pass

        given: dict[str, Any] = {"nn": nn, "math": math, "partial": partial, "FSDPStrategy": FSDPStrategy}
        given |= {name: getattr(self.module, name) for name in ("GPT", "LLaMAMLP", "CausalSelfAttention")}
        main = "main"
        self.namespace: dict[str, Any] = {"fabric": SimpleNamespace(strategy=object())}
        try:
            given["reset_parameters"] = lift(utils, "reset_parameters", nn=nn)
            name = "initialize_weights"
        except LookupError:
            name = "prepare_weight_initialization"
        self.namespace[name] = lift(script, name, **given)
        self.lines = passage(script, main, f"{name}(")
        style = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "intermediate_size": 48}
        config = {
            **TINY,
            "vocab_size": 48,
            "rotary_percentage": 1.0,
            "parallel_residual": False,
            "bias": False,
            **style,
        }
        self.config = self.module.Config(name="tiny", **config)
        self.model = self.module.GPT(self.config)
        self.init_weights(seed)
        self.traits = Traits(name="litgpt", vocab=48, max_len=64, attn_mask=False, padding=("right",))

    def named_parameters(self) -> Any:
        return self.model.named_parameters()

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)

    def init_weights(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.lines({**self.namespace, "model": self.model, "config": self.config})


def initialised(seed: int = 0, tiny: bool = True, *, checkout: str) -> Initialised:
    return Initialised(checkout, seed)


class ChatLoop:
    """encode_prompt: what interact() of litgpt chat hands on of a message that somebody typed, in bytes."""

    def __init__(self, checkout: str) -> None:
        self.bytes = Bytes()
        self.seen: list[str] = []
        self.interact = lift(
            Path(checkout, "litgpt/chat/base.py"),
            "interact",
            process_prompt=lambda prompt, *_: self.seen.append(prompt),
            input=self._input,
            print=lambda *_: None,
        )
        self.typed: list[str] = []
        self.traits = Traits(name="litgpt chat", vocab=self.bytes.vocab_size, supervised="all", trims=True)

    def _input(self, prompt: str = "") -> str:
        return self.typed.pop(0)

    def encode_prompt(self, messages: Any) -> list[int]:
        """One message; line ends and more messages a terminal cannot give."""
        if len(messages) != 1:
            raise ValueError("litgpt chat answers single messages")
        self.typed, self.seen = [*messages[0]["content"].split("\n"), "!submit", "", "!submit"], []
        self.interact(True, *[None] * 9)
        return self.bytes.encode(self.seen[0] if self.seen else "")

    def encode_conversation(self, messages: Any) -> tuple[list[int], list[int]]:
        """The typed message and the answer behind it."""
        prompt = self.encode_prompt(messages[:-1])
        answer = self.bytes.encode(messages[-1]["content"])
        return [*prompt, *answer], [0] * len(prompt) + [1] * len(answer)

    def decode(self, ids: Any) -> str:
        return self.bytes.decode(ids)


def chat(seed: int = 0, tiny: bool = True, *, checkout: str) -> ChatLoop:
    return ChatLoop(checkout)
