"""nanochat's GPT of October 2025, which is transformers' NanoChat.

Rotary embedding and no other position signal; QK-norm after it; RMSNorm without weights, also after the token
embedding; ReLU squared in the MLP; no biases; untied embeddings; grouped-query attention; logits capped by a tanh.
Parameters carry the names that transformers gives them, so a checkpoint needs no translation.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kat.model.cache import KVCache, full_mask
from kat.model.config import GPTConfig
from kat.model.rotary import RotaryTable, rotate

IGNORE = -1  # a target that is not supervised


class Attention(nn.Module):
    """Causal self-attention with grouped queries."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.eps = layer, config.norm_eps
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.q_proj = nn.Linear(config.n_embd, config.n_head * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.n_embd, config.n_kv_head * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.n_embd, config.n_kv_head * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        q = self.q_proj(x).view(B, T, self.n_head, self.head_dim)
        k = self.k_proj(x).view(B, T, self.n_kv_head, self.head_dim)
        v = self.v_proj(x).view(B, T, self.n_kv_head, self.head_dim)
        q, k = rms_norm(rotate(q, cos, sin), self.eps), rms_norm(rotate(k, cos, sin), self.eps)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None and T > 1,
            enable_gqa=self.n_head != self.n_kv_head,
        )
        return self.o_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two matrices with ReLU squared between them (So et al., arXiv:2109.08668)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.fc2 = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x), inplace=True).square())


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(rms_norm(x, self.eps), cos, sin, mask, cache)
        return x + self.mlp(rms_norm(x, self.eps))


class Trunk(nn.Module):
    """Token embedding and blocks; its name in the checkpoint is ``model``."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))


class GPT(nn.Module):
    """The language model. Weights are uninitialised until :meth:`init_weights` or a checkpoint fills them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.rotary = RotaryTable(config.head_dim, config.rope_base, getattr(torch, config.rope_table_dtype))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """nanochat's initialisation: embeddings N(0, 1), matrices N(0, min(1, sqrt(out / in)) / sqrt(in))
        (arXiv:2310.17813), and zero for the head and for what each block adds to the residual stream."""
        for name, weight in self.named_parameters():
            if name == "model.embed_tokens.weight":
                weight.normal_(0.0, 1.0, generator=generator)
            elif name == "lm_head.weight" or name.endswith(("o_proj.weight", "fc2.weight")):
                weight.zero_()
            else:
                fan_out, fan_in = weight.shape
                weight.normal_(0.0, min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in), generator=generator)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @torch.no_grad()
    def lay_out_for_decoding(self) -> "GPT":
        """Store the matrices with at least as many outputs as inputs column by column; names, shapes and values stay.

        A product with one token's activations then reads them at memory speed (a quarter off a step at batch 1 on a
        CPU). For a model that is done with training: the last bits of its gradients would change.
        """
        if self.device.type == "cpu":
            for module in self.modules():
                if isinstance(module, nn.Linear) and module.out_features >= module.in_features:
                    module.weight = nn.Parameter(module.weight.t().contiguous().t(), module.weight.requires_grad)
        return self

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        doc_ids: Tensor | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        return_hidden_states: bool = False,
        positions: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, T, V); with targets, the loss; with return_hidden_states, (logits, final hidden states).

        ids: (B, T) tokens. targets: (B, T), -1 where nothing is predicted; the loss is the sum of token losses, or
        that sum over the number of targets (0 where there is none). positions: (B, T) bool; the logits are then (n, V),
        of these n positions alone in row order. attention_mask: (B, cached + T), 0 = padding.
        position_ids: (B, T), default: consecutive from the cache's length. doc_ids: (B, T), tokens of different
        documents do not see each other.
        """
        hidden = self.hidden(
            ids, cache=cache, attention_mask=attention_mask, position_ids=position_ids, doc_ids=doc_ids
        )
        if targets is not None:
            return self.loss(hidden, targets, reduction)
        logits = self.logits(hidden if positions is None else hidden[positions])
        return (logits, hidden) if return_hidden_states else logits

    def hidden(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        doc_ids: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, C), after the last norm; the arguments are those of :meth:`forward`."""
        start = cache.length if cache is not None else 0
        T = ids.size(1)
        if position_ids is None:
            cos, sin = self.rotary.slice(start, start + T, ids.device)
        else:
            cos, sin = self.rotary.gather(position_ids)
        mask = full_mask(doc_ids, attention_mask, T, start + T)
        x = rms_norm(self.model.embed_tokens(ids), self.config.norm_eps)
        for block in self.model.layers:
            x = block(x, cos, sin, mask, cache)
        return rms_norm(x, self.config.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Capped logits (..., V) of hidden states (..., C), in the dtype of the activations."""
        # In place where autograd allows: these are the largest tensors of a small model.
        capped = self.lm_head(hidden).div_(self.config.softcap).tanh_()
        return capped * self.config.softcap if capped.requires_grad else capped.mul_(self.config.softcap)

    def loss(self, hidden: Tensor, targets: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
        """Cross-entropy (nats). The head, a small model's largest matrix, runs at the supervised positions only."""
        supervised = targets != IGNORE
        count = int(supervised.sum())
        if count < targets.numel():
            hidden, targets = hidden[supervised], targets[supervised]
        logits = self.logits(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # never sum exponentials in bfloat16
        total = F.cross_entropy(logits.reshape(-1, logits.size(-1)), targets.reshape(-1), reduction="sum")
        return total if reduction == "sum" else total / max(count, 1)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the last dimension, without weights (arXiv:1910.07467)."""
    return F.rms_norm(x, (x.size(-1),), eps=eps)
