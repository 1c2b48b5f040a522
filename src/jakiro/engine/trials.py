"""What is done in each cycle: mostly what is expected to be best, and now and then something else,
as only what is done is seen. An ``account`` says how much may be lost by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jakiro.engine.acceptance import Array, Choice
from jakiro.engine.pace import Size

WAITS = (8, 96)
"""Cycles until what is not being done is tried, at first and at most; they double."""
HOPE = 1.5
"""How many times as good as expected a part that is tried may turn out. To be surer of one of which
even that were less than what is done now costs more than it can bring: the whole of a batch takes
as long as several plain cycles."""
PLAIN_FIRST, PLAIN_EVERY = 2, 96
"""Plain cycles before the first draft of a size of batch, and at most so many drafts until the next
one: all else is compared with them. The fewer there were, the sooner: at first after four times as
many drafts, twice as many with each."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of the parts of a plan, [depths, budgets] each."""

    num_rows: int
    levels: npt.NDArray[np.int64]
    """That there may be."""
    rates: Array
    """Tokens per ms."""
    cycle_ms: Array
    plain_ms: float
    """Of a cycle without a draft."""
    best: Choice
    choice: Choice | None
    """What is done by default. None: plain decoding."""
    least: float
    """Plain cycles that are lost if nothing is accepted by the smallest part that should pay, or by
    the smallest if none should."""

    @property
    def plain(self) -> float:
        """Tokens per ms without a draft."""
        return self.num_rows / self.plain_ms

    def loss(self, part: Choice) -> float:
        """Plain cycles that are lost if nothing is accepted."""
        return self.cycle_ms.item(part) / self.plain_ms - 1

    def most(self, part: Choice) -> float:
        """Tokens per ms if all levels are accepted."""
        return self.num_rows * (1 + self.levels.item(part)) / self.cycle_ms.item(part)


class Trials:
    """When which part is drafted; the ``whole`` is the last of them."""

    def __init__(self, whole: Choice) -> None:
        self._whole = whole
        self._wait = self._left = WAITS[0]
        # Drafts of which all levels were accepted until the whole is drafted.
        self._rise_wait = self._rise_left = 1
        self._num_probes = 0
        # Cycles with a draft since the last one without.
        self.num_drafts = 0

    def begin(self) -> None:
        """A text begins while drafting is off, and may be of another kind."""
        self._left = min(self._left, WAITS[0])

    def turn(self) -> None:
        """Drafting begins or ends."""
        self._wait = self._left = WAITS[0]

    def repeat(self) -> None:
        """What was tried was better than what is done: the same again at once."""
        self._wait, self._left = WAITS[0], 1

    def see(self, part: Choice, is_accepted: bool, is_better: bool) -> None:
        """Of one row a ``part`` was drafted; with ``is_accepted`` all its levels were, with
        ``is_better`` it brought more than what is done now is expected to.

        An accepted part says nothing of what it is a part of, so the whole is drafted next: ever
        rarer while that brings less, and sooner again while it brings more."""
        if part == self._whole:
            wait = self._rise_wait // 2 if is_better else 2 * self._rise_wait
            self._rise_wait = self._rise_left = min(max(1, wait), WAITS[0])
        elif is_accepted:
            self._rise_left -= 1

    def next(self, outlook: Outlook, size: Size) -> Choice | None:
        """A plain cycle where one is due; else the choice, or something else now and then. Where
        the account allows no draft of that size, the best one that it allows."""
        self._left -= 1
        if self.num_drafts >= _until_plain(size.plain.count):
            return None
        wanted, most = outlook.choice, size.account.stake(outlook.least)
        is_due = self._rise_left <= 0 and outlook.num_rows == 1
        if wanted is not None and is_due:
            can_pay = outlook.most(self._whole) > outlook.rates[wanted]
            if can_pay and outlook.loss(self._whole) <= most:
                return self._whole
        if self._left <= 0:
            other = _best_within(outlook, most) if wanted is None else self._other(outlook, wanted)
            if other is not None and outlook.loss(other) <= most:
                self._left = self._wait = min(2 * self._wait, WAITS[1])
                self._num_probes += 1
                return other
        if wanted is None or outlook.loss(wanted) <= most:
            return wanted
        smaller = _best_within(outlook, most)
        pays = smaller is not None and outlook.rates[smaller] > outlook.plain
        return smaller if pays else None

    def _other(self, outlook: Outlook, choice: Choice) -> Choice | None:
        """What is not done at present: mostly one level and twice the nodes, else the whole; only
        what there is some hope of."""
        depth, budget = choice
        more = min(depth + 1, self._whole[0]), min(budget + 1, self._whole[1])
        tried = (more,) if self._num_probes % 3 else (self._whole, more)
        return next(
            (part for part in tried if HOPE * outlook.rates[part] > outlook.rates[choice]), None
        )


def _until_plain(num_plain: int) -> int:
    """Drafts between two plain cycles, of which there were so many."""
    # A power of all that a server has ever made would be a number of a million digits.
    most = min(PLAIN_EVERY, 2 ** min(num_plain + 1, 7))
    return most if num_plain >= PLAIN_FIRST else 0


def _best_within(outlook: Outlook, most: float) -> Choice | None:
    """Of the parts that lose at most so much if nothing is accepted."""
    is_within = outlook.cycle_ms / outlook.plain_ms - 1 <= most
    return largest(np.where(is_within, outlook.rates, 0.0)) if is_within.any() else None


def largest(rates: Array) -> Choice:
    """Where the most is."""
    return divmod(int(rates.argmax()), int(rates.shape[1]))
