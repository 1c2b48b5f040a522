"""How often drafted nodes are accepted, by depth and by the smallest tree that would hold them.

An accepted node says more than that its own tree was good: its rank in the tree, by the drafter's
own scores, tells which smaller trees would have held it, too. So one draft is evidence for every
plan within the one it had. What deeper levels would have brought is not seen; the rates are
therefore kept *given that the parent was accepted*, and a depth that is not drafted for a while
keeps its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import numpy as np
import numpy.typing as npt
from torch import Tensor

from jakiro.tree.shapes import TreePlan

Choice = tuple[int, int]
"""A part of a plan: indices of its depth and budget in the grid."""
Array = npt.NDArray[np.float64]

MEMORY = 0.99
"""What is left of the counts of all requests after a further offer."""
ROW_MEMORY = 0.93
"""And of those of one, whose easy and hard stretches are short."""
PRIOR = 3.0
"""How many offers the guess is worth that a level is like the one above it."""
FIRST_GUESS = 0.4
"""Of failures, on the first level of a tree of one node."""
NODE_GUESS = 0.5
"""More nodes make failures fewer by this power of their number."""
ROW_PRIOR = 2.0
"""How many failures the guess is worth that a request is like all others. With fewer, one that has
just failed a few times looks worse than it turns out; with more, requests that do differ look
alike."""
LAST_PRIOR = 5.0
"""How many nodes the guess is worth that a last level is like others."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The plans to choose from: depths 1 .. ``num_depths``, each with every budget."""

    num_depths: int
    budgets: tuple[int, ...]

    @classmethod
    def of(cls, plan: TreePlan) -> Grid:
        """Of the parts of ``plan``. Chains and static shapes are cut in depth only."""
        if plan.kind != "dynamic":
            return cls(plan.depth, (plan.budget,))
        halves = [plan.budget]
        while halves[-1] > 1:
            halves.append(halves[-1] // 2)
        return cls(plan.depth, tuple(reversed(halves)))

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_depths, len(self.budgets)


def needed(
    scores: Tensor | None, valid: list[list[int]], paths: list[list[int]]
) -> list[list[int]]:
    """Per row, of each accepted node of its path: the budget of the smallest tree that holds it and
    those above it.

    ``scores`` [B, N] rank nodes, of equal ones the one made first before the other; without them
    their order does. The root comes before all, what is not ``valid`` [B][N] behind.
    """
    rows = [range(0, -len(row), -1) for row in valid] if scores is None else scores.tolist()
    found = []
    for row, kept, path in zip(rows, valid, paths, strict=True):
        nodes = zip(row[1:], kept[1:], strict=True)
        keys = [math.inf, *(score if is_kept else -math.inf for score, is_kept in nodes)]
        taken = sorted(range(len(keys)), key=keys.__getitem__, reverse=True)
        found.append(list(accumulate(map(taken.index, path[1:]), max)))
    return found


class Acceptance:
    """Counts of the rows of a batch, and of all requests so far."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        depths, budgets = grid.shape
        # Offers, each as large as its row makes failures likely, and failures, by depth and budget;
        # the last level of a draft is not among them.
        self._offered = [[0.0] * budgets for _ in range(depths)]
        self._failed = [[0.0] * budgets for _ in range(depths)]
        # Per row: failures expected of it if it were like all, and those that came.
        self._rows: list[tuple[float, float]] = []
        # Of last levels: nodes expected if they were like others, and those accepted.
        self._last = (0.0, 0.0)
        # Where there is a level at all: no tree has more levels than nodes.
        self._is_there = np.array([[b > depth for b in grid.budgets] for depth in range(depths)])
        # As of the last time that somebody asked for gains, which is often enough for counting.
        self._failing = self._made_failing()

    def begin(self) -> None:
        """Append one row, of which nothing is known."""
        self._rows.append((0.0, 0.0))

    def keep(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]

    def fade(self, num_cycles: int) -> None:
        """So many cycles went by without a draft: what rows were like is less sure."""
        left = ROW_MEMORY**num_cycles
        self._rows = [(left * expected, left * came) for expected, came in self._rows]

    def count(self, needed: list[list[int]], part: Choice, depths: list[int], last: int) -> None:
        """A draft of a ``part`` of the plan whose last level was ``last``; per row its deepest
        level, and of the accepted nodes what budgets they ``needed``."""
        whole = self.grid.budgets[part[1]]
        for row, (needs, deepest) in enumerate(zip(needed, depths, strict=True)):
            above: float = 0
            # The first level at which nothing was accepted was offered, too.
            for level, need in enumerate([*needs, math.inf][: min(deepest, whole)]):
                if above > whole:
                    break
                if level == last - 1 > 0:
                    self._count_last(row, (level, part[1]), need <= whole)
                else:
                    self._count_level(row, (level, part[1]), above, need)
                above = need

    def _count_last(self, row: int, place: Choice, is_accepted: bool) -> None:
        chance = 1 - min(1.0, self._factor(row) * self._failing[place[0]][place[1]])
        expected, came = self._last
        self._last = MEMORY * expected + chance, MEMORY * came + is_accepted

    def _count_level(self, row: int, place: Choice, above: float, need: float) -> None:
        """Of a level the budgets that hold its parent, which needs the budget ``above``."""
        level, largest = place
        offered, failed, factor = self._offered[level], self._failed[level], self._factor(row)
        # Larger trees that were not offered are forgotten with the rest of their level, so that
        # they are tried again; levels that were not are remembered.
        for b, budget in enumerate(self.grid.budgets):
            is_offered = max(above, level + 1) <= budget and b <= largest
            offered[b] = MEMORY * offered[b] + is_offered * factor
            failed[b] = MEMORY * failed[b] + (is_offered and need > budget)
        expected, came = self._rows[row]
        has_failed = need > self.grid.budgets[largest]
        expected = ROW_MEMORY * expected + self._failing[level][largest]
        self._rows[row] = expected, ROW_MEMORY * came + has_failed

    def gains(self) -> Array:
        """[depths, budgets]: accepted tokens to expect of a draft, summed over the rows; without
        any, those of one of which nothing is known."""
        factors = np.array([self._factor(row) for row in range(len(self._rows))] or [1.0])
        self._failing = self._made_failing()
        inner = 1 - np.minimum(1.0, factors[:, None, None] * np.array(self._failing))
        inner *= self._is_there
        reached = np.cumprod(inner, axis=1)
        # A last level may be made in another way than others; the first one never is.
        expected, accepted = self._last
        likeness = _shrunk(expected, accepted, 1.0, LAST_PRIOR)
        last = np.minimum(1.0, likeness * inner[:, 1:]) * reached[:, :-1]
        total: Array = reached.cumsum(1).sum(0)
        total[1:] += (last - reached[:, 1:]).sum(0)
        return total

    def _factor(self, row: int) -> float:
        """How many times as often as others it fails."""
        return _shrunk(*self._rows[row], 1.0, ROW_PRIOR)

    def _made_failing(self) -> list[list[float]]:
        """[depths, budgets]: chance that no child is accepted of an accepted node that has more
        than one level below it, and room for them."""
        failing = []
        # Where little was offered, a level fails in proportion to the one above it.
        shape = [FIRST_GUESS * budget**-NODE_GUESS for budget in self.grid.budgets]
        for offered, failed in zip(self._offered, self._failed, strict=True):
            expected = sum(map(mul, offered, shape))
            scale = _shrunk(expected, sum(failed), 1.0, PRIOR * sum(shape))
            each = zip(shape, offered, failed, strict=True)
            shape = [
                _shrunk(offers, failures, scale * guess, PRIOR) for guess, offers, failures in each
            ]
            failing.append(shape)
        return failing


def _shrunk(offered: float, counted: float, guess: float, weight: float) -> float:
    """The share of what was offered, starting from a ``guess`` worth ``weight`` offers."""
    return (counted + weight * guess) / (offered + weight)
