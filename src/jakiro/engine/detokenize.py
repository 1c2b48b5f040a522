"""Tokens to text, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no character (yet)."""


class Tokenizer(Protocol):
    """The one method of a tokenizer this room needs."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str: ...


class Detokenizer:
    """Grows the text of one answer and looks for stop strings in it.

    Decoding is done on a short suffix only: from the token before the last one whose text was
    complete, because what a token looks like may depend on its left neighbour. Text that ends in
    an unfinished character is held back. Without stop strings nothing is decoded before it is
    asked for.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._prefix = 0
        self._read = 0
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
        self._read_on(is_last=True)

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

    def _read_on(self, is_last: bool = False) -> None:
        """Decode the tokens not read yet, but not the last ones if they end within a character."""
        if self.is_stopped or self._read == len(self._ids):
            return
        before = self._decode(self._prefix, self._read)
        for end in range(len(self._ids), self._read, -1):
            after = self._decode(self._prefix, end)
            if is_last or not after.endswith(REPLACEMENT):
                break
        else:
            return
        self._prefix, self._read = self._read, end
        searched, self._text = len(self._text), self._text + after[len(before) :]
        starts = (self._text.find(s, max(0, searched - len(s) + 1)) for s in self._stop)
        found = [start for start in starts if start >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.is_stopped = True

    def _decode(self, start: int, end: int) -> str:
        return self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)
