"""How many of the levels that a draft may have it makes.

A tree ends where the text hardly goes, or where no node of a level could be kept. So of what a deep
draft may cost, only a part is mostly spent, and how large that part is depends on the text. A draft
that may have many levels says what each shallower one would have made.
"""

from __future__ import annotations

import numpy as np

from jakiro.engine.acceptance import Array, Choice, Grid

MEMORY = 0.98
"""What is left of the counts after a further draft."""
PRIOR = 2.0
"""How many drafts the guess is worth that a level is like others."""


class Survival:
    """Counts of all drafts so far."""

    def __init__(self, grid: Grid) -> None:
        # Drafts that had a level and might have had one more, and those that had; by depth and
        # budget.
        self._asked, self._went = np.zeros(grid.shape), np.zeros(grid.shape)

    def count(self, part: Choice, most: int, made: int) -> None:
        """A draft of ``part`` had ``made`` of at most ``most`` levels."""
        self._asked *= MEMORY
        self._went *= MEMORY
        self._asked[: min(max(1, made), most - 1), part[1]] += 1
        self._went[: made - 1 if made else 0, part[1]] += 1

    def shares(self) -> Array:
        """[depths, budgets]: of drafts that may have so many levels, how many have them. What was
        not seen of a budget is like it is for others, and what was not seen at all like the level
        above; drafts of which nothing is known make all of their levels."""
        shares, going = np.ones_like(self._asked), 1.0
        for level, (asked, went) in enumerate(zip(self._asked[:-1], self._went, strict=False)):
            going = float((went.sum() + PRIOR * going) / (asked.sum() + PRIOR))
            shares[level + 1] = shares[level] * (went + PRIOR * going) / (asked + PRIOR)
        return shares
