"""How often drafted nodes are accepted, by depth and by the smallest tree that would hold them.

An accepted node says more than that its own tree was good: its rank among its siblings, in its
level and in the whole tree, by the drafter's own scores, tells which narrower and smaller trees
would have held it, too. So one draft is evidence for every plan within the one it had. What deeper
levels would have brought is not seen; the rates are therefore kept *given that the parent was
accepted*, and a depth that is not drafted for a while keeps its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from jakiro.tree.shapes import TreePlan

Choice = tuple[int, int, int]
"""A part of a plan: indices of its depth, width and budget in the grid."""
Array = npt.NDArray[np.float64]

ROW_MEMORY, TOTAL_MEMORY = 0.97, 0.995
"""What is left of the counts of one request, and of all, after a further offer."""
ROW_PRIOR, KIND_PRIOR, TOTAL_PRIOR = 6.0, 20.0, 3.0
"""How many offers a guess is worth against the counts of a row, of a kind of level, and of both."""
FIRST_GUESS = 0.7
_INNER, _LAST = 0, 1


@dataclass(frozen=True, slots=True)
class Grid:
    """The plans to choose from: depths 1 .. ``num_depths``, each with every width and budget."""

    num_depths: int
    widths: tuple[int, ...]
    budgets: tuple[int, ...]

    @classmethod
    def of(cls, plan: TreePlan) -> Grid:
        """Of the parts of ``plan``. Chains and static shapes are cut in depth only."""
        if plan.kind != "dynamic":
            return cls(plan.depth, (plan.width,), (plan.budget,))
        widths = sorted({1, -(-plan.width // 2), plan.width})
        budgets = {b for b in _BUDGETS if b < plan.budget} | {plan.budget}
        return cls(plan.depth, tuple(widths), tuple(sorted(budgets)))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.num_depths, len(self.widths), len(self.budgets)


_BUDGETS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)


@dataclass(frozen=True, slots=True)
class Node:
    """An accepted node: the width and the budget that a tree must have to hold it."""

    width: int
    budget: int


def held(parents: list[int], scores: list[float] | None, path: list[int]) -> list[Node]:
    """What the nodes of an accepted ``path`` (root first) need, each no less than its parent.

    ``scores`` rank nodes; without them the order of the nodes does. ``parents`` and ``scores`` are
    those of the row's valid nodes and its padding, which no path holds.
    """
    order = [-float(node) for node in range(len(parents))] if scores is None else scores
    depth = [0] * len(parents)
    for node in range(1, len(parents)):
        depth[node] = depth[parents[node]] + 1
    nodes, width, budget = [], 1, 1
    for above, node in pairwise(path):
        better = [other for other in range(1, len(order)) if order[other] > order[node]]
        if above:
            level = [o for o in range(1, len(order)) if depth[o] == depth[above]]
            width = max(width, 1 + sum(order[o] > order[above] for o in level))
        width = max(width, 1 + sum(parents[other] == above for other in better))
        budget = max(budget, 1 + len(better))
        nodes.append(Node(width, budget))
    return nodes


class Acceptance:
    """Counts of the rows of a batch, and of all requests so far."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        # Offered and accepted; of levels with more below them and of last ones, which a drafter
        # may make in another way; by depth, width and budget.
        self._total = np.zeros((2, 2, *grid.shape))
        self._rows = np.zeros((0, 2, 2, *grid.shape))

    @property
    def num_rows(self) -> int:
        """Rows whose gains are summed: at least one."""
        return max(1, len(self._rows))

    def begin(self) -> None:
        """Append one row, of which nothing is known."""
        self._rows = np.concatenate([self._rows, np.zeros((1, *self._total.shape))])

    def keep(self, rows: list[int]) -> None:
        self._rows = self._rows[rows]

    def fade(self, num_cycles: int) -> None:
        """So many cycles went by without a draft: what rows were like is less sure."""
        self._rows *= ROW_MEMORY**num_cycles

    def count(self, row: int, nodes: list[Node], part: Choice, last: int, cap: int) -> None:
        """A draft of a ``part`` of the plan whose last level was ``last``, of which the row could
        use ``cap`` levels and accepted ``nodes``."""
        grid = self.grid
        end_w, end_b = part[1] + 1, part[2] + 1
        seen = np.zeros_like(self._total)
        width = budget = 0
        for level in range(min(len(nodes) + 1, last, cap)):
            kind = _LAST if level + 1 == last else _INNER
            seen[0, kind, level, width:end_w, budget:end_b] += 1
            if level < len(nodes):
                width = int(np.searchsorted(grid.widths, nodes[level].width))
                budget = int(np.searchsorted(grid.budgets, nodes[level].budget))
                seen[1, kind, level, width:end_w, budget:end_b] += 1
        # What was not offered is not forgotten.
        offered = seen[0] > 0
        self._rows[row] = np.where(offered, ROW_MEMORY, 1.0) * self._rows[row] + seen
        self._total = np.where(offered, TOTAL_MEMORY, 1.0) * self._total + seen

    def gains(self) -> Array:
        """[depths, widths, budgets]: accepted tokens to expect of a draft, summed over the rows;
        without any, those of one of which nothing is known."""
        guess = self._guess()
        rows = self._rows if len(self._rows) else np.zeros((1, *self._total.shape))
        rates = _shrunk(rows[:, 0], rows[:, 1], guess, ROW_PRIOR)
        inner, last = rates[:, _INNER], rates[:, _LAST]
        reached = np.cumprod(inner, axis=1)
        above = np.concatenate([np.ones_like(reached[:, :1]), reached[:, :-1]], axis=1)
        earned = np.cumsum(reached, axis=1) - reached
        total: Array = (earned + above * last).sum(0)
        return total

    def _guess(self) -> Array:
        """[inner or last, depths, widths, budgets]: rates of a row of which nothing is known."""
        offered, accepted = self._total
        either = np.empty(self.grid.shape)
        known: Array | float = FIRST_GUESS
        # Where little was offered, a level is like the one above it, and a last level like others.
        for depth, counts in enumerate(zip(offered.sum(0), accepted.sum(0), strict=True)):
            known = either[depth] = _shrunk(*counts, known, TOTAL_PRIOR)
        return _shrunk(offered, accepted, either, KIND_PRIOR)


def _shrunk(offered: Array, accepted: Array, guess: Array | float, weight: float) -> Array:
    """Rates of acceptance that start from a ``guess`` worth ``weight`` offers."""
    rates: Array = (accepted + weight * guess) / (offered + weight)
    return rates
