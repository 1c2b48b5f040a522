"""The network shared by the feature drafters: one decoder layer over (token, feature) pairs.

A pair ``(x_{i+1}, f_i)`` sits at position ``i``: the embedding of a token and the target's last
normed hidden state one position before it. With one expert the layer is the head of EAGLE
(arXiv 2401.15077); with two it is Jakiro's (arXiv 2502.06282): their gated sum predicts the next
feature, their gated difference the one after it. The LM head of the target turns both into logits.

One class serves training and inference. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jakiro.drafters.base import Head
from jakiro.errors import ConfigError

EXPERTS: Mapping[str, int] = MappingProxyType({"eagle2": 1, "jakiro": 2})
"""Methods that use this network, and how many experts each has."""


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of a head. ``expert_size`` is the inner width of each expert's MLP; ``contrast`` says
    whether the gate carries the two rows of the second branch. Raises ``ConfigError``."""

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

    def __post_init__(self) -> None:
        if self.method not in EXPERTS:
            raise ConfigError(f"unknown head method {self.method!r}; known: {', '.join(EXPERTS)}")
        sizes = ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "expert_size")
        for name in (*sizes, "vocab_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and "
                f"{self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, got {self.head_dim}")

    @property
    def num_experts(self) -> int:
        """1 or 2."""
        return EXPERTS[self.method]

    @property
    def contrast(self) -> bool:
        """Whether there is a second branch."""
        return self.num_experts == 2


class KeyValues(Protocol):
    """What the layer asks of a cache; the caches of this package and of ``transformers`` fit."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write rows [B, kv_heads, N, d]; return all that may be attended, [B, kv_heads, S, d]."""


class HeadOutput(NamedTuple):
    """Predicted features [B, N, H] of position ``i + 1`` and, if asked for, of ``i + 2``."""

    next: Tensor
    after_next: Tensor | None


class _Attention(nn.Module):
    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        self.head_dim = dim
        self.q_proj = nn.Linear(hidden, config.num_heads * dim, bias=False)
        self.k_proj = nn.Linear(hidden, config.num_kv_heads * dim, bias=False)
        self.v_proj = nn.Linear(hidden, config.num_kv_heads * dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * dim, hidden, bias=False)
        inverse = config.rope_theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        # cos is even and sin odd, so frequencies of both signs give the signed sine at once. The
        # bits travel as integers: ``head.to(bfloat16)`` must not round the frequencies.
        frequencies = torch.cat([-inverse, inverse]).float()
        self.register_buffer("frequency_bits", frequencies.view(torch.int32), persistent=False)

    def rotate(self, states: Tensor, positions: Tensor) -> Tensor:
        """Rotary positions [B, N] applied to ``states`` [B, heads, N, d]."""
        bits: Tensor = self.get_buffer("frequency_bits")
        angles = positions[:, None, :, None] * bits.view(torch.float32)
        cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
        return torch.addcmul(states * cos, states.roll(self.head_dim // 2, -1), sin)

    def forward(
        self, states: Tensor, positions: Tensor, mask: Tensor | None, cache: KeyValues | None
    ) -> Tensor:
        batch, rows, _ = states.shape
        split = (batch, rows, -1, self.head_dim)
        queries = self.q_proj(states).view(split)
        keys = self.k_proj(states).view(split)
        values = self.v_proj(states).view(split).transpose(1, 2)
        rotated = self.rotate(torch.cat([queries, keys], 2).transpose(1, 2), positions)
        queries, keys = rotated.split([queries.shape[2], keys.shape[2]], 1)
        if cache is not None:
            keys, values = cache.update(keys, values, 0)
        if mask is None and keys.shape[2] != rows:
            raise ValueError(f"{rows} rows over {keys.shape[2]} keys need a mask")
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=mask is None, enable_gqa=True
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, rows, -1))  # type: ignore[no-any-return]


class _Expert(nn.Module):
    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.expert_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(states)) * self.up_proj(states))  # type: ignore[no-any-return]


class _TwoExperts(nn.Module):
    """Two experts always active; the gate's first two rows weigh their sum, the last two their
    difference."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, 4, bias=False)
        self.experts = nn.ModuleList(_Expert(config) for _ in range(2))

    def forward(self, residual: Tensor, normed: Tensor, contrast: bool) -> HeadOutput:
        gates: Tensor = self.gate(normed)
        first, second = (expert(normed) for expert in self.experts)
        weights = gates.unflatten(-1, (2, 2)).softmax(-1)
        # Combined in the dtype of the weights: autocast keeps softmax in float32.
        summed = residual + weights[..., 0, :1] * first + weights[..., 0, 1:] * second
        if not contrast:
            return HeadOutput(summed, None)
        difference = weights[..., 1, :1] * first - weights[..., 1, 1:] * second
        larger_is_first = gates[..., 2:3] > gates[..., 3:4]
        return HeadOutput(summed, residual + torch.where(larger_is_first, difference, -difference))


class _RMSNorm(nn.Module):
    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, states: Tensor) -> Tensor:
        # Under autocast the states are narrower than the weight, which no fused kernel takes.
        return F.rms_norm(states, states.shape[-1:], self.weight.to(states.dtype), self.eps)


class _Layer(nn.Module):
    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = _RMSNorm(config)
        if config.num_experts == 1:
            self.mlp = _Expert(config)
        else:
            self.mlp_moe = _TwoExperts(config)
        self.num_experts = config.num_experts

    def forward(
        self,
        states: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: KeyValues | None,
        contrast: bool,
    ) -> HeadOutput:
        # No norm before the attention: the layer reads the output of ``fc`` as it is.
        residual = states + self.self_attn(states, positions, mask, cache)
        normed = self.post_attention_layernorm(residual)
        if self.num_experts == 1:
            return HeadOutput(residual + self.mlp(normed), None)
        return self.mlp_moe(residual, normed, contrast)  # type: ignore[no-any-return]


class DraftHead(Head):
    """``fc`` over [embedding ; feature], then one layer. Holds neither embedding nor LM head."""

    __call__: Callable[..., HeadOutput]
    config: HeadConfig

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.fc_bias)
        self.layers = nn.ModuleList([_Layer(config)])

    def forward(
        self,
        embeddings: Tensor,
        features: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
        contrast: bool = False,
    ) -> HeadOutput:
        """Predicted features of N pairs: ``embeddings`` and ``features`` [B, N, H], absolute
        ``positions`` [B, N]. ``mask`` [B, 1, N, S] is additive or boolean (True = may attend) over
        the S keys the cache returns; None is plain causal attention among the N pairs.
        ``contrast`` asks for the second branch; a head without one raises ``ConfigError``."""
        if contrast and not self.config.contrast:
            raise ConfigError(f"a {self.config.method} head has no second branch")
        states = self.fc(torch.cat([embeddings, features], -1))
        return self.layers[0](states, positions, mask, cache, contrast)  # type: ignore[no-any-return]
