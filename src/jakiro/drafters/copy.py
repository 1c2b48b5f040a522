"""Input-guided aggressive decoding (arXiv 2106.04970): when the answer is an edit of a source text,
the source itself is the draft."""

from __future__ import annotations

import reprlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.errors import ConfigError
from jakiro.target.output import TargetOutput
from jakiro.tree.shapes import TreePlan
from jakiro.tree.sketch import chain, stack
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

Ends = dict[tuple[int, ...], list[int]]


@dataclass(eq=False)
class Alignment:
    """Where an answer stands in its source.

    ``pointer`` is the index of the source token expected next. While the answer follows the source
    it moves along. After a mismatch it goes behind the longest suffix of the answer, of at most
    ``max_ngram`` tokens, that occurs in the source: the next occurrence ahead, else the last
    behind. Without one nothing is expected.
    """

    source: Sequence[int]
    max_ngram: int
    pointer: int = 0
    is_aligned: bool = True
    _tail: list[int] = field(default_factory=list)
    _ends: Ends = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for end in range(1, len(self.source) + 1):
            for size in range(1, min(self.max_ngram, end) + 1):
                self._ends[tuple(self.source[end - size : end])].append(end)

    def follow(self, token: int) -> None:
        """The answer goes on with ``token``."""
        self._tail = [*self._tail, token][-self.max_ngram :]
        follows = self.is_aligned and self.expected(1) == [token]
        self.pointer, self.is_aligned = (self.pointer + 1, True) if follows else self._realigned()

    def expected(self, size: int) -> Sequence[int]:
        """At most ``size`` source tokens that should come next."""
        return self.source[self.pointer : self.pointer + size] if self.is_aligned else []

    def _realigned(self) -> tuple[int, bool]:
        for size in range(len(self._tail), 0, -1):
            if ends := self._ends.get(tuple(self._tail[-size:])):
                ahead = bisect_left(ends, self.pointer)
                return ends[min(ahead, len(ends) - 1)], True
        return self.pointer, False


class Copy(Drafter):
    """Proposes the source from where the answer stands in it, as a chain.

    ``source_of`` picks the source tokens out of a prompt's; without it the whole prompt is the
    source, and the first match in it aligns the answer.
    """

    name = "copy"
    plan = TreePlan.chain(16)

    def __init__(
        self,
        source_of: Callable[[list[int]], Sequence[int]] | None = None,
        max_ngram: int = 4,
    ) -> None:
        if max_ngram < 1:
            raise ConfigError(f"max_ngram must be at least 1, got {max_ngram}")
        self._source_of = source_of
        self._max_ngram = max_ngram
        self._rows: list[Alignment] = []

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        source = ids if self._source_of is None else self._source_of(ids)
        if not (isinstance(source, Sequence) and all(isinstance(each, int) for each in source)):
            raise ConfigError(
                f"source_of must return a list of token ids, got {reprlib.repr(source)}"
            )
        self._rows.append(Alignment(list(source), self._max_ngram))

    def draft(self, request: DraftRequest) -> TokenTree:
        chains = []
        roots = request.roots.tolist()
        for row, root, cap in zip(self._rows, roots, request.depth_caps, strict=True):
            row.follow(root)
            size = min(cap, request.plan.depth, request.plan.budget)
            chains.append(chain([root, *row.expected(size)]))
        return stack(chains, request.roots.device)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        for row, tokens, path in zip(self._rows, tree.tokens.tolist(), verdict.paths, strict=True):
            for node in path[1:]:
                row.follow(tokens[node])

    def keep(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]
