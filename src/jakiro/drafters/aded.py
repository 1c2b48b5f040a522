"""ADED (arXiv 2407.12021): trigrams learned while the text grows, and a search for the
continuations they find likely: best first, or by PUCT, which also tries the less likely ones."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field
from itertools import count

from torch import Tensor

from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.errors import ConfigError
from jakiro.target.output import TargetOutput
from jakiro.tree.shapes import TreePlan
from jakiro.tree.sketch import Sketch, stack
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

Context = tuple[int, ...]
"""The last two tokens, or the last one."""
_MOST = 12
"""Successors of a context that are looked at."""


class Trigrams:
    """Weights of what followed each pair of tokens, and each single one to back off to.

    Every occurrence adds ``gain`` to a weight, up to ``cap``. A share of ``discount`` times gain of
    each weight is withheld: what a pair withholds is given out by its last token.
    """

    def __init__(self, gain: float = 0.25, cap: float = 3.0, discount: float = 0.5) -> None:
        if gain <= 0 or cap < gain or not 0 <= discount <= 1:
            raise ConfigError(
                "need 0 < gain <= cap and 0 <= discount <= 1, got "
                f"gain={gain}, cap={cap} and discount={discount}"
            )
        self._gain, self._cap, self._withheld = gain, cap, discount * gain
        self._weights: dict[Context, dict[int, float]] = {}
        self._text: Context = ()

    def extend(self, token: int) -> None:
        """The text goes on with ``token``."""
        for context in (self._text, self._text[1:]):
            if context:
                known = self._weights.setdefault(context, {})
                known[token] = min(known.get(token, 0.0) + self._gain, self._cap)
        self._text = (*self._text, token)[-2:]

    @property
    def context(self) -> Context:
        """The last two tokens, if there are two."""
        return self._text

    def weight(self, context: Context, token: int) -> float:
        """0 for what was never seen."""
        return self._weights.get(context, {}).get(token, 0.0)

    def after(self, context: Context) -> list[tuple[int, float]]:
        """The likeliest successors of the last two tokens with their probabilities, best first."""
        shares: dict[int, float] = {}
        left = 1.0
        for known in (context, context[1:]) if len(context) > 1 else (context,):
            weights = self._weights.get(known)
            if weights:
                total = sum(weights.values())
                for token, weight in weights.items():
                    share = left * (weight - self._withheld) / total
                    shares[token] = shares.get(token, 0.0) + share
                left *= self._withheld * len(weights) / total
        best = heapq.nlargest(_MOST, shares.items(), key=lambda item: item[1])
        return [(token, share) for token, share in best if share > 0]


def best_first(trigrams: Trigrams, depth: int, plan: TreePlan) -> Sketch:
    """The ``plan.budget`` likeliest paths after the text, of at most ``depth`` tokens and
    ``plan.width`` children a node."""
    sketch, order = Sketch(trigrams.context[-1]), count()
    heap: list[tuple[float, int, int, int, int, Context]] = []

    def expand(node: int, level: int, context: Context, share: float) -> None:
        if level < depth:
            for token, part in trigrams.after(context)[: plan.width]:
                item = (-share * part, next(order), node, level, token, context)
                heapq.heappush(heap, item)

    expand(0, 0, trigrams.context, 1.0)
    while heap and sketch.num_drafted < plan.budget:
        share, _, parent, level, token, context = heapq.heappop(heap)
        node = sketch.child(parent, token)
        expand(node, level + 1, (*context, token)[-2:], -share)
    return sketch


@dataclass(eq=False)
class _Place:
    """A node of the search tree."""

    context: Context
    share: float
    depth: int
    parent: _Place | None = None
    children: list[_Place] = field(default_factory=list)
    visits: int = 0
    score: float = 0.0

    def urgency(self) -> float:
        """PUCT with the constants of the source: mean score plus prior times how much the others
        were visited."""
        assert self.parent is not None
        if not self.visits:
            return math.inf
        others = self.parent.visits
        rate = 32.0 + math.log((others + 9.0) / 8.0)
        return self.score / self.visits + rate * self.share * math.sqrt(others) / (1 + self.visits)


@dataclass(eq=False)
class Search:
    """Monte Carlo tree search with prior: what it visits most is drafted."""

    trigrams: Trigrams
    depth: int
    width: int
    chance: random.Random
    places: list[_Place] = field(init=False)
    """In the order they were made: parents first, likelier siblings first."""

    def __post_init__(self) -> None:
        self.places = [_Place(self.trigrams.context, 0.0, 0)]

    def simulate(self) -> None:
        """Go down to a leaf, open it, sample on to the horizon, tell everyone on the way."""
        place = self.places[0]
        value = 1.0
        while place.children:
            place = max(place.children, key=_Place.urgency)
            value += place.share
        if place.depth < self.depth:
            for token, share in self.trigrams.after(place.context)[: self.width]:
                context = (*place.context, token)[-2:]
                child = _Place(context, share, place.depth + 1, place)
                place.children.append(child)
                self.places.append(child)
        value += self._sampled(place)
        above: _Place | None = place
        while above is not None:
            above.visits += 1
            above.score += value
            above = above.parent

    def sketch(self, budget: int) -> Sketch:
        """The ``budget`` most visited places. (No place is visited more often than its parent.)"""
        sketch = Sketch(self.places[0].context[-1])
        nodes = {id(self.places[0]): 0}
        ranked = sorted(self.places[1:], key=lambda place: -place.visits)
        for place in ranked[:budget]:
            nodes[id(place)] = sketch.child(nodes[id(place.parent)], place.context[-1])
        return sketch

    def _sampled(self, place: _Place) -> float:
        """The summed probabilities of tokens sampled from ``place`` on."""
        context, total = place.context, 0.0
        for _ in range(self.depth - place.depth):
            found = self.trigrams.after(context)
            if not found:
                break
            (chosen,) = self.chance.choices(found, weights=[share for _, share in found])
            context, total = (*context, chosen[0])[-2:], total + chosen[1]
        return total


class Aded(Drafter):
    """Drafts from the trigrams of prompt and answer, best first; with ``simulations`` by a search
    of that many rounds."""

    name = "aded"
    plan = TreePlan("dynamic", depth=5, width=4, budget=12)

    def __init__(self, simulations: int = 0) -> None:
        if simulations < 0:
            raise ConfigError(f"simulations must not be negative, got {simulations}")
        self._simulations = simulations
        self._rows: list[tuple[Trigrams, random.Random]] = []

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        trigrams = Trigrams()
        for token in ids:
            trigrams.extend(token)
        # A row draws on its own, so that it does not feel the others.
        self._rows.append((trigrams, random.Random(0)))

    def draft(self, request: DraftRequest) -> TokenTree:
        sketches = []
        roots = request.roots.tolist()
        for row, root, cap in zip(self._rows, roots, request.depth_caps, strict=True):
            row[0].extend(root)
            sketches.append(self._sketch(*row, min(cap, request.plan.depth), request.plan))
        return stack(sketches, request.roots.device)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        for row, tokens, path in zip(self._rows, tree.tokens.tolist(), verdict.paths, strict=True):
            for node in path[1:]:
                row[0].extend(tokens[node])

    def keep(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]

    def _sketch(
        self, trigrams: Trigrams, chance: random.Random, depth: int, plan: TreePlan
    ) -> Sketch:
        if not self._simulations:
            return best_first(trigrams, depth, plan)
        search = Search(trigrams, depth, plan.width, chance)
        for _ in range(self._simulations):
            search.simulate()
        return search.sketch(plan.budget)
