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
from typing import Literal

import torch
from torch import Tensor, nn

from jakiro.drafters.attention import Attention, KeyValues, RMSNorm, normed
from jakiro.drafters.base import Head
from jakiro.drafters.experts import EXPERTS, HeadOutput, Mixing, Mixture
from jakiro.errors import ConfigError
from jakiro.target.features import FeatureSpec


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

    @property
    def needs(self) -> FeatureSpec:
        """What goes into the head with the target's own features."""
        return FeatureSpec(last=True, layers=self.reads)


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
        states = self.post_attention_layernorm(residual)
        if self.num_experts == 1:
            return HeadOutput(residual + self.mlp(states))
        return self.mlp_moe(residual, states, contrasts)  # type: ignore[no-any-return]


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
        small = self.SCALE * normed(each, self.eps)
        return self.proj(small.flatten(-2).to(streams.dtype))  # type: ignore[no-any-return]


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
        [B, N], or [B, 1] where all N are at one. ``mask`` [B, 1, N, S] is additive or boolean
        (True = may attend) over the S keys the cache returns; None is plain causal attention among
        the N pairs. ``contrasts``: how many contrastive branches are wanted; more than
        ``contrast_levels`` raises ``ConfigError``."""
        if contrasts > self.config.contrast_levels:
            raise ConfigError(
                f"this {self.config.method} head has {self.config.contrast_levels} contrastive "
                f"branches, {contrasts} were asked for"
            )
        states = self._joined(embeddings, features)
        return self.layers[0](states, positions, mask, cache, contrasts)  # type: ignore[no-any-return]

    def entries(
        self, embeddings: Tensor, features: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [B, kv_heads, N, d] of N pairs, as ``forward`` would write them, and no
        predictions: with one layer they depend on no other pair."""
        attention: Attention = self.layers[0].self_attn  # type: ignore[assignment]
        return attention.entries(self._joined(embeddings, features), positions)

    def _joined(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """What the layer reads of pairs, [B, N, H]."""
        size = self.config.hidden_size
        states: Tensor = self.fc(torch.cat([embeddings, features[..., -size:]], -1))
        if features.shape[-1] == size:
            return states
        return states + self.streams(features[..., :-size])  # type: ignore[no-any-return]
