"""Lookahead decoding (arXiv 2402.02057): the target makes n-grams for itself, by a Jacobi iteration
in auxiliary nodes of the forward that verifies the n-grams made before."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

from torch import Tensor

from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.errors import ConfigError
from jakiro.target.output import TargetOutput
from jakiro.tree.shapes import TreePlan
from jakiro.tree.sketch import Sketch, stack
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

Tail = tuple[int, ...]


class Pool:
    """N-grams by their first token: the latest ``size`` different tails, newest first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._tails: dict[int, list[Tail]] = defaultdict(list)

    def add(self, first: int, tail: Tail) -> None:
        others = [known for known in self._tails[first] if known != tail]
        self._tails[first] = [tail, *others][: self._size]

    def after(self, first: int) -> list[Tail]:
        return self._tails.get(first, [])


@dataclass(eq=False)
class Window:
    """The guesses of one row: up to ``ngram - 1`` levels of equally many columns.

    Level l, column j stands ``1 + j + l`` positions behind the root and is guessed from the text,
    the first level up to its column, and its own column's levels below: ancestors in a tree whose
    first level is a chain and whose further levels hang below it, column by column.
    """

    levels: list[list[int]]
    nodes: list[list[int]] = field(default_factory=list)
    """Where the levels were put in the last draft."""

    def sketch(self, tree: Sketch) -> None:
        """Add the window to a draft, as nodes that cannot be accepted."""
        self.nodes, above = [[]], 0
        for token in self.levels[0]:
            above = tree.auxiliary(above, token)
            self.nodes[0].append(above)
        for level in self.levels[1:]:
            pairs = zip(self.nodes[-1], level, strict=True)
            self.nodes.append([tree.auxiliary(node, token) for node, token in pairs])

    def is_in(self, tokens: list[int], parents: list[int], valid: list[bool]) -> bool:
        """Whether that tree, which another drafter may have made, holds the window."""
        if not self.nodes or self.nodes[-1][-1] >= len(tokens):
            return False
        above = [[0, *self.nodes[0][:-1]], *self.nodes[:-1]]
        return all(
            tokens[node] == token and parents[node] == parent and not valid[node]
            for column in zip(self.nodes, self.levels, above, strict=True)
            for node, token, parent in zip(*column, strict=True)
        )

    def advance(self, new: list[int], ngram: int) -> list[Tail]:
        """Put ``new``, what the target says behind the top level, on top. Once there are
        ``ngram`` levels, each column is an n-gram; they are returned and the lowest level goes."""
        self.levels.append(new)
        if len(self.levels) < ngram:
            return []
        columns = list(zip(*self.levels, strict=True))
        self.levels = self.levels[1:]
        return columns


class Lookahead(Drafter):
    """Verifies the ``guesses`` newest n-grams that start with the root, and feeds a window of
    ``window`` columns and ``ngram - 1`` levels on top: those nodes are not in the plan's budget."""

    name = "lookahead"

    def __init__(self, ngram: int = 5, window: int = 7, guesses: int = 7) -> None:
        if ngram < 2 or window < 1 or guesses < 1:
            raise ConfigError(
                "need ngram of at least 2, window and guesses of at least 1, got "
                f"{ngram}, {window} and {guesses}"
            )
        self._ngram, self._window, self._guesses = ngram, window, guesses
        self.plan = TreePlan("dynamic", ngram - 1, guesses, guesses * (ngram - 1))
        self._rows: list[tuple[Window, Pool]] = []

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        first = random.Random(0).choices(ids, k=self._window)
        self._rows.append((Window([first]), Pool(self._guesses)))

    def draft(self, request: DraftRequest) -> TokenTree:
        sketches = []
        roots = request.roots.tolist()
        for (window, pool), root, cap in zip(self._rows, roots, request.depth_caps, strict=True):
            sketch, depth = Sketch(root), min(cap, request.plan.depth)
            for tail in pool.after(root)[: request.plan.width]:
                sketch.path(tail[:depth], request.plan.budget)
            window.sketch(sketch)
            sketches.append(sketch)
        return stack(sketches, request.roots.device)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        said = out.logits.argmax(-1).tolist()
        shapes = zip(tree.tokens.tolist(), tree.parents.tolist(), tree.valid.tolist(), strict=True)
        for (window, pool), shape, choices in zip(self._rows, shapes, said, strict=True):
            if window.is_in(*shape):
                new = [choices[node] for node in window.nodes[-1]]
                for first, *tail in window.advance(new, self._ngram):
                    pool.add(first, tuple(tail))

    def keep(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]
