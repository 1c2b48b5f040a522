"""What cycles really take beside what was measured beforehand, for each size of batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from jakiro.engine.account import Account

PACE_WEIGHT = 0.08
"""Of the newest cycle in the averages of time."""
PROGRESS_MEMORY = 0.95
"""What is left of earlier drafts after a further one."""
PROGRESS_PRIOR = 4.0
"""How many tokens the guess is worth that all rows progress alike."""


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
class Progress:
    """Of the tokens that drafts bring a row on average, what brings the batch as a whole nearer to
    its end. Rows take turns in being the slowest: over a few drafts that is far less than it will
    be over many, so what is known at first is worth little."""

    average: float = PROGRESS_PRIOR
    whole: float = PROGRESS_PRIOR

    @property
    def share(self) -> float:
        """The slowest row may catch up for a while, which is no more than all of it counting."""
        return min(1.0, self.whole / self.average)

    def learn(self, average: float, whole: float) -> None:
        """What one draft brought, in tokens."""
        self.average = PROGRESS_MEMORY * self.average + average
        self.whole = PROGRESS_MEMORY * self.whole + whole


@dataclass(slots=True)
class Size:
    """What was learnt with batches of about one size, and what drafts saved there. A draft that was
    not made yet is as fast or slow as others."""

    plain: Pace
    account: Account = field(default_factory=Account)
    drafted: Pace = field(default_factory=Pace)
    drafting: Pace = field(default_factory=Pace)
    progress: Progress = field(default_factory=Progress)

    def of(self, pace: Pace) -> float:
        return pace.value if pace.count else self.plain.value
