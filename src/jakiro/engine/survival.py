"""How many of the levels that a draft may have it makes.

A tree ends where the text hardly goes, or where no node of a level could be kept. So of what a deep
draft may cost, only a part is mostly spent, and how large that part is depends on the text. A draft
that may have many levels says what each shallower one would have made.
"""

from __future__ import annotations

from jakiro.engine.acceptance import Choice, Grid

MEMORY = 0.98
"""What is left of the counts after a further draft."""
PRIOR = 2.0
"""How many drafts the guess is worth that a level is like others."""


class Survival:
    """Counts of all drafts so far."""

    def __init__(self, grid: Grid) -> None:
        # Drafts that had a level and might have had one more, and those that had; by depth and
        # budget, of which there are too few for arrays to be faster.
        depths, budgets = grid.shape
        self._asked = [[0.0] * budgets for _ in range(depths)]
        self._went = [[0.0] * budgets for _ in range(depths)]
        # What the next draft is worth; older ones are forgotten when somebody asks.
        self._weight = 1.0

    def count(self, part: Choice, most: int, made: int) -> None:
        """A draft of ``part`` had ``made`` of at most ``most`` levels."""
        self._weight /= MEMORY
        for asked in self._asked[: min(max(1, made), most - 1)]:
            asked[part[1]] += self._weight
        for went in self._went[: made - 1 if made else 0]:
            went[part[1]] += self._weight

    def shares(self) -> list[list[float]]:
        """[depths, budgets]: of drafts that may have so many levels, how many have them. What was
        not seen of a budget is like it is for others, and what was not seen at all like the level
        above; drafts of which nothing is known make all of their levels."""
        self._forget()
        shares, going = [[1.0] * len(self._asked[0])], 1.0
        for asked, went in zip(self._asked[:-1], self._went, strict=False):
            going = (sum(went) + PRIOR * going) / (sum(asked) + PRIOR)
            guess = PRIOR * going
            each = zip(shares[-1], asked, went, strict=True)
            shares.append([share * (w + guess) / (a + PRIOR) for share, a, w in each])
        return shares

    def _forget(self) -> None:
        for counts in (*self._asked, *self._went):
            counts[:] = [count / self._weight for count in counts]
        self._weight = 1.0
