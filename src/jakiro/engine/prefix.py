"""What earlier requests have fed, for those to come that begin with the same text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jakiro.cache.kv_cache import KVRow


@dataclass(frozen=True, eq=False)
class Prefix:
    """Entries of the target's cache and of the drafter's for the beginning of a text, equally
    many. The text has at least one token more than there are entries, because a drafter's entry
    may depend on the token after its own."""

    tokens: list[int]
    target: KVRow
    draft: KVRow

    @classmethod
    def of(cls, tokens: list[int], target: KVRow, draft: KVRow) -> Prefix:
        """As many entries as both have."""
        length = min(target.length, draft.length, len(tokens) - 1)
        return cls(tokens, target.cut(length), draft.cut(length))

    def num_of_use(self, ids: Sequence[int]) -> int:
        """How many entries serve a prompt ``ids``; at least its last token is left to be fed."""
        return max(0, min(num_common(self.tokens, ids) - 1, self.target.length))

    def cut(self, length: int) -> Prefix:
        """The first ``length`` entries."""
        return Prefix(self.tokens, self.target.cut(length), self.draft.cut(length))

    @property
    def num_bytes(self) -> int:
        return self.target.num_bytes + self.draft.num_bytes


NOTHING = Prefix([], KVRow(0), KVRow(0))


class PrefixStore:
    """Prefixes of finished requests, the least recently used first."""

    def __init__(self) -> None:
        self._prefixes: list[Prefix] = []

    @property
    def num_bytes(self) -> int:
        """Of all keys and values kept."""
        return sum(prefix.num_bytes for prefix in self._prefixes)

    def put(self, new: Prefix, max_bytes: int) -> None:
        """Keep ``new``, and of the others what ``max_bytes`` leaves room for. Prefixes that are the
        beginning of it, like earlier turns of its conversation, go."""
        self._prefixes = [
            old for old in self._prefixes if num_common(old.tokens, new.tokens) < len(old.tokens)
        ]
        self._prefixes.append(new)
        while self._prefixes and self.num_bytes > max_bytes:
            self._prefixes.pop(0)

    def find(self, ids: Sequence[int]) -> Prefix:
        """The most that is known of a prompt."""
        best = max(self._prefixes, key=lambda prefix: prefix.num_of_use(ids), default=NOTHING)
        length = best.num_of_use(ids)
        if length:
            self._prefixes.remove(best)
            self._prefixes.append(best)
        return best.cut(length)


def num_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
