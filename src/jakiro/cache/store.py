"""The memory behind a ``KVCache``: all keys and values of one shape in one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Move = tuple[int, int, int]
"""(row, slot it comes from, slot it goes to)."""


class Store:
    """``data`` [M, B, heads, capacity, dim]: M members (keys or values of a layer) of one shape.

    Everything that depends only on where a forward writes is prepared once by ``aim``, so that a
    layer costs one copy per member and nothing else.
    """

    def __init__(self, data: Tensor) -> None:
        self.data = data
        self._seen: tuple[Tensor, ...] = ()
        self._fresh: tuple[Tensor, ...] = ()
        self._flat: tuple[Tensor, ...] = ()
        self._index: Tensor | None = None

    @classmethod
    def empty(cls, like: Tensor, members: int, rows: int, capacity: int) -> Store:
        """Zeros, because whatever a mask hides is still multiplied by zero."""
        return cls(like.new_zeros(members, rows, like.shape[1], capacity, like.shape[3]))

    def grow(self, rows: int, capacity: int) -> None:
        """Make room for ``rows`` of ``capacity`` slots; content is kept."""
        old = self.data
        self.data = old.new_zeros(old.shape[0], rows, old.shape[2], capacity, old.shape[4])
        self.data[:, : old.shape[1], :, : old.shape[3]] = old
        self._forget()

    def shrink(self, rows: int, capacity: int) -> None:
        """Keep only the first ``rows`` and of those the first ``capacity`` slots."""
        self.data = self.data[:, :rows, :, :capacity].clone()
        self._forget()

    def _forget(self) -> None:
        """Let go of the views of the last forward, which would hold on to the old memory."""
        self._seen = self._fresh = self._flat = ()

    def clear(self, row: int, start: int, end: int) -> None:
        """Zero the slots of ``row`` from ``start`` to ``end``."""
        self.data[:, row, :, start:end].zero_()

    def keep(self, rows: Sequence[int], used: int) -> None:
        """Move ``rows`` to the front, their first ``used`` slots only; rows in place stay."""
        moved = [(new, old) for new, old in enumerate(rows) if new != old]
        if moved:
            target, source = torch.tensor(moved, device=self.data.device).unbind(1)
            seen = self.data[:, :, :, :used]
            seen[:, target] = seen[:, source]

    def aim(self, rows: slice, starts: list[int], num_new: int) -> None:
        """Prepare the views of a forward that writes ``num_new`` slots behind ``starts``."""
        span = max(starts) + num_new
        self._seen = self.data[:, rows, :, :span].unbind()
        self._index = None
        if min(starts) == max(starts):
            self._fresh = self.data[:, rows, :, span - num_new : span].unbind()
            return
        self._flat = self.data.flatten(1, 3).unbind()
        first = range(self.data.shape[1])[rows].start
        slots = (range(start, start + num_new) for start in starts)
        places = [self._places(row, own) for row, own in enumerate(slots, start=first)]
        self._index = self._flat_index(places).transpose(1, 2).flatten()

    def put(self, member: int, new: Tensor) -> Tensor:
        """Write ``new`` [b, heads, N, dim] at the aim; returns the aimed rows [b, heads, S, dim]"""
        if self._index is None:
            self._fresh[member].copy_(new)
        else:
            self._flat[member].index_copy_(0, self._index, new.reshape(-1, new.shape[-1]))
        return self._seen[member]

    def move(self, moves: list[Move]) -> None:
        """All at once: every source is read before any target is written."""
        sides = zip(*(self._places(row, pair) for row, *pair in moves), strict=True)
        flat = self.data.flatten(1, 3)
        source, target = self._flat_index([list(side) for side in sides]).flatten(1)
        flat.index_copy_(1, target, flat.index_select(1, source))

    def _places(self, row: int, slots: Iterable[int]) -> list[int]:
        """Where the first head of ``slots`` lies in the flattened (row, head, slot)."""
        first = row * self.data.shape[2] * self.data.shape[3]
        return [first + slot for slot in slots]

    def _flat_index(self, places: list[list[int]]) -> Tensor:
        """[X, Y, heads] of all heads, from ``places`` [X, Y] of the first."""
        heads, capacity = self.data.shape[2:4]
        offsets = torch.arange(0, heads * capacity, capacity, device=self.data.device)
        return torch.tensor(places, device=self.data.device)[..., None] + offsets
