"""What drafting may lose against plain decoding: an account, in plain cycles."""

from __future__ import annotations

SHARE = 0.01
"""Of plain cycles, which drafts may lose."""
START, MOST = 1.0, 16.0
"""On the account to begin with, and at most."""


class Account:
    """Drafts earn what they save over plain decoding, and may lose what is there.

    However wrong every guess is, what is lost is at most the start, ``SHARE`` of the plain cycles,
    what drafts had saved before, and the last draft.
    """

    def __init__(self) -> None:
        self._balance = START

    def covers(self, loss: float) -> bool:
        """Whether a draft may be made that should lose so much; a negative loss is a gain, which
        pays no debt before it is there."""
        return self._balance >= max(0.0, loss)

    def book(self, saved: float) -> None:
        """A cycle with a draft."""
        self._balance = min(self._balance + saved, MOST)

    def rest(self) -> None:
        """A cycle without a draft."""
        self.book(SHARE)
