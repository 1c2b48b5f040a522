"""The network shared by the feature drafters: one decoder layer over (token, feature) pairs.

A pair ``(x_{i+1}, f_i)`` sits at position ``i``: the embedding of a token and the target's last
normed hidden state one position before it. With one expert the layer is the head of EAGLE
(arXiv 2401.15077); with several it is Jakiro's (arXiv 2502.06282): their gated sum predicts the
next feature, their contrasts those after it. The LM head of the target turns both into logits.

One class serves training and inference. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jakiro.cache.deferred import Deferred, attend
from jakiro.drafters.base import Head
from jakiro.drafters.experts import EXPERTS, HeadOutput, Mixing, Mixture
from jakiro.errors import ConfigError


@dataclass(frozen=True)
class HeadConfig:
    """Sizes and kind of a head. Raises ``ConfigError``.

    ``qkv_bias``: the attention's projections have biases, as in Qwen2. ``expert_size``: inner width
    of each expert's MLP. ``num_experts``: 1 is a plain MLP without a gate; of more, the gate picks
    ``active_experts``. ``contrast_levels``: for how many levels ahead the gate has a contrast; so
    many last levels of a draft cost no forward. (2 is our extension: a third group of gate rows,
    the same experts, the feature of ``i + 3``.) ``contrast_strength``: factor of what a contrast
    subtracts. ``branches``: whether a node's children come from the gated ``sum``, or from the
    active experts with a feature each: from their mixture (``decoupled``), or from their proposals
    in turn (``union``, of a head trained as a sum). ``draft_vocab_size``: score only that many
    tokens, ``DraftHead.draft_ids`` (FR-Spec, arXiv 2502.14856). ``reads``: layers of the target
    whose residual streams (``hidden_states[i]``) are read beside its last feature, where the
    feature is the target's own (EAGLE-3, arXiv 2503.01840, there in its place).
    """

    method: str
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    expert_size: int
    vocab_size: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    fc_bias: bool = True
    qkv_bias: bool = False
    num_experts: int = 2
    active_experts: int = 2
    contrast_levels: int = 1
    contrast_strength: float = 1.0
    activation: Literal["swiglu", "gelu"] = "swiglu"
    branches: Literal["sum", "decoupled", "union"] = "sum"
    draft_vocab_size: int | None = None
    reads: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", tuple(self.reads))  # JSON knows lists only
        sizes = ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "expert_size")
        for name in (*sizes, "vocab_size", "num_experts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and "
                f"{self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        limits = {
            "active_experts": (1, self.num_experts),
            "contrast_levels": (0, 2 if self.active_experts > 1 else 0),
            "draft_vocab_size": (1, self.vocab_size),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ConfigError(
                    f"{name} must lie between {least} and {most} with {self.num_experts} experts, "
                    f"{self.active_experts} of them active, and {self.vocab_size} tokens; "
                    f"got {value}"
                )
        if not 0 <= self.contrast_strength < math.inf:
            raise ConfigError(
                f"contrast_strength must be finite and not negative, got {self.contrast_strength}"
            )
        choices = {"activation": tuple(EXPERTS), "branches": ("sum", "decoupled", "union")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.branches != "sum" and self.active_experts < 2:
            raise ConfigError(
                f"{self.branches} branches need at least 2 active experts, got "
                f"active_experts = {self.active_experts}"
            )


class KeyValues(Protocol):
    """What the layer asks of a cache; the caches of this package and of ``transformers`` fit."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, /) -> tuple[Tensor, Tensor]:
        """Write rows [B, kv_heads, N, d]; return all that may be attended, [B, kv_heads, S, d]."""


class AttentionSizes(Protocol):
    """What an attention and its norms are built from."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def rms_norm_eps(self) -> float: ...


class Attention(nn.Module):
    """Self-attention with rotary positions and grouped heads. From states [B, N, H] at positions
    [B, N], under a mask [B, 1, N, S], additive or boolean, to [B, N, H]."""

    def __init__(self, config: AttentionSizes) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        self.head_dim = dim
        self.num_heads = (config.num_heads, config.num_kv_heads)
        self.q_proj = nn.Linear(hidden, config.num_heads * dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden, config.num_kv_heads * dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden, config.num_kv_heads * dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_heads * dim, hidden, bias=False)
        inverse = config.rope_theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        # cos is even and sin odd, so frequencies of both signs give the signed sine at once. The
        # bits travel as integers: ``head.to(bfloat16)`` must not round the frequencies.
        frequencies = torch.cat([-inverse, inverse]).float()
        self.register_buffer("frequency_bits", frequencies.view(torch.int32), persistent=False)

    def frequencies(self) -> Tensor:
        """[d] float32: of the first half negative."""
        return self.get_buffer("frequency_bits").view(torch.float32)

    def rotate(self, states: Tensor, positions: Tensor) -> Tensor:
        """Rotary ``positions`` [B, N or 1] applied to ``states`` [B, heads, N, d]."""
        angles = positions[:, None, :, None] * self.frequencies()
        cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
        return torch.addcmul(states * cos, states.roll(self.head_dim // 2, -1), sin)

    def forward(
        self, states: Tensor, positions: Tensor, mask: Tensor | None, cache: KeyValues | None
    ) -> Tensor:
        batch, rows, _ = states.shape
        queries, keys, values = self.read(states, positions)
        if isinstance(cache, Deferred) and mask is not None:
            mixed = attend(queries, keys, values, mask, 0, self.head_dim**-0.5)
            out: Tensor = self.o_proj(mixed.flatten(2))
            return out
        if cache is not None:
            keys, values = cache.update(keys, values, 0)
        if mask is None and keys.shape[2] != rows:
            raise ValueError(f"{rows} rows over {keys.shape[2]} keys need a mask")
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=mask is None, enable_gqa=True
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, rows, -1))  # type: ignore[no-any-return]

    def read(self, states: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each [B, heads or kv_heads, N, d], positions applied."""
        (batch, rows, _), (heads, kv_heads) = states.shape, self.num_heads
        every = self._projected(states).view(batch, rows, -1, self.head_dim).transpose(1, 2)
        turned, values = every.split([heads + kv_heads, kv_heads], 1)
        return *self.rotate(turned, positions).split([heads, kv_heads], 1), values

    def _projected(self, states: Tensor) -> Tensor:
        """[B, N, (heads + 2 kv_heads) d]: queries, keys and values, one after the other."""
        return torch.cat([self.q_proj(states), self.k_proj(states), self.v_proj(states)], -1)


class RMSNorm(nn.Module):
    """Over the last dimension, with a weight."""

    def __init__(self, config: AttentionSizes) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, states: Tensor) -> Tensor:
        return (_normed(states, self.eps) * self.weight).to(states.dtype)


def _normed(states: Tensor, eps: float) -> Tensor:
    """``states`` by their root mean square over the last dimension, at least in float32."""
    # In its parts: on a CPU ``F.rms_norm`` takes twice as long, and a compiler joins them.
    wide = states if states.element_size() >= 4 else states.float()
    return wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()


class _Layer(nn.Module):
    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config)
        sizes = (config.hidden_size, config.expert_size)
        if config.num_experts == 1:
            self.mlp = EXPERTS[config.activation](*sizes)
        else:
            mixing = Mixing(
                config.num_experts,
                config.active_experts,
                config.contrast_levels,
                config.contrast_strength,
                config.branches != "sum",
            )
            self.mlp_moe = Mixture(*sizes, config.activation, mixing)
        self.num_experts = config.num_experts

    def forward(
        self,
        states: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: KeyValues | None,
        contrasts: int,
    ) -> HeadOutput:
        # No norm before the attention: the layer reads the output of ``fc`` as it is.
        residual = states + self.self_attn(states, positions, mask, cache)
        normed = self.post_attention_layernorm(residual)
        if self.num_experts == 1:
            return HeadOutput(residual + self.mlp(normed))
        return self.mlp_moe(residual, normed, contrasts)  # type: ignore[no-any-return]


class Streams(nn.Module):
    """What residual streams of lower layers add to a pair: each normed, as their sizes differ (as
    EAGLE-3.1, arXiv 2605.09992, has them), all through one matrix, which begins as zero.

    ``SCALE`` makes them about as small as embeddings are. Pairs fed with predicted features have no
    streams: larger ones, which change more with every step, are in the way of learning both.
    """

    SCALE = 0.1

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        size = config.hidden_size
        self.proj = nn.Linear(len(config.reads) * size, size, bias=False)
        nn.init.zeros_(self.proj.weight)

    def forward(self, streams: Tensor) -> Tensor:
        """From S streams beside one another [B, N, S H] to [B, N, H]."""
        each = streams.unflatten(-1, (-1, self.proj.out_features))
        normed = self.SCALE * _normed(each, self.eps)
        return self.proj(normed.flatten(-2).to(streams.dtype))  # type: ignore[no-any-return]


class DraftHead(Head):
    """``fc`` over [embedding ; feature], then one layer. Holds neither embedding nor LM head."""

    __call__: Callable[..., HeadOutput]
    config: HeadConfig

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.fc_bias)
        self.layers = nn.ModuleList([_Layer(config)])
        if config.reads:
            self.streams = Streams(config)
        if config.draft_vocab_size is not None:
            self.register_buffer("draft_ids", torch.arange(config.draft_vocab_size))

    def forward(
        self,
        embeddings: Tensor,
        features: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
        contrasts: int = 0,
    ) -> HeadOutput:
        """Predicted features of N pairs: ``embeddings`` [B, N, H] and ``features`` [B, N, H], or
        [B, N, F] with the streams the head ``reads`` before each feature; absolute ``positions``
        [B, N], or [B, 1] where all N are at one. ``mask`` [B, 1, N, S] is additive or
        boolean (True = may attend) over the S keys the cache returns; None is plain causal
        attention among the N pairs. ``contrasts``: how many contrastive branches are wanted; more
        than ``contrast_levels`` raises ``ConfigError``."""
        if contrasts > self.config.contrast_levels:
            raise ConfigError(
                f"this {self.config.method} head has {self.config.contrast_levels} contrastive "
                f"branches, {contrasts} were asked for"
            )
        states = self._joined(embeddings, features)
        return self.layers[0](states, positions, mask, cache, contrasts)  # type: ignore[no-any-return]

    def remember(
        self, embeddings: Tensor, features: Tensor, positions: Tensor, cache: KeyValues
    ) -> None:
        """Write the keys and values of N pairs, as ``forward`` would, and predict nothing: with
        one layer they depend on no other pair."""
        attention: Attention = self.layers[0].self_attn  # type: ignore[assignment]
        states = self._joined(embeddings, features)
        _, keys, values = attention.read(states, positions)
        cache.update(keys, values, 0)

    def _joined(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """What the layer reads of pairs, [B, N, H]."""
        size = self.config.hidden_size
        states: Tensor = self.fc(torch.cat([embeddings, features[..., -size:]], -1))
        if features.shape[-1] == size:
            return states
        return states + self.streams(features[..., :-size])  # type: ignore[no-any-return]
