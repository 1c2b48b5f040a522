"""Attention as one opaque step, so that a compiled forward never meets a cache, nor a batch.

A cache changes with every token: its lengths, its views, how many slots are attended over. Traced
into a graph, each change would mean another graph. So a compiled model is handed a ``Deferred``
cache, which leaves keys and values as they are, and ``attend`` in place of its attention: an
operator the compiler does not look into, which writes them into the cache of ``attending`` and
attends over what is there. Nothing else asks which text a row belongs to: the model reads those of
a whole batch as rows of one, and masks that only name the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

from jakiro.errors import ConfigError


class _Seen(NamedTuple):
    """What a compiled forward attends over."""

    cache: Cache
    masks: Mapping[int, Tensor]
    """Additive masks [B, 1, N, S], by where the numbers of those lie that name them."""
    batch: int


_active: ContextVar[_Seen] = ContextVar("jakiro_seen")


class Deferred(Cache):
    """Stands for the cache of ``attending`` in a compiled forward."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states


@contextmanager
def attending(cache: Cache, masks: Mapping[int, Tensor], batch: int) -> Iterator[None]:
    """Within, ``attend`` writes to ``cache`` where it is aimed, for ``batch`` texts, and takes in
    place of a mask whose numbers lie at ``i`` the real one, ``masks[i]`` [B, 1, N, S]."""
    token = _active.set(_Seen(cache, masks, batch))
    try:
        yield
    finally:
        _active.reset(token)


def mix(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[B, heads, N, d] by the kernel, from queries [B, heads, N, d] over keys and values
    [B, kv_heads, S, d]; ``mask`` None: all is seen."""
    is_grouped = queries.shape[1] != keys.shape[1]
    if is_grouped and queries.device.type != "cpu":
        # Kernels of GPUs that take a mask take no groups.
        groups = queries.shape[1] // keys.shape[1]
        keys, values = (each.repeat_interleave(groups, 1) for each in (keys, values))
        is_grouped = False
    return F.scaled_dot_product_attention(
        queries, keys, values, mask, scale=scale, enable_gqa=is_grouped
    )


torch.library.define(
    "jakiro::mix",
    "(Tensor queries, Tensor keys, Tensor values, Tensor mask, float scale) -> Tensor",
)


@torch.library.impl("jakiro::mix", "CompositeExplicitAutograd")
def _mix(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """``mix`` as [B, N, heads, d]. On a CPU ``attention.cpp`` takes its place once it is loaded."""
    return mix(queries, keys, values, mask, scale).transpose(1, 2).contiguous()


# A graph of CUDA would replay one moment's slots for ever, so it has to stop here. Defined and not
# wrapped (``custom_op``), which takes 10 us a call, once for every layer.
torch.library.define(
    "jakiro::attend",
    "(Tensor queries, Tensor keys, Tensor values, Tensor mask, int layer, float scale) -> Tensor",
    tags=(torch.Tag.cudagraph_unsafe,),
)


@torch.library.impl("jakiro::attend", "CompositeExplicitAutograd")
def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, layer: int, scale: float
) -> Tensor:
    """[1, B N, heads, d] from queries [1, heads, B N, d] and new keys and values
    [1, kv_heads, B N, d] of one layer; ``mask``: what names the real one."""
    cache, masks, batch = _active.get()
    seen = masks.get(mask.data_ptr())
    if seen is None:
        raise ConfigError(
            "this model cannot be compiled: it computes with its attention mask; leave out compile"
        )
    if batch > 1:
        new = (queries, keys, values)
        queries, keys, values = (_by_text(each, batch) for each in new)
    keys, values = cache.update(keys, values, layer)
    mixed: Tensor = torch.ops.jakiro.mix(queries, keys, values, seen, scale)
    return mixed if batch == 1 else mixed.flatten(0, 1)[None]


def _by_text(rows: Tensor, batch: int) -> Tensor:
    """[B, heads, N, d] of rows [1, heads, B N, d]."""
    apart: Tensor = rows[0].unflatten(1, (batch, -1))
    return apart.transpose(0, 1)


@torch.library.register_fake("jakiro::attend")  # type: ignore[untyped-decorator]
def _(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, layer: int, scale: float
) -> Tensor:
    batch, heads, rows, _ = queries.shape
    return queries.new_empty(batch, rows, heads, values.shape[-1])


attend = torch.ops.jakiro.attend
"""``_attend``, as a compiler sees it."""
