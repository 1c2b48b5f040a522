"""Keys and values of a batch: one storage, a length per row, one gather per commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from jakiro.tree.verdict import Verdict


class _LayerView(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a ``KVCache`` in the shape ``transformers`` expects a cache layer to have."""

    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, cache: KVCache, index: int) -> None:
        super().__init__()
        self._cache = cache
        self._index = index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The storage belongs to the whole cache; there is nothing to do per layer."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._cache.write(self._index, key_states, value_states)

    def get_seq_length(self) -> int:
        return self._cache.span_before

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.span_before + query_length, 0

    def get_max_length(self) -> int:
        return -1


class KVCache(Cache):  # type: ignore[misc]
    """Storage [L, 2, B, kv_heads, capacity, head_dim]; row b owns slots ``0 .. lengths[b]-1``.

    Slot equals absolute position for committed tokens. A forward writes its N new rows at each
    row's own offset ``lengths[b] .. lengths[b]+N-1`` (``aim`` says for which rows); they are
    scratch until ``commit`` or ``advance`` makes them part of the row. The storage is allocated by
    the first write, because only the model knows its head shapes.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_LayerView(self, index) for index in range(num_layers)])
        self.storage: Tensor | None = None
        self.lengths: list[int] = []
        self._max_rows = 1
        self._capacity = 0
        self._rows = slice(0, 0)
        self._starts: list[int] = []
        self._slots: Tensor | None = None

    # -- rows ---------------------------------------------------------------------------------

    def reserve(self, rows: int, capacity: int) -> None:
        """Make room for ``rows`` rows of ``capacity`` slots; content is kept."""
        if rows <= self._max_rows and capacity <= self._capacity:
            return
        self._max_rows = max(rows, self._max_rows)
        self._capacity = max(capacity, self._capacity)
        if self.storage is not None:
            old = self.storage
            self._allocate(old)
            self.storage[:, :, : old.shape[2], :, : old.shape[4]] = old

    def admit(self) -> int:
        """Append an empty row and return its index."""
        self.lengths.append(0)
        self.reserve(len(self.lengths), self._capacity)
        return len(self.lengths) - 1

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only ``rows``, renumbered in that order."""
        if list(rows) != list(range(len(rows))) and self.storage is not None:
            index = torch.tensor(rows, device=self.storage.device)
            self.storage[:, :, : len(rows)] = self.storage.index_select(2, index)
        self.lengths = [self.lengths[row] for row in rows]

    # -- writing ------------------------------------------------------------------------------

    @property
    def span_before(self) -> int:
        """Slots that hold committed tokens in the longest aimed row."""
        return max(self._starts, default=0)

    def aim(self, rows: slice, num_new: int) -> int:
        """Direct the next forward at ``rows``, each getting ``num_new`` slots behind its length.

        Returns the number of slots S that forward will attend over.
        """
        self._rows, self._starts = rows, self.lengths[rows]
        span = self.span_before + num_new
        self.reserve(len(self.lengths), span)
        self._slots = None
        if min(self._starts) != self.span_before:
            starts = torch.tensor(self._starts)[:, None]
            self._slots = starts + torch.arange(num_new)
        return span

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values [B, kv_heads, N, head_dim] of one layer at the aimed slots.

        Returns all keys and values of the aimed rows [B, kv_heads, S, head_dim]; slots past a
        row's own end hold stale numbers, which the mask must hide.
        """
        if self.storage is None:
            self._allocate(keys)
        assert self.storage is not None
        num_new = keys.shape[2]
        stored = self.storage[layer, :, self._rows]
        span = self.span_before + num_new
        if self._slots is None:
            stored[0, :, :, span - num_new : span] = keys
            stored[1, :, :, span - num_new : span] = values
        else:
            rows = torch.arange(len(self._starts))[:, None]
            stored[0][rows, :, self._slots] = keys.transpose(1, 2)
            stored[1][rows, :, self._slots] = values.transpose(1, 2)
        return stored[0, :, :, :span], stored[1, :, :, :span]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """``write`` under the name by which ``transformers`` and the draft head call it."""
        return self.write(layer_idx, key_states, value_states)

    # -- committing ---------------------------------------------------------------------------

    def advance(self, row: int, num_tokens: int) -> None:
        """The ``num_tokens`` rows last written to ``row`` are committed, in place."""
        self.lengths[row] += num_tokens

    def commit(self, verdict: Verdict) -> None:
        """Keep the accepted path of the tree last written: one gather over all layers.

        Skipped where every path is contiguous (node j at depth j), as for chains.
        """
        paths = verdict.paths
        if any(path[-1] != len(path) - 1 for path in paths):
            assert self.storage is not None
            starts = torch.tensor(self.lengths)[:, None]
            width = max(map(len, paths))
            source = (starts + verdict.path[:, :width].cpu()).to(self.storage.device)
            # Padding of a path repeats its last node; sending it to the slot of its last node too
            # keeps the scatter free of conflicting writes.
            steps = torch.minimum(torch.arange(width), verdict.num_accepted.cpu()[:, None])
            target = (starts + steps).to(self.storage.device)
            rows = torch.arange(len(paths), device=self.storage.device)[:, None]
            by_slot = self.storage.permute(2, 4, 0, 1, 3, 5)
            by_slot[rows, target] = by_slot[rows, source]
        self.lengths = [
            length + len(path) for length, path in zip(self.lengths, paths, strict=True)
        ]

    def _allocate(self, like: Tensor) -> None:
        """New zeroed storage with the head shape, dtype and device of ``like`` [.., h, S, d]."""
        shape = (len(self.layers), 2, self._max_rows, like.shape[-3], self._capacity)
        self.storage = torch.zeros(
            *shape, like.shape[-1], dtype=like.dtype, device=like.device
        )
