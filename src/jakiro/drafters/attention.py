"""The layers that draft heads and adapters are built of: attention over a cache, and its norm."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jakiro.cache.deferred import Deferred, attend


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

    def entries(self, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values alone, as ``read`` gives them."""
        both = self._keys_and_values(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        keys, values = both.chunk(2, 1)
        return self.rotate(keys, positions), values

    def _projected(self, states: Tensor) -> Tensor:
        """[B, N, (heads + 2 kv_heads) d]: queries, keys and values, one after the other."""
        return torch.cat([self.q_proj(states), self.k_proj(states), self.v_proj(states)], -1)

    def _keys_and_values(self, states: Tensor) -> Tensor:
        """[B, N, 2 kv_heads d]: keys and values."""
        return torch.cat([self.k_proj(states), self.v_proj(states)], -1)


class RMSNorm(nn.Module):
    """Over the last dimension, with a weight."""

    def __init__(self, config: AttentionSizes) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, states: Tensor) -> Tensor:
        return (normed(states, self.eps) * self.weight).to(states.dtype)


def normed(states: Tensor, eps: float) -> Tensor:
    """``states`` by their root mean square over the last dimension, at least in float32."""
    # In its parts: on a CPU ``F.rms_norm`` takes twice as long, and a compiler joins them.
    wide = states if states.element_size() >= 4 else states.float()
    return wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
