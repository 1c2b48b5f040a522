"""What cycles really take beside what was measured beforehand, for each size of batch."""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(slots=True)
class Size:
    """What was learnt with batches of about one size, and what drafts saved there. A draft that was
    not made yet is as fast or slow as others."""

    plain: Pace
    account: Account
    drafted: Pace = field(default_factory=Pace)
    drafting: Pace = field(default_factory=Pace)

    def of(self, pace: Pace) -> float:
        return pace.value if pace.count else self.plain.value
