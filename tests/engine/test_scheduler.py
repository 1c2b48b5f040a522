"""One thread steps, others submit, read, give up and shut down: nobody waits in vain."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from jakiro.engine.engine import Engine
from jakiro.engine.request import Completion
from jakiro.engine.scheduler import Scheduler
from jakiro.engine.stream import Stream
from jakiro.errors import Busy, Closed, ConfigError, RowFailed
from tests.conformance import world

ROWS = (0, 1, 2, 3)


def truth(row: int) -> list[int]:
    return list(world.truth("llama", "top_p", row))


def engine(max_batch_size: int = 2) -> Engine:
    target = world.target("llama")
    drafter = world.make_feature_drafter(target)
    return world.make_engine(target, drafter, world.TREES["dynamic"], max_batch_size=max_batch_size)


def submit(scheduler: Scheduler, row: int, *processors: Any, **kwargs: Any) -> Stream:
    params = replace(world.params("top_p", row), max_new_tokens=len(truth(row)))
    return scheduler.submit(list(world.prompt(row)), params, processors=processors, **kwargs)


def completion(stream: Stream) -> Completion:
    """Reads it to its end; the pieces add up."""
    chunks = [next(stream)]
    while chunks[-1].completion is None:
        chunks.append(next(stream))
    done = chunks[-1].completion
    assert [token for chunk in chunks for token in chunk.token_ids] == done.token_ids
    with pytest.raises(RowFailed if done.finish_reason == "error" else StopIteration):
        next(stream)
    return done


class Gate:
    """A logits processor that holds up the step, at texts of ``length`` tokens, until opened."""

    def __init__(self, length: int) -> None:
        self._length, self._opened, self._reached = length, threading.Event(), threading.Event()

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if ids.shape[1] >= self._length:
            self._reached.set()
            assert self._opened.wait(60)
        return logits

    def reached(self) -> None:
        assert self._reached.wait(60)

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    with Scheduler(engine(), max_waiting=1) as scheduler:
        yield scheduler


def assert_idle(scheduler: Scheduler) -> None:
    """Everybody has left, and a new request is answered right."""
    assert completion(submit(scheduler, 3)).token_ids == truth(3)
    scheduler.close()
    assert (scheduler.num_open, scheduler.num_running, scheduler.num_waiting) == (0, 0, 0)
    assert scheduler.engine.step() is False
    assert scheduler.engine._batch.cache.lengths == []
    assert scheduler.engine.drafter._cache.lengths == []  # type: ignore[attr-defined]


def test_coroutines_read_what_single_runs_say() -> None:
    async def read(row: int) -> list[int]:
        stream = submit(scheduler, row)
        return [token async for chunk in stream for token in chunk.token_ids]

    async def read_all() -> list[list[int]]:
        return await asyncio.gather(*map(read, ROWS))

    with Scheduler(engine()) as scheduler:
        assert asyncio.run(read_all()) == [*map(truth, ROWS)]
        assert_idle(scheduler)


def test_a_full_line_is_refused_until_there_is_a_place(scheduler: Scheduler) -> None:
    gate = Gate(len(world.prompt(0)) + 3)
    streams = [submit(scheduler, 0, gate), submit(scheduler, 1)]
    gate.reached()
    streams.append(submit(scheduler, 2))
    with pytest.raises(Busy, match="1 requests wait") as refused:
        submit(scheduler, 3)
    assert refused.value.retry_after_s > 0
    gate.open()
    assert [completion(stream).token_ids for stream in streams] == [truth(0), truth(1), truth(2)]
    assert_idle(scheduler)


def test_deadlines_and_cancellation_end_a_request_where_it_is(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=lambda: 100.0, perf_counter=time.perf_counter)
    monkeypatch.setattr("jakiro.engine.scheduler.time", clock)
    gate = Gate(len(world.prompt(0)) + 5)
    late = submit(scheduler, 0, gate, deadline_s=5)
    gone = submit(scheduler, 1)
    waiting = submit(scheduler, 2, deadline_s=5)
    gate.reached()
    clock.monotonic = lambda: 106.0
    gone.cancel()
    gate.open()
    for stream, reason in ((late, "deadline"), (gone, "cancelled"), (waiting, "deadline")):
        done, right = completion(stream), truth((late, gone, waiting).index(stream))
        assert done.finish_reason == reason
        assert done.token_ids == right[: len(done.token_ids)]
        assert (len(done.token_ids) > 0) == (stream is not waiting)
        assert len(done.token_ids) < len(right)
    with pytest.raises(ConfigError, match="deadline_s must be a positive"):
        submit(scheduler, 3, deadline_s=0)
    assert_idle(scheduler)


def test_a_processor_that_raises_fails_its_request_only(scheduler: Scheduler) -> None:
    def broken(ids: Tensor, logits: Tensor) -> Tensor:
        if ids.shape[1] >= len(world.prompt(0)) + 7:
            raise KeyError("no more")
        return logits

    failing, fine = submit(scheduler, 0, broken), submit(scheduler, 1)
    done = completion(failing)
    assert (done.finish_reason, done.error) == ("error", "a processor raised KeyError: 'no more'")
    assert done.token_ids == truth(0)[:7]
    assert completion(fine).token_ids == truth(1)
    assert_idle(scheduler)


@pytest.mark.parametrize("site", ["prefill", "verify"])
def test_memory_that_runs_out_ends_what_it_concerns(
    site: str, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(len(world.prompt(0)) + 3)
    first = submit(scheduler, 0, gate)
    gate.reached()
    honest = getattr(scheduler.engine.target, site)

    def short(*args: Any) -> Any:
        monkeypatch.setattr(scheduler.engine.target, site, honest)
        raise MemoryError("none left")

    monkeypatch.setattr(scheduler.engine.target, site, short)
    second = submit(scheduler, 1)
    gate.open()
    done = [completion(first), completion(second)]
    assert [row.finish_reason for row in done] == [
        "length" if site == "prefill" else "error",
        "error",
    ]
    assert done[1].error == "MemoryError: none left"
    assert_idle(scheduler)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_tells_everybody(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(len(world.prompt(0)) + 3)
    streams = [submit(scheduler, 0, gate), submit(scheduler, 1), submit(scheduler, 2)]
    gate.reached()

    def dead() -> bool:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(scheduler.engine, "step", dead)
    gate.open()
    for stream in streams:
        done = completion(stream)
        assert done.finish_reason == "error"
        assert done.error is not None and "died of RuntimeError: the device is gone" in done.error
    scheduler.close()
    assert not scheduler.is_open
    with pytest.raises(Closed, match="the device is gone"):
        submit(scheduler, 0)


@pytest.mark.parametrize("grace_s", [0.0, 60.0])
def test_closing_finishes_or_ends_what_runs(grace_s: float, scheduler: Scheduler) -> None:
    gate = Gate(len(world.prompt(0)) + 3)
    streams = [submit(scheduler, 0, gate), submit(scheduler, 1), submit(scheduler, 2)]
    gate.reached()
    closing = threading.Thread(target=scheduler.close, args=(grace_s,))
    closing.start()
    while scheduler.is_open:
        time.sleep(1e-3)
    with pytest.raises(Closed, match="shutting down"):
        submit(scheduler, 3)
    gate.open()
    done = [completion(stream) for stream in streams]
    closing.join(60)
    assert {row.finish_reason for row in done} == {"length" if grace_s else "cancelled"}
    assert (done[2].token_ids == truth(2)) == (grace_s > 0)
    assert scheduler.engine.step() is False


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_waiting must not be negative, got -1"):
        Scheduler(engine(), max_waiting=-1)
    with pytest.raises(ConfigError, match="prefix_bytes must be an integer of at least 0, got -5"):
        Scheduler(engine(), prefix_bytes=-5)


def test_who_is_cancelled_behind_others_does_not_stay() -> None:
    """They would otherwise wait for their turn, which a long answer may keep from coming."""
    busy = engine()
    waiting = busy.prepare([1, 2])
    busy.enqueue(waiting)
    for _ in range(500):
        left = busy.prepare([1, 2, 3])
        busy.enqueue(left)
        left.cancel()
        assert len(busy._waiting) <= 64
    assert busy._waiting[0] is waiting
