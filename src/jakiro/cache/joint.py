"""The caches of several models that read the same texts, moved as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jakiro.cache.kv_cache import NO_ROW, KVCache, KVRow


@dataclass(frozen=True, eq=False)
class JointRow(KVRow):
    """A row of a ``JointCache``: that of the first model, and in ``beside`` those of the others,
    which may be longer by what stands before their text."""

    beside: tuple[KVRow, ...] = ()

    def cut(self, length: int) -> KVRow:
        less = self.length - length
        beside = tuple(row.cut(row.length - less) for row in self.beside)
        return JointRow(length, super().cut(length).data, beside)

    @property
    def num_bytes(self) -> int:
        return super().num_bytes + sum(row.num_bytes for row in self.beside)


class JointCache(KVCache):
    """The cache of the first model, with one in ``beside`` for each of the others.

    Rows come, go and are committed in all of them. Forwards are not joint: who runs a model aims
    its own cache, and ``advance`` moves that one only. So whatever takes a ``KVCache``, a view of
    the first model for example, is served by this one as if it were alone.
    """

    def __init__(self, num_layers: int, num_layers_beside: Sequence[int]) -> None:
        super().__init__(num_layers)
        self.beside = [KVCache(number) for number in num_layers_beside]

    def reserve(self, rows: int, capacity: int) -> None:
        super().reserve(rows, capacity)
        for cache in self.beside:
            cache.ceiling, cache.row_ceiling = self.ceiling, self.row_ceiling
            cache.reserve(rows, capacity)

    def admit(self, known: KVRow = NO_ROW) -> int:
        rows = known.beside if isinstance(known, JointRow) else [NO_ROW] * len(self.beside)
        for cache, row in zip(self.beside, rows, strict=True):
            cache.admit(row)
        return super().admit(known)

    def save(self, row: int, length: int) -> KVRow:
        own = super().save(row, length)
        less = self.lengths[row] - own.length
        beside = tuple(cache.save(row, cache.lengths[row] - less) for cache in self.beside)
        return JointRow(own.length, own.data, beside)

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        for cache in self.beside:
            cache.keep(rows)

    def commit_paths(self, paths: list[list[int]]) -> None:
        super().commit_paths(paths)
        for cache in self.beside:
            cache.commit_paths(paths)
