"""Tokens to text, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no character (yet)."""

_LONGEST = 4
"""Bytes of a character in UTF-8, and so tokens at most."""


class Tokenizer(Protocol):
    """The one method of a tokenizer this room needs."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str: ...


class Detokenizer:
    """Grows the text of one answer to ``prompt_ids`` and looks for stop strings in it.

    Decoding is done on a short suffix only: from the token before the last one whose text was
    complete, because what a token looks like may depend on its left neighbour; that of the first
    one is in the prompt. Text that ends in an unfinished character is held back. Tokens are read
    one by one, so that the text does not depend on when it is asked for; without stop strings
    nothing of the answer is decoded before.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), prompt_ids: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids = self._end_of(prompt_ids)
        self._prefix = 0
        self._read = self._tried = len(self._ids)
        self._text = ""
        self.is_stopped = False
        """A stop string is complete."""

    def push(self, token: int) -> None:
        """Add one token. A stop string must be found at the token that completes it."""
        self._ids.append(token)
        if self._stop:
            self._read_on()

    def finish(self) -> None:
        """No more tokens: let out what was held back as an unfinished character."""
        self._read_on()
        if not self.is_stopped and self._read < self._tried:
            self._release(self._tried, self._decoded(self._tried), self._read)

    @property
    def text(self) -> str:
        """All complete text so far, cut before a stop string once one is found."""
        self._read_on()
        return self._text

    @property
    def num_safe(self) -> int:
        """Characters of ``text`` that no stop string can still take back."""
        text, held = self.text, 0
        for stop in () if self.is_stopped else self._stop:
            for size in range(min(len(stop) - 1, len(text)), held, -1):
                if text.endswith(stop[:size]):
                    held = size
                    break
        return len(text) - held

    def _end_of(self, prompt_ids: Sequence[int]) -> list[int]:
        """The shortest end of a prompt that is whole characters; [] if there is none."""
        ends = (list(prompt_ids[-size:]) for size in range(1, _LONGEST + 1))
        return next((ids for ids in ends if REPLACEMENT not in self._decode(ids)), [])

    def _read_on(self) -> None:
        """Decode the tokens not read yet, but not the last ones if they end within a character."""
        while not self.is_stopped and self._tried < len(self._ids):
            self._tried += 1
            text = self._decoded(self._tried)
            if not text.endswith(REPLACEMENT):
                self._release(self._tried, text, self._read)
            elif self._tried - self._read == _LONGEST:
                # The first of them is in no unfinished character, but perhaps in a broken one.
                end = self._read + 1
                self._release(end, self._decoded(end), max(self._prefix, end - _LONGEST + 1))

    def _release(self, end: int, text: str, prefix: int) -> None:
        """Read on to ``end``, before which ``text`` is decoded; what follows, from ``prefix``."""
        new = text[len(self._decoded(self._read)) :]
        self._prefix, self._read = prefix, end
        searched, self._text = len(self._text), self._text + new
        starts = (self._text.find(s, max(0, searched - len(s) + 1)) for s in self._stop)
        found = [start for start in starts if start >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.is_stopped = True

    def _decoded(self, end: int) -> str:
        return self._decode(self._ids[self._prefix : end])

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
