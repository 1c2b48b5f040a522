"""What cycles really take beside what was measured beforehand, for each size of batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from jakiro.engine.acceptance import Array
from jakiro.engine.account import Account

PACE_WEIGHT = 0.08
"""Of the newest cycle in the averages of time."""


@dataclass(slots=True)
class Pace:
    """Measured over predicted time, averaged."""

    value: float = 1.0
    count: int = 0

    def learn(self, measured: float, predicted: float, bound: float = 2.0) -> None:
        """At most ``bound`` times as much as before is believed: a stall of the machine, or the
        first use of a size, is no cost of the plan."""
        ratio = min(measured / max(predicted, 1e-6), bound * self.value)
        self.count += 1
        self.value += max(PACE_WEIGHT, 1 / self.count) * (ratio - self.value)


class Levels:
    """How often drafts that may be deeper are: they end where the text hardly goes, or where no
    node could be kept."""

    def __init__(self, num_depths: int) -> None:
        self._goes_on = np.ones(num_depths)

    def learn(self, deepest: int, last: int) -> None:
        """A draft that might have had ``last`` levels ended at the level ``deepest``."""
        for level in range(1, min(deepest + 1, last)):
            share = float(self._goes_on[level - 1])
            self._goes_on[level - 1] += PACE_WEIGHT * ((deepest > level) - share)

    def expected(self, draft: Array) -> Array:
        """Of the times ``draft`` [depths, ..] of that many levels those to expect of drafts that
        may have so many."""
        reached = np.append(1.0, self._goes_on[:-1].cumprod())
        times: Array = (reached[:, None] * np.diff(draft, axis=0, prepend=0.0)).cumsum(0)
        return times


@dataclass(slots=True)
class Size:
    """What was learnt with batches of about one size, and what drafts saved there. A draft that was
    not made yet is as fast or slow as others."""

    plain: Pace
    account: Account
    levels: Levels
    drafted: Pace = field(default_factory=Pace)
    drafting: Pace = field(default_factory=Pace)

    def of(self, pace: Pace) -> float:
        return pace.value if pace.count else self.plain.value
