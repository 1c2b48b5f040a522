"""Many requests in one engine, from many threads: each says what it would say alone."""

from __future__ import annotations

import asyncio
import threading

import pytest

from jakiro.engine.engine import Engine
from jakiro.engine.scheduler import Scheduler
from jakiro.engine.stream import Stream
from jakiro.errors import Busy, Closed, ConfigError
from jakiro.sampling.params import SamplingParams
from tests.conformance import world

ROWS = (0, 1, 2, 3)


def truth(row: int) -> list[int]:
    return list(world.truth("llama", "top_p", row))


def engine(max_batch_size: int = 2) -> Engine:
    target = world.target("llama")
    drafter = world.make_feature_drafter(target)
    return world.make_engine(target, drafter, world.TREES["dynamic"], max_batch_size=max_batch_size)


def submit(scheduler: Scheduler, row: int) -> Stream:
    return scheduler.submit(list(world.prompt(row)), world.params("top_p", row))


def tokens(stream: Stream) -> list[int]:
    return [token for chunk in stream for token in chunk.token_ids]


def test_threads_and_coroutines_read_what_single_runs_say() -> None:
    async def read(stream: Stream) -> list[int]:
        return [token async for chunk in stream for token in chunk.token_ids]

    async def read_all() -> list[list[int]]:
        return await asyncio.gather(*(read(submit(scheduler, row)) for row in ROWS))

    with Scheduler(engine()) as scheduler:
        found: dict[int, list[int]] = {}
        readers = [
            threading.Thread(
                target=lambda row=row: found.update({row: tokens(submit(scheduler, row))})
            )
            for row in ROWS
        ]
        for reader in readers:
            reader.start()
        assert asyncio.run(read_all()) == [truth(row) for row in ROWS]
        for reader in readers:
            reader.join()
        assert found == {row: truth(row) for row in ROWS}
        assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)


def test_a_full_line_is_refused_and_a_closed_one_too() -> None:
    scheduler = Scheduler(engine(1), max_waiting=1)
    params = SamplingParams(max_new_tokens=60, seed=1)
    first = scheduler.submit([5], params)
    next(first)
    second = scheduler.submit([6], params)
    with pytest.raises(Busy, match="1 requests wait") as refused:
        scheduler.submit([7], params)
    assert refused.value.retry_after_s > 0
    with pytest.raises(ConfigError, match="deadline_s"):
        scheduler.submit([7], deadline_s=0)
    scheduler.close()
    for stream in (first, second):
        *_, last = stream
        assert last.completion is not None and last.completion.finish_reason == "cancelled"
    with pytest.raises(Closed):
        scheduler.submit([7], params)
    assert scheduler.engine.step() is False
