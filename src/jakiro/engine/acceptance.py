"""How often drafted nodes are accepted, by depth and by the smallest tree that would hold them.

An accepted node says more than that its own tree was good: its rank in the tree, by the drafter's
own scores, tells which smaller trees would have held it, too. So one draft is evidence for every
plan within the one it had. What deeper levels would have brought is not seen; the rates are
therefore kept *given that the parent was accepted*, and a depth that is not drafted for a while
keeps its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree

Choice = tuple[int, int]
"""A part of a plan: indices of its depth and budget in the grid."""
Array = npt.NDArray[np.float64]

MEMORY = 0.99
"""What is left of the counts of all requests after a further offer."""
ROW_MEMORY = 0.95
"""And of those of one, which may change its subject."""
PRIOR = 3.0
"""How many offers the guess is worth that a level is like the one above it."""
FIRST_GUESS = 0.4
"""Of failures, on the first level of a tree of one node."""
NODE_GUESS = 0.5
"""More nodes make failures fewer by this power of their number."""
ROW_PRIOR = 1.0
"""How many failures the guess is worth that a request is like all others."""
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
        return cls(plan.depth, (*(b for b in _BUDGETS if b < plan.budget), plan.budget))

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_depths, len(self.budgets)


_BUDGETS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)


def needed(tree: TokenTree, paths: list[list[int]], num_depths: int) -> Array:
    """[B, ``num_depths`` + 1]: the budget of the smallest tree that holds the first d accepted
    nodes of each row's path (root first); infinite where fewer were accepted.

    Scores rank nodes; without them their order does.
    """
    size = tree.num_nodes
    order = -np.arange(size, dtype=np.float64)[None] if tree.scores is None else _host(tree.scores)
    order = np.where(_host(tree.valid) > 0, order, -np.inf)
    order[:, 0] = np.inf
    # A stable sort: of equal nodes the one made first is kept.
    ranks = np.argsort(np.argsort(-order, axis=1, kind="stable"), axis=1)
    found = np.full((len(paths), num_depths + 1), np.inf)
    for row, path in enumerate(paths):
        held = np.maximum.accumulate(ranks[row, path[: num_depths + 1]])
        found[row, : len(held)] = held
    return found


def _host(values: Tensor) -> Array:
    return values.double().cpu().numpy()


class Acceptance:
    """Counts of the rows of a batch, and of all requests so far."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._budgets = np.array(grid.budgets, dtype=np.float64)
        # Offers, each as large as its row makes failures likely, and failures, by depth and budget;
        # the last level of a draft is not among them.
        self._all = np.zeros((2, *grid.shape))
        # Per row: failures expected of it if it were like all, and those that came.
        self._rows = np.zeros((0, 2))
        # Of last levels: nodes expected if they were like others, and those accepted.
        self._last = np.zeros(2)
        # As of the last time that somebody asked for gains, which is often enough for counting.
        self._failing = self._made_failing()

    @property
    def num_rows(self) -> int:
        """Rows whose gains are summed: at least one."""
        return max(1, len(self._rows))

    def begin(self) -> None:
        """Append one row, of which nothing is known."""
        self._rows = np.concatenate([self._rows, np.zeros((1, 2))])

    def keep(self, rows: list[int]) -> None:
        self._rows = self._rows[rows]

    def fade(self, num_cycles: int) -> None:
        """So many cycles went by without a draft: what rows were like is less sure."""
        self._rows *= ROW_MEMORY**num_cycles

    def count(self, needed: Array, part: Choice, depths: list[int], last: int) -> None:
        """A draft of a ``part`` of the plan whose last level was ``last``; per row its deepest
        level, and of the accepted nodes what budgets they ``needed``."""
        levels = np.arange(self.grid.num_depths)
        was_there = levels < np.array(depths)[:, None]
        within = self._budgets <= self._budgets[part[1]]
        held = needed[:, :, None] <= self._budgets
        offered = held[:, :-1] & was_there[:, :, None] & within
        accepted = held[:, 1:] & offered
        factors, failing = self._factors(), self._failing
        if last > 1:
            place = last - 1, part[1]
            of_last = offered[:, *place]
            expected = float(of_last @ (1 - np.minimum(1.0, factors * failing[place])))
            came = float(accepted[:, *place].sum())
            self._last = MEMORY ** float(of_last.sum()) * self._last + (expected, came)
            offered[:, last - 1] = accepted[:, last - 1] = False
        failed = offered & ~accepted
        new = np.stack([(offered * factors[:, None, None]).sum(0), failed.sum(0)])
        # Larger trees that were not offered are forgotten with the rest of their level, so that
        # they are tried again; levels that were not are remembered.
        left = MEMORY ** offered.sum(0).max(-1, keepdims=True)
        self._all = left * self._all + new
        whole = offered[:, :, part[1]]
        of_rows = np.stack([whole @ failing[:, part[1]], failed[:, :, part[1]].sum(1)], 1)
        self._rows = ROW_MEMORY ** whole.sum(1)[:, None] * self._rows + of_rows

    def gains(self) -> Array:
        """[depths, budgets]: accepted tokens to expect of a draft, summed over the rows; without
        any, those of one of which nothing is known."""
        factors = self._factors() if len(self._rows) else np.ones(1)
        self._failing = self._made_failing()
        inner = 1 - np.minimum(1.0, factors[:, None, None] * self._failing)
        reached = np.cumprod(inner, axis=1)
        above = np.concatenate([np.ones_like(reached[:, :1]), reached[:, :-1]], axis=1)
        # A last level may be made in another way than others; the first one never is.
        expected, accepted = self._last
        likeness = np.full((self.grid.num_depths, 1), _shrunk(expected, accepted, 1, LAST_PRIOR))
        likeness[0] = 1.0
        last = np.minimum(1.0, likeness * inner)
        total: Array = (np.cumsum(reached, axis=1) - reached + above * last).sum(0)
        return total

    def _factors(self) -> Array:
        """[rows]: how many times as often as others each fails."""
        return _shrunk(self._rows[:, 0], self._rows[:, 1], 1, ROW_PRIOR)

    def _made_failing(self) -> Array:
        """[depths, budgets]: chance that no child is accepted of an accepted node that has more
        than one level below it; 1 where not even its ancestors have room."""
        failing = np.ones(self.grid.shape)
        # Where little was offered, a level fails in proportion to the one above it.
        shape = FIRST_GUESS * self._budgets**-NODE_GUESS
        for depth, (offered, failed) in enumerate(zip(*self._all, strict=True)):
            scale = _shrunk(offered @ shape, failed.sum(), 1.0, PRIOR * shape.sum())
            has_room = self._budgets > depth
            failing[depth, has_room] = _shrunk(offered, failed, scale * shape, PRIOR)[has_room]
            shape = failing[depth]
        return failing


def _shrunk(
    offered: Array | float, counted: Array | float, guess: Array | float, weight: float
) -> Array:
    """Shares of what was offered that start from a ``guess`` worth ``weight`` offers."""
    return np.asarray((counted + weight * guess) / (offered + weight))
