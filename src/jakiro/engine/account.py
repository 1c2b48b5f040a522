"""What drafting may lose against plain decoding: an account, in plain cycles."""

from __future__ import annotations

SHARE = 0.005
"""Of plain cycles, which drafts may lose."""
START, START_TOGETHER, MOST = 3.0, 1.5, 32.0
"""On the account to begin with, of one row and of several, and at most. A batch takes hardly more
cycles than one of its texts alone, so of these a start is a larger share than of one by one."""
STAKE = 1 / 3
"""Of the balance, which one draft may lose: bad luck makes drafts smaller, and does not end them
as soon as a few large ones have failed."""


class Account:
    """Drafts earn what they save over plain decoding, and may lose what is there.

    However wrong the guesses of acceptance are, what is lost is then at most the start, ``SHARE``
    of the plain cycles, and what drafts have saved before. Of the costs it is what a cycle takes
    that is booked, not what was guessed. ``is_alone``: of one row.
    """

    def __init__(self, is_alone: bool = True) -> None:
        self.balance = START if is_alone else START_TOGETHER

    def stake(self, least: float) -> float:
        """How much a draft may lose if nothing of it is accepted, where the smallest one that
        should pay, or the smallest if none should, loses ``least``: that one is made as long as
        the balance covers it."""
        return max(STAKE * self.balance, min(self.balance, least))

    def book(self, saved: float) -> None:
        """A cycle with a draft."""
        self.balance = min(self.balance + saved, MOST)

    def rest(self) -> None:
        """A cycle without a draft."""
        self.book(SHARE)
