"""What drafting may lose against plain decoding: an account, in plain cycles."""

from __future__ import annotations

SHARE = 0.005
"""Of plain cycles, which drafts may lose."""
START, MOST = 1.0, 32.0
"""On the account to begin with, and at most."""


class Account:
    """Drafts earn what they save over plain decoding, and may lose what is there: one that would
    lose more than ``balance`` if nothing of it were accepted is not made.

    However wrong the guesses of acceptance are, what is lost is then at most the start, ``SHARE``
    of the plain cycles, and what drafts have saved before. Of the costs it is what a cycle takes
    that is booked, not what was guessed.
    """

    def __init__(self) -> None:
        self.balance = START

    def book(self, saved: float) -> None:
        """A cycle with a draft."""
        self.balance = min(self.balance + saved, MOST)

    def rest(self) -> None:
        """A cycle without a draft."""
        self.book(SHARE)
