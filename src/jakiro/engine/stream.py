"""Answers piece by piece: what is new of a request, and its way to a reader in another thread."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from jakiro.engine.request import Completion, Request
from jakiro.engine.trace import Cycle
from jakiro.errors import RowFailed


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer; ``completion`` comes with the last one."""

    text: str
    token_ids: list[int]
    completion: Completion | None = None
    cycles: Sequence[Cycle] = ()
    """Those that brought the tokens, if the request is traced; the first token of an answer comes
    from no cycle."""


class Tail:
    """Reads a request that is being answered: each call of ``next`` gives what is new."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._num_tokens = self._num_chars = self._num_cycles = 0

    def next(self) -> Chunk:
        """The tokens since the last call and the text that no stop string can take back; with the
        completion if the request is over."""
        request, text = self._request, self._request.detokenizer
        is_over = request.finish_reason is not None
        piece = ""
        if text is not None:
            end = len(text.text) if is_over else text.num_safe
            piece = text.text[self._num_chars : end]
            self._num_chars = max(end, self._num_chars)
        tokens = request.token_ids[self._num_tokens :]
        self._num_tokens += len(tokens)
        cycles = request.cycles[self._num_cycles :]
        self._num_cycles += len(cycles)
        return Chunk(piece, tokens, request.completion() if is_over else None, cycles)


class Stream:
    """The answer to one request of a ``Scheduler``: read it once, by ``for`` or ``async for``.

    Both end after the chunk that carries the completion. Raises, after that chunk:
        RowFailed: the request could not be finished; what was good has been given out.
    """

    def __init__(self, request: Request, wake: Callable[[], None], ends_at: float) -> None:
        self.request = request
        """Filled by the scheduler's thread; to be read only, and whole once the stream ends."""
        self.ends_at = ends_at
        """Its deadline on the clock ``time.monotonic``; inf: none."""
        self.is_cancelled = False
        self._wake = wake
        self._tail = Tail(request)
        self._chunks: deque[Chunk] = deque()
        self._changed = threading.Condition()
        self._waiter: Callable[[], None] | None = None
        self._is_read = False

    def cancel(self) -> None:
        """Give the request up, from any thread; its last chunk says ``cancelled``."""
        self.is_cancelled = True
        self._wake()

    def deliver(self) -> None:
        """Hand what is new to the reader (the scheduler calls this between steps)."""
        chunk = self._tail.next()
        if chunk.token_ids or chunk.text or chunk.completion is not None:
            with self._changed:
                self._chunks.append(chunk)
                self._changed.notify_all()
                if self._waiter is not None:
                    self._waiter()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        self._check_end(StopIteration)
        with self._changed:
            self._changed.wait_for(lambda: self._chunks)
            return self._pop()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        self._check_end(StopAsyncIteration)
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        with self._changed:
            if self._chunks:
                return self._pop()
            self._waiter = lambda: _call_soon(loop, ready.set)
        try:
            await ready.wait()
        finally:
            with self._changed:
                self._waiter = None
        with self._changed:
            return self._pop()

    def _pop(self) -> Chunk:
        chunk = self._chunks.popleft()
        self._is_read = chunk.completion is not None
        return chunk

    def _check_end(self, end: type[Exception]) -> None:
        if self._is_read:
            if self.request.error is not None:
                raise RowFailed(self.request.error)
            raise end


def _call_soon(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    """A reader whose loop is gone is no concern of the others."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(work)
