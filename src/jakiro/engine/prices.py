"""What a cycle with each part of a plan costs now.

Costs are known beforehand (``costs``), of drafts that have all their levels and of nodes that are
there. What drafts really have of both is counted, and what cycles really take corrects the times
(``pace``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np

from jakiro.engine.acceptance import Array, Choice, Grid
from jakiro.engine.costs import Costs
from jakiro.engine.pace import PACE_WEIGHT, Size
from jakiro.engine.survival import Survival
from jakiro.tree.shapes import TreePlan


@dataclass(frozen=True, slots=True)
class _Sheet:
    """The costs for one number of rows, in ms."""

    verify: list[float]
    """[nodes], from 0 on, at the measured context."""
    slope: list[float]
    """[nodes]: per further committed token."""
    levels: Array
    """[depths, levels, budgets]: of a part of that depth, what each of its levels costs."""
    made: list[list[list[float]]]
    """And what those up to a level do."""
    shared: float
    """The part of a plain cycle that is the same however many rows there are."""


class Prices:
    """Of the parts of ``plan``, for batches of as many rows as were entered last."""

    def __init__(self, plan: TreePlan, costs: Costs) -> None:
        self.grid = grid = Grid.of(plan)
        depths, budgets = grid.shape
        # No level of a tree of b nodes has more than b.
        self.plans = {
            (d, b): plan.limited(d + 1, budget, budget)
            for d in range(depths)
            for b, budget in enumerate(grid.budgets)
        }
        levels = [min(part.depth, part.budget) for part in self.plans.values()]
        self.levels = np.array(levels).reshape(grid.shape)
        self._nodes = [[self.plans[d, b].num_nodes for b in range(budgets)] for d in range(depths)]
        # Some drafters feed nodes beside their draft; four times the plan holds them all.
        self._counted = np.arange(4 * (plan.num_nodes + 16), dtype=np.float64)
        self._costs = costs
        self._sheets: dict[int, _Sheet] = {}
        # Committed tokens of a row, and the share of the nodes of a part that drafts of it have.
        self.context, self._fill = 0.0, 1.0
        self._survival = Survival(grid)
        self.enter(1)

    def enter(self, num_rows: int) -> None:
        """Batches have so many rows from now on."""
        if num_rows not in self._sheets:
            self._sheets[num_rows] = self._sheet_of(num_rows)
        self._sheet = self._sheets[num_rows]

    @property
    def shared(self) -> float:
        """The part of a plain cycle that is the same however many rows there are."""
        return self._sheet.shared

    def count(self, part: Choice, most: int, made: int, num_nodes: int) -> None:
        """A draft of ``part`` had ``made`` of at most ``most`` levels, and the root with it
        ``num_nodes`` nodes."""
        filled = (num_nodes - 1) / self.plans[most - 1, part[1]].num_nodes
        self._fill += PACE_WEIGHT * (filled - self._fill)
        self._survival.count(part, most, made)

    def cycle_ms(self, size: Size) -> Array:
        """[depths, budgets]: of a cycle with such a draft."""
        pace, sizes = size.of(size.drafted), set(chain.from_iterable(self._nodes))
        rest = {nodes: pace * self.rest_ms(round(1 + self._fill * nodes)) for nodes in sizes}
        others: Array = np.array([[rest[n] for n in row] for row in self._nodes])
        return self.draft_ms(size) + others

    def draft_ms(self, size: Size) -> Array:
        """[depths, budgets]: of the draft alone."""
        made = self._sheet.levels * np.array(self._survival.shares())
        drafts: Array = size.of(size.drafting) * made.sum(1)
        return drafts

    def plain_ms(self, size: Size) -> float:
        """Of a cycle without a draft."""
        return size.plain.value * self.rest_ms(1)

    def made_ms(self, made: int, most: int, budget: int) -> float:
        """Of a draft that had ``made`` of at most ``most`` levels, by its place in the grid's
        budgets: as measured beforehand, without correction."""
        return self._sheet.made[most - 1][made - 1][budget]

    def rest_ms(self, nodes: int) -> float:
        """Of all of a cycle but drafting, without correction."""
        sheet, more = self._sheet, max(0.0, self.context - self._costs.context)
        nodes = min(nodes, len(sheet.verify) - 1)
        return sheet.verify[nodes] + more * sheet.slope[nodes]

    def _sheet_of(self, num_rows: int) -> _Sheet:
        verify, slope = self._costs.verify(num_rows, self._counted)
        depths = np.arange(1, self.grid.num_depths + 1, dtype=np.float64)
        widths = [self.plans[0, b].width for b in range(len(self.grid.budgets))]
        draft = self._costs.draft(num_rows, depths, np.array(widths, dtype=np.float64))
        # Rows leave one by one: what the later half of them costs counts, and not the step from one
        # row to several, which kernels make steep.
        half, together = num_rows // 2, verify.item(1)
        few = self._costs.verify(half, self._counted)[0].item(1) if half else together
        row = max(0.0, together - few) / (num_rows - half)
        levels = _by_level(draft, self._costs.free_levels)
        made = levels.cumsum(1).tolist()
        return _Sheet(verify.tolist(), slope.tolist(), levels, made, 1 - num_rows * row / together)


def _by_level(draft: Array, num_free: int) -> Array:
    """[depths, levels, budgets] from ``draft`` [depths, budgets], which is of drafts that have all
    their levels. A part has its free levels at its end, which a draft that ends early does not
    reach. What they cost is the step from one level to the next ones: the shallowest parts have
    nothing else behind their first level."""
    steps, found = np.diff(draft, axis=0, prepend=0.0), np.zeros((len(draft), *draft.shape))
    for depth in range(1, len(draft) + 1):
        free = min(num_free, depth - 1)
        found[depth - 1, :depth] = np.concatenate(
            [steps[:1], steps[1 + free : depth], steps[1 : 1 + free]]
        )
    return found
