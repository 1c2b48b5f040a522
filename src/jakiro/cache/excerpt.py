"""A part of a ``KVCache`` for one forward: what is written goes to its place, what is read is the
chosen slots only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from jakiro.cache.kv_cache import KVCache


class Edges:
    """Of rows of entries their first ``num_first`` slots, and ``num_last`` slots up to ``ends``. A
    row with fewer is shown whole, and what lies behind it; the longest must have as many."""

    def __init__(self, ends: list[int], num_first: int, num_last: int) -> None:
        self._num_first, self._num_last = num_first, num_last
        self._ends = [max(end, num_first + num_last) for end in ends]
        self._end = self._ends[0] if min(self._ends) == max(self._ends) else None

    @cached_property
    def slots(self) -> Tensor:
        """[B, K] int64: the slots that are seen, ascending."""
        last = torch.tensor(self._ends)[:, None] - self._num_last + torch.arange(self._num_last)
        first = torch.arange(self._num_first)
        return torch.cat([first.expand(len(self._ends), -1), last], 1)

    def of(self, entries: Tensor) -> Tensor:
        """The chosen slots [B, heads, K, dim] of ``entries`` [B, heads, S, dim]."""
        if self._end is not None:  # two blocks, the same in every row
            last = entries[:, :, self._end - self._num_last : self._end]
            return torch.cat([entries[:, :, : self._num_first], last], 2)
        index = self.slots.to(entries.device)[:, None, :, None]
        return entries.gather(2, index.expand(-1, entries.shape[1], -1, entries.shape[3]))

    def of_mask(self, mask: Tensor) -> Tensor:
        """The columns [B, .., K] of a mask [B, .., S]."""
        shape = (len(self.slots), *[1] * (mask.ndim - 2), -1)
        return mask.gather(-1, self.slots.to(mask.device).view(shape).expand(*mask.shape[:-1], -1))


def edges_of(lengths: Sequence[int], num_new: int, sinks: int, recent: int) -> Edges | None:
    """What forwards look back on that see, behind rows of ``lengths`` committed slots, all
    ``num_new`` slots written since, of the committed ones the first ``sinks`` and last ``recent``,
    and all of a row that has no more. None where no row has."""
    if max(lengths) <= sinks + recent:
        return None
    return Edges([length + num_new for length in lengths], sinks, recent + num_new)


class Excerpt(Cache):
    """Shows of each aimed row of ``cache`` its ``edges`` alone, the last of which is the last slot
    that is written in this forward. ``cache`` must be aimed before, and masks must be of ``edges``.
    """

    def __init__(self, cache: KVCache, edges: Edges) -> None:
        super().__init__(layers=cache.layers)
        self._cache, self._edges = cache, edges

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As ``KVCache.update``, but returns the chosen slots [B, kv_heads, K, dim]."""
        keys, values = self._cache.update(key_states, value_states, layer_idx)
        return self._edges.of(keys), self._edges.of(values)
