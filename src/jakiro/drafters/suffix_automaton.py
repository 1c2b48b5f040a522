"""Suffix automaton (SAM-Decoding, arXiv 2411.10666): the longest suffix of the text that occurred
before, in the text itself or in a corpus, says what comes next and how far to trust it.

Alone the drafter proposes whenever a suffix occurs again. Over another drafter it is the arbiter:
it takes a row while its match is long.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from itertools import count

from torch import Tensor

from jakiro.cache.kv_cache import KVRow
from jakiro.drafters.automata import CorpusAutomaton, OnlineAutomaton
from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.errors import ConfigError
from jakiro.target.output import TargetOutput
from jakiro.tree.shapes import TreePlan
from jakiro.tree.sketch import Sketch, chain, mix, stack, what_follows
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict


@dataclass(eq=False)
class _Row:
    own: OnlineAutomaton
    state: int = 0
    length: int = 0
    """The match in the corpus."""


class SuffixAutomaton(Drafter):
    """Proposes what followed the longest match: a chain from the text, of ``1 + growth * match``
    tokens, or a tree of relative frequencies from ``corpus``, whose matches count ``corpus_bias``
    tokens less. Rows whose match is shorter than ``threshold`` are left to ``inner``."""

    name = "suffix_automaton"
    plan = TreePlan("dynamic", depth=16, width=8, budget=16)

    def __init__(
        self,
        inner: Drafter | None = None,
        *,
        corpus: CorpusAutomaton | None = None,
        threshold: int | None = None,
        growth: float = 4.0,
        corpus_bias: int = 5,
    ) -> None:
        if threshold is None:
            threshold = 1 if inner is None else 5
        if threshold < 1 or growth < 0 or corpus_bias < 0:
            raise ConfigError(
                "threshold must be at least 1, growth and corpus_bias not negative, got "
                f"{threshold}, {growth} and {corpus_bias}"
            )
        self.inner, self._corpus = inner, corpus
        self._threshold, self._growth, self._corpus_bias = threshold, growth, corpus_bias
        self._rows: list[_Row] = []
        self._takes: list[bool] = []
        if inner is not None:
            self.name = f"{self.name}+{inner.name}"
            self.needs, self.free_levels = inner.needs, inner.free_levels
            self.num_parameters = inner.num_parameters
            # What is likely to be accepted whole may be deep, at no more nodes than the other's.
            budget = inner.plan.budget
            self.plan = TreePlan("dynamic", budget, inner.plan.width, budget)

    def largest_token(self) -> int:
        known = -1 if self._corpus is None else int(self._corpus.tokens.max(initial=-1))
        return max(known, super().largest_token())

    def compile(self, backend: str) -> None:
        if self.inner is not None:
            self.inner.compile(backend)

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        self.resume(KVRow(0), ids, features)

    def save(self, row: int, length: int) -> KVRow:
        return super().save(row, length) if self.inner is None else self.inner.save(row, length)

    def resume(self, known: KVRow, ids: list[int], features: Tensor | None) -> None:
        if self.inner is not None:
            self.inner.resume(known, ids, features)
        row = _Row(OnlineAutomaton())
        self._rows.append(row)
        self._extend(row, ids)

    def draft(self, request: DraftRequest) -> TokenTree:
        sketches: list[Sketch] = []
        takes = self._takes = []
        roots = request.roots.tolist()
        for row, root, cap in zip(self._rows, roots, request.depth_caps, strict=True):
            self._extend(row, [root])
            match = max(row.own.match, row.length - self._corpus_bias)
            takes.append(match >= self._threshold)
            depth = min(cap, request.plan.depth) if takes[-1] else 0
            sketches.append(self._sketch(row, root, depth, request.plan))
        tree = stack(sketches, request.roots.device)
        if self.inner is None:
            return tree
        # A taken row asks nothing of the inner drafter but to keep up with the text.
        caps = [0 if taken else cap for taken, cap in zip(takes, request.depth_caps, strict=True)]
        plan = self._inner_plan(self.inner.plan, request.plan)
        other = self.inner.draft(replace(request, depth_caps=caps, plan=plan))
        self.module_ms = self.inner.module_ms
        return mix(takes, tree, other) if any(takes) else other

    def origin(self, row: int, node: int, depth: int) -> str:
        if self.inner is None or self._takes[row]:
            return type(self).name
        return self.inner.origin(row, node, depth)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        for row, tokens, path in zip(self._rows, tree.tokens.tolist(), verdict.paths, strict=True):
            self._extend(row, [tokens[node] for node in path[1:]])
        if self.inner is not None:
            self.inner.accept(tree, verdict, out)

    def keep(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]
        if self.inner is not None:
            self.inner.keep(rows)

    def _inner_plan(self, inner: TreePlan, plan: TreePlan) -> TreePlan:
        """Of a part of this drafter's own deep plan the same part of the ``inner`` one's; on chains
        the inner drafter keeps its depth, too. Any other ``plan`` is for both."""
        own = self.plan
        if plan.kind == "chain":
            return TreePlan.chain(min(plan.depth, inner.depth))
        is_part = plan == own.limited(plan.depth, plan.width, plan.budget)
        return inner.limited(plan.depth, plan.width, plan.budget) if is_part else plan

    def _extend(self, row: _Row, tokens: list[int]) -> None:
        for token in tokens:
            row.own.extend(token)
            if self._corpus is not None:
                row.state, row.length = self._corpus.advance(row.state, row.length, token)

    def _sketch(self, row: _Row, root: int, depth: int, plan: TreePlan) -> Sketch:
        own = row.own
        if self._corpus is not None and row.length - self._corpus_bias > own.match:
            return likeliest(self._corpus, row.state, root, plan, depth)
        size = min(depth, plan.budget, 1 + int(self._growth * own.match))
        return chain([root, *what_follows(own.text, own.follow, size)])


def likeliest(corpus: CorpusAutomaton, state: int, root: int, plan: TreePlan, depth: int) -> Sketch:
    """The likeliest continuations in ``corpus`` of the match at ``state``, best first: at most
    ``depth`` levels, ``plan.width`` children of a node and nodes of a level."""
    sketch, order = Sketch(root), count()
    per_level = [0] * depth
    # Probability (negative: a heap is smallest first), tie-break, parent, its level, token, state.
    heap: list[tuple[float, int, int, int, int, int]] = []

    def expand(node: int, level: int, state: int, share: float) -> None:
        if level < depth:
            for part, token, target in corpus.children(state, plan.width):
                heapq.heappush(heap, (-share * part, next(order), node, level, token, target))

    expand(0, 0, state, 1.0)
    while heap and sketch.num_drafted < plan.budget:
        share, _, parent, above, token, target = heapq.heappop(heap)
        if per_level[above] < plan.width:
            per_level[above] += 1
            expand(sketch.child(parent, token), above + 1, target, -share)
    return sketch
