"""Many users, one engine: the thread that steps it, and the line in front of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from jakiro.engine.engine import Engine
from jakiro.engine.prompt import Prompt
from jakiro.engine.stream import Stream
from jakiro.errors import Busy, Closed, ConfigError
from jakiro.sampling.params import SamplingParams
from jakiro.typing import LogitsProcessor

_SMOOTHING = 0.1
"""Weight of the newest step in the running estimate of the speed."""
_FIRST_GUESS_S = 1.0
"""What a caller is told to wait before any step was measured."""


class Scheduler:
    """Owns an engine and the one thread that steps it; every method may be called from any thread.

    Requests join and leave between cycles, in the order they came. ``max_waiting`` requests may be
    open besides the ``max_batch_size`` that are answered together; further ones are refused with
    ``Busy``. The other settings become those of the ``Limits`` of ``engine``.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int = 64,
        prefill_chunk: int = 512,
        kv_tokens: int | None = None,
        prefix_bytes: int = 256 << 20,
    ) -> None:
        if max_waiting < 0:
            raise ConfigError(f"max_waiting must not be negative, got {max_waiting}")
        engine.limits = replace(
            engine.limits,
            prefill_chunk=prefill_chunk,
            kv_tokens=kv_tokens,
            prefix_bytes=prefix_bytes,
        )
        self.engine = engine
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._encoding = threading.Lock()
        self._arrived: list[Stream] = []
        self._live: list[Stream] = []
        self._token_s = 0.0
        self._ends_at: float | None = None
        self._end = "the scheduler is shutting down"
        self._thread = threading.Thread(target=self._run, name="jakiro-scheduler", daemon=True)
        self._thread.start()

    def check_room(self, num_more: int = 1) -> None:
        """Raise ``Busy`` or ``Closed`` where so many further requests are not taken now."""
        if self._ends_at is not None:
            raise Closed(f"no more requests are taken: {self._end}")
        if self.num_open + num_more > self.max_open:
            raise Busy(self.num_waiting, self._retry_after_s())

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        processors: Sequence[LogitsProcessor] = (),
        choice_index: int = 0,
        deadline_s: float | None = None,
    ) -> Stream:
        """Queue a request and return its answer to be.

        ``choice_index``: which of several answers to one prompt and seed this is. ``deadline_s``:
        seconds from now after which it ends with what it has, ``finish_reason == "deadline"``.

        Raises:
            ConfigError, PromptError: as ``Engine.generate``.
            Busy: too many wait already; ``retry_after_s`` says when there may be a place.
            Closed: the scheduler is closed, or its thread has died.
        """
        if deadline_s is not None and not deadline_s > 0:
            raise ConfigError(f"deadline_s must be a positive number of seconds, got {deadline_s}")
        self.check_room()
        with self._encoding:
            request = self.engine.prepare(prompt, params, processors, choice_index)
        ends_at = math.inf if deadline_s is None else time.monotonic() + deadline_s
        stream = Stream(request, self._wake, ends_at)
        with self._changed:
            self.check_room()
            self._arrived.append(stream)
            self._changed.notify()
        return stream

    @property
    def is_open(self) -> bool:
        """Takes requests: neither closed nor dead."""
        return self._ends_at is None

    @property
    def num_running(self) -> int:
        """Requests being answered."""
        return self.engine.num_rows

    @property
    def num_waiting(self) -> int:
        """Requests that have not been started."""
        return max(0, self.num_open - self.num_running)

    @property
    def num_open(self) -> int:
        """Requests that are not over."""
        return len(self._arrived) + len(self._live)

    @property
    def max_open(self) -> int:
        """Requests that are taken at most at a time."""
        return self._max_waiting + self.engine.limits.max_batch_size

    def close(self, grace_s: float = 0.0) -> None:
        """Take no more requests; finish those there are, for ``grace_s`` seconds at most, then end
        the others with the reason ``cancelled``. Returns when the thread has ended."""
        with self._changed:
            self._ends_at = time.monotonic() + grace_s
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- from any thread ----------------------------------------------------------------------

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _retry_after_s(self) -> float:
        """Seconds until the first of the running requests must be done, at the present speed."""
        left = [stream.request.num_left for stream in self._live if stream.request.token_ids]
        return min(left) * self._token_s if left and self._token_s else _FIRST_GUESS_S

    # -- in the scheduler's thread ------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._wait():
                self._turn()
        except BaseException as fatal:
            self._end = f"the scheduler's thread died of {type(fatal).__name__}: {fatal}"
            raise
        finally:
            with self._changed:
                self._ends_at = time.monotonic()
                self._live += self._arrived
                self._arrived = []
            for stream in self._live:
                if stream.request.finish_reason is None:
                    stream.request.finish("error", self._end)
                stream.deliver()
            self._live = []

    def _wait(self) -> bool:
        """Sleep until there is work; False: there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._live or self._ends_at is not None)
            for stream in self._arrived:
                self.engine.enqueue(stream.request)
            self._live += self._arrived
            self._arrived = []
            return bool(self._live)

    def _turn(self) -> None:
        """End what has to end, run one step, deliver."""
        now = time.monotonic()
        for stream in self._live:
            if stream.is_cancelled or (self._ends_at is not None and now >= self._ends_at):
                stream.request.cancel()
            elif now >= stream.ends_at:
                stream.request.finish("deadline")
        self._step()
        for stream in self._live:
            stream.deliver()
        self._live = [stream for stream in self._live if stream.request.finish_reason is None]

    def _step(self) -> None:
        """One step of the engine. What it raises has ended the requests it concerns; if it ended
        none, every further step would raise the same."""
        num_over, num_emitted = self._num_over(), self._num_emitted()
        began = time.perf_counter()
        try:
            self.engine.step()
        except Exception:
            if self._num_over() == num_over:
                raise
        num_new = self._num_emitted() - num_emitted
        if num_new and self.num_running:
            token_s = (time.perf_counter() - began) * self.num_running / num_new
            self._token_s += (token_s - self._token_s) * (_SMOOTHING if self._token_s else 1.0)

    def _num_over(self) -> int:
        return sum(stream.request.finish_reason is not None for stream in self._live)

    def _num_emitted(self) -> int:
        return sum(len(stream.request.token_ids) for stream in self._live)
