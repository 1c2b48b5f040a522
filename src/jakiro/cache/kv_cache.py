"""Keys and values of a batch: a length per row, writes at each row's own offset, one gather per
commit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from jakiro.cache.store import Store
from jakiro.tree.verdict import Verdict

_LEAST_CAPACITY = 1024
"""Slots per row that are never given back: most requests need that many, one after the other."""


class _LayerView(CacheLayerMixin):
    """One layer of a ``KVCache`` in the shape ``transformers`` expects a cache layer to have."""

    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, cache: KVCache, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache
        self._index = index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The storage belongs to the whole cache; there is nothing to do per layer."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._cache.update(key_states, value_states, self._index)

    def get_seq_length(self) -> int:
        return self._cache.span_before

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.span_before + query_length, 0

    def get_max_length(self) -> int:
        return -1


@dataclass(frozen=True, eq=False)
class KVRow:
    """The first ``length`` entries of a row, apart from the cache they were copied from. Of who
    keeps no keys and values, ``data`` is empty."""

    length: int
    data: tuple[Tensor, ...] = ()
    """Per storage [M, heads, length, dim]."""

    def cut(self, length: int) -> KVRow:
        """The first ``length`` entries, of the same memory."""
        if length == self.length:
            return self
        return KVRow(length, tuple(part[:, :, :length] for part in self.data))

    @property
    def num_bytes(self) -> int:
        return sum(part.untyped_storage().nbytes() for part in self.data)


NO_ROW = KVRow(0)


class KVCache(Cache):
    """Row b owns slots ``0 .. lengths[b]-1``; slot equals absolute position for committed tokens.

    A forward writes its N new entries at each row's own offset ``lengths[b] .. lengths[b]+N-1``
    (``aim`` says for which rows); they are scratch until ``commit`` or ``advance`` makes them part
    of the row. Keys and values may differ in shape, and so may layers: entries of one shape share
    one storage. It is allocated after the first forward, because only the model knows the shapes.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_LayerView(self, index) for index in range(num_layers)])
        self.lengths: list[int] = []
        self.ceiling = self.row_ceiling = sys.maxsize
        """The capacity and the rows that growth by halves need not exceed."""
        self._rows = slice(0, 0)
        self._starts: list[int] = []
        self._stores: list[Store] = []
        self._places: dict[tuple[int, int], tuple[Store, int]] = {}
        self._first: dict[tuple[int, int], Tensor] = {}
        self._max_rows = 1
        self._capacity = 0
        self._used = 0
        # Slots written behind a row's length since something was committed or wiped.
        self._scratch = 0

    # -- rows ---------------------------------------------------------------------------------

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    def reserve(self, rows: int, capacity: int) -> None:
        """Make room for ``rows`` rows of ``capacity`` slots; content is kept."""
        if rows <= self._max_rows and capacity <= self._capacity:
            return
        self._max_rows = max(rows, self._max_rows)
        self._capacity = max(capacity, self._capacity)
        for store in self._stores:
            store.grow(self._max_rows, self._capacity)

    def make_room(self, capacity: int) -> None:
        """See to ``capacity`` slots in every row. They grow by halves, so that a row that grows
        token by token, or a batch whose prompts become longer and longer, is copied rarely."""
        if capacity > self._capacity:
            wanted = min(self._capacity + self._capacity // 2, self.ceiling)
            self.reserve(self.num_rows, max(capacity, wanted))

    def fit(self, rows: int, capacity: int, limit: int) -> None:
        """Before ``rows`` rows come to have ``capacity`` slots: give back what earlier ones needed
        if both together could be over ``limit`` slots, to which growth by halves keeps as well."""
        self._settle()
        if max(rows, self._max_rows) * max(capacity, self._capacity) > limit:
            self._cut_to(min(rows, self._max_rows), min(capacity, self._capacity))
        self.row_ceiling = min(self.row_ceiling, limit // max(capacity, self._capacity))

    def admit(self, known: KVRow = NO_ROW) -> int:
        """Append a row that holds what ``save`` gave, nothing unless told, and return its index.

        What an earlier row left there is zeroed: a NaN under a mask would still spread.
        """
        row = self.num_rows
        self._settle()
        self.lengths.append(known.length)
        rows = row + 1
        if rows <= self._max_rows:
            for store in self._stores:
                store.clear(row, 0, self._used)
        else:
            # By halves, so that a batch that is filled row by row is copied rarely.
            rows = max(rows, min(rows + row // 2, self.row_ceiling))
        self.reserve(rows, known.length)
        self._used = max(self._used, known.length)
        if known.length:
            for store, part in zip(self._stores, known.data, strict=True):
                store.data[:, row, :, : known.length] = part
        return row

    def save(self, row: int, length: int) -> KVRow:
        """A copy of the first ``length`` entries of ``row``, or of all if it has fewer."""
        self._settle()
        length = min(length, self.lengths[row])
        return KVRow(length, tuple(s.data[:, row, :, :length].clone() for s in self._stores))

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only ``rows``, renumbered in that order. Memory far beyond what they need is given
        back."""
        self._settle()
        for store in self._stores:
            store.keep(rows, self._used)
        self.lengths = [self.lengths[row] for row in rows]
        self._shrink()

    def _shrink(self) -> None:
        """Halve what is four times too large, so that copies stay rare."""
        num_slots = max(_LEAST_CAPACITY, 2 * max(self.lengths, default=0))
        rows = 2 * max(1, self.num_rows)
        self._cut_to(
            rows if self._max_rows >= 2 * rows else self._max_rows,
            num_slots if self._capacity >= 2 * num_slots else self._capacity,
        )

    def _cut_to(self, rows: int, capacity: int) -> None:
        """Give back all beyond ``rows`` rows of ``capacity`` slots."""
        if (rows, capacity) != (self._max_rows, self._capacity):
            self._max_rows, self._capacity = rows, capacity
            self._used = min(self._used, capacity)
            for store in self._stores:
                store.shrink(rows, capacity)

    def content(self, row: int) -> list[tuple[Tensor, Tensor]]:
        """Per layer that has any the committed keys and values of ``row``, each
        [heads, length, dim]."""
        self._settle()
        own = (i for i in range(len(self.layers)) if (i, 0) in self._places)
        places = [(self._places[i, 0], self._places[i, 1]) for i in own]
        length = self.lengths[row]
        return [
            (keys.data[i, row, :, :length], values.data[j, row, :, :length])
            for (keys, i), (values, j) in places
        ]

    # -- writing ------------------------------------------------------------------------------

    @property
    def span_before(self) -> int:
        """Slots that hold committed tokens in the longest aimed row."""
        return max(self._starts, default=0)

    @property
    def aligned(self) -> bool:
        """Whether all aimed rows are equally long, so that slots are positions in every one."""
        return min(self._starts, default=0) == self.span_before

    def aim(self, rows: slice, num_new: int, num_known: int = 0) -> int:
        """Direct the next forward at ``rows``, each getting ``num_new`` slots behind its length
        and the ``num_known`` scratch slots that earlier forwards filled.

        Returns the number of slots S that forward will attend over.
        """
        self._settle()
        self._rows = rows
        self._starts = [length + num_known for length in self.lengths[rows]]
        span = self.span_before + num_new
        self.make_room(span)
        self._used = max(self._used, span)
        self._scratch = max(self._scratch, num_known + num_new)
        for store in self._stores:
            store.aim(rows, self._starts, num_new)
        return span

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, kv_heads, N, dim] of one layer at the aimed slots.

        Returns all keys and values of the aimed rows [B, kv_heads, S, dim]; slots past a row's own
        end hold stale numbers, which the mask must hide.
        """
        if not self._stores:
            self._first[layer_idx, 0], self._first[layer_idx, 1] = key_states, value_states
            return key_states, value_states
        keys, i = self._places[layer_idx, 0]
        values, j = self._places[layer_idx, 1]
        return keys.put(i, key_states), values.put(j, value_states)

    def wipe(self) -> None:
        """Zero what was written behind the committed tokens of all rows since the last commit. Rows
        that end before are shown it under a mask, but what a mask hides is multiplied by zero,
        which no infinity survives."""
        if not self._scratch:
            return
        for row, length in enumerate(self.lengths):
            end = min(length + self._scratch, self._capacity)
            for store in self._stores:
                store.clear(row, length, end)
        self._scratch = 0

    # -- committing ---------------------------------------------------------------------------

    def advance(self, row: int, num_tokens: int) -> None:
        """The ``num_tokens`` entries last written to ``row`` are committed, in place."""
        self.lengths[row] += num_tokens
        self._scratch = 0

    def cut(self, row: int, length: int) -> None:
        """Of ``row``, entries from ``length`` on are committed no more."""
        self.lengths[row] = min(self.lengths[row], length)

    def commit(self, verdict: Verdict) -> None:
        """Keep the accepted path of the tree last written; see ``commit_paths``."""
        self.commit_paths(verdict.paths)

    def commit_paths(self, paths: list[list[int]]) -> None:
        """Keep of the first rows the nodes of one path each, ascending: one gather per storage.

        Nodes that lie in their slot already (node j at depth j, as in chains) are not touched.
        """
        moves = [
            (row, length + node, length + depth)
            for row, (length, path) in enumerate(zip(self.lengths, paths, strict=False))
            for depth, node in enumerate(path)
            if node != depth
        ]
        self._scratch = 0
        for row, path in enumerate(paths):
            self.lengths[row] += len(path)
        if moves:
            self._settle()
            for store in self._stores:
                store.move(moves)

    def _settle(self) -> None:
        """Move what the first forward wrote into storage, now that all shapes are known.

        A first forward of which nothing was committed is forgotten.
        """
        if self._stores or not self._first:
            return
        if any(self.lengths):
            alike: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
            for place, entry in self._first.items():
                kind = (entry.shape[1], entry.shape[3], entry.dtype, entry.device)
                alike.setdefault(kind, []).append(place)
            for places in alike.values():
                like = self._first[places[0]]
                store = Store.empty(like, len(places), self._max_rows, self._capacity)
                for member, place in enumerate(places):
                    self._places[place] = (store, member)
                    store.data[member, self._rows, :, : like.shape[2]] = self._first[place]
                self._stores.append(store)
        self._first = {}
