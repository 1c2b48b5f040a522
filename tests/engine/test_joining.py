"""Requests that come and go at random times say what each of them says alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from jakiro.api import load
from jakiro.engine.engine import Engine
from jakiro.engine.limits import Limits
from jakiro.engine.request import Completion, Request
from jakiro.engine.scheduler import Scheduler
from jakiro.errors import ConfigError, PromptError
from jakiro.sampling.params import SamplingParams
from jakiro.target.target import Target
from jakiro.typing import LogitsProcessor
from tests.conformance import world
from tests.engine.bytes_tokenizer import tokenizer

NUM_REQUESTS, NUM_STEPS, CHUNK, KV_TOKENS = 40, 50, 7, 300
CASES = ("draft_model/wide", "suffix_automaton+jakiro/wide")


def favours_even(ids: Tensor, logits: Tensor) -> Tensor:
    return logits + (torch.arange(logits.shape[-1]) % 2 == ids[:, -1:] % 2)


@dataclass
class Order:
    """One request of the crowd: when it comes, and after how many steps it is given up."""

    prompt: list[int]
    params: SamplingParams
    choice_index: int
    processors: list[LogitsProcessor]
    comes: int
    stays: int | None
    alone: Completion


def answer(engine: Engine, order: tuple[Any, ...]) -> Completion:
    prompt, params, choice_index, processors = order
    request = engine.prepare(prompt, params, processors, choice_index)
    engine.enqueue(request)
    while engine.step():
        pass
    return request.completion()


@pytest.fixture(scope="module")
def crowd() -> list[Order]:
    """Fresh prompts, further turns of earlier answers, and second choices of earlier prompts."""
    draw = random.Random(3)
    target = world.target("llama")
    plain = world.make_engine(target, world.make_drafter("none", target), tokenizer=tokenizer())
    orders: list[Order] = []
    for number in range(NUM_REQUESTS):
        prompt, choice_index = [draw.randrange(2, 60) for _ in range(draw.randrange(1, 30))], 0
        kind, earlier = draw.choice(("fresh", "turn", "choice")), draw.choice(orders or [None])
        if earlier is not None and kind == "choice":
            prompt, choice_index = earlier.prompt, earlier.choice_index + 1
        elif earlier is not None and kind == "turn" and len(earlier.prompt) < 40:
            prompt = earlier.prompt + earlier.alone.token_ids + prompt[:4]
        params = replace(
            world.SETTINGS[draw.choice(list(world.SETTINGS))],
            max_new_tokens=draw.randrange(1, 18),
            seed=number // 4,
            stop=draw.choice(((), (), ("5",), ("(", "9:"))),
            logprobs=draw.choice((None, None, 2)),
        )
        processors: list[LogitsProcessor] = [favours_even] if number % 5 == 0 else []
        alone = answer(plain, (prompt, params, choice_index, processors))
        times = draw.randrange(NUM_STEPS), draw.choice((None, None, None, draw.randrange(8)))
        orders.append(Order(prompt, params, choice_index, processors, *times, alone))
    return orders


def steps(engine: Engine, crowd: list[Order]) -> Iterator[dict[int, Request]]:
    """Run ``crowd``; yields all requests so far after every step."""
    requests: dict[int, Request] = {}
    ends: dict[int, int] = {}
    for step in range(1000):
        for number, order in enumerate(crowd):
            if order.comes == step:
                requests[number] = engine.prepare(
                    order.prompt, order.params, order.processors, order.choice_index
                )
                engine.enqueue(requests[number])
                ends[number] = 1000 if order.stays is None else step + order.stays
            if ends.get(number) == step:
                requests[number].cancel()
        is_over = not engine.step() and step >= NUM_STEPS
        yield requests
        if is_over:
            return
    raise AssertionError("the crowd was not served")


@pytest.mark.parametrize("case", CASES)
def test_forty_requests_at_random_times_equal_forty_single_runs(
    case: str, crowd: list[Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, fed = world.target("llama"), [0]
    honest = Target.prefill

    def prefill(self: Target, ids: list[int], *args: Any) -> Any:
        fed[-1] += len(ids) if self is target else 0
        return honest(self, ids, *args)

    monkeypatch.setattr(Target, "prefill", prefill)
    drafter = world.make_drafter(case, target)
    engine = world.make_engine(target, drafter, world.TREES["dynamic"], tokenizer=tokenizer())
    engine.limits = Limits(4, prefill_chunk=CHUNK, kv_tokens=KV_TOKENS, prefix_bytes=1 << 20)
    cache, most = engine._batch.cache, 0
    for requests in steps(engine, crowd):  # noqa: B007  the last one is looked at below
        most = max(most, engine.num_rows)
        assert fed[-1] <= CHUNK
        fed.append(0)
        assert all(part.data[0, :, 0, :, 0].numel() <= KV_TOKENS for part in cache._stores)
    cut = 0
    for number, order in enumerate(crowd):
        found, alone = requests[number].completion(), order.alone
        if found.finish_reason == "cancelled":
            cut += 1
            assert found.token_ids == alone.token_ids[: len(found.token_ids)]
            continue
        assert (found.token_ids, found.text) == (alone.token_ids, alone.text)
        assert (found.finish_reason, found.error) == (alone.finish_reason, alone.error)
        assert (found.logprobs is None) == (alone.logprobs is None)
        for ours, theirs in zip(found.logprobs or [], alone.logprobs or [], strict=True):
            assert ours.token_id == theirs.token_id
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-9)
            assert ours.top == pytest.approx(theirs.top, abs=1e-9)
    reasons = [request.finish_reason for request in requests.values()]
    assert {"length", "stop", "cancelled"} == set(reasons)
    assert (most, cut > 3, engine.stats.num_reused > 100) == (4, True, True)
    assert max(fed) == CHUNK
    assert sum(fed) < sum(len(order.prompt) for order in crowd)
    assert (engine.num_rows, cache.lengths, engine._batch.filling) == (0, [], None)


def test_forty_requests_from_threads_equal_forty_single_runs(crowd: list[Order]) -> None:
    target = world.target("llama")
    engine = world.make_engine(
        target,
        world.make_drafter("jakiro/wide", target),
        world.TREES["dynamic"],
        tokenizer=tokenizer(),
    )
    found: dict[int, Completion] = {}

    def user(first: int) -> None:
        for number in range(first, NUM_REQUESTS, 8):
            order = crowd[number]
            stream = scheduler.submit(
                order.prompt,
                order.params,
                processors=order.processors,
                choice_index=order.choice_index,
            )
            for count, chunk in enumerate(stream):
                if count == order.stays:
                    stream.cancel()
                if chunk.completion is not None:
                    found[number] = chunk.completion

    with Scheduler(engine, prefill_chunk=CHUNK, kv_tokens=KV_TOKENS) as scheduler:
        users = [threading.Thread(target=user, args=(first,)) for first in range(8)]
        for thread in users:
            thread.start()
        for thread in users:
            thread.join()
    for number, order in enumerate(crowd):
        if found[number].finish_reason == "cancelled":
            size = len(found[number].token_ids)
            assert found[number].token_ids == order.alone.token_ids[:size]
        else:
            assert found[number].token_ids == order.alone.token_ids
            assert found[number].text == order.alone.text
            assert found[number].finish_reason == order.alone.finish_reason


def test_a_long_prompt_does_not_hold_up_the_others_nor_do_they_overtake_it() -> None:
    target = world.target("llama")
    engine = world.make_engine(target, world.make_drafter("none", target))
    engine.limits = Limits(3, prefill_chunk=5)
    params = SamplingParams(max_new_tokens=20)
    first = engine.submit([3, 4], params)
    engine.step()
    long, short = engine.submit([5] * 22, params), engine.submit([6], params)
    for step in range(4):
        engine.step()
        assert len(first.token_ids) == 3 + step
        assert long.token_ids == short.token_ids == []
    engine.step()
    assert (len(long.token_ids), len(short.token_ids)) == (2, 2)
    # One that is given up half read leaves nothing.
    half = engine.submit([7] * 22, params)
    while first.finish_reason is None:
        engine.step()
    half.cancel()
    engine.step()
    assert (engine._batch.filling, engine._batch.cache.num_rows) == (None, 2)


def test_the_room_of_a_long_request_is_not_that_of_those_after_it() -> None:
    """One row of 74 slots, then four of 15, which do not wait for each other, and one of 74."""
    target = world.target("llama")
    engine = world.make_engine(target, world.make_drafter("none", target))
    engine.limits, most = Limits(4, kv_tokens=120), 0
    for size, count in ((70, 4), *[(3, 12)] * 4, (70, 4)):
        engine.submit([5] * size, SamplingParams(max_new_tokens=count, ignore_eos=True))
    while engine.step():
        most = max(most, engine.num_rows)
        assert all(part.data[0, :, 0, :, 0].numel() <= 120 for part in engine._batch.cache._stores)
    assert most == 4


def test_limits_that_nothing_fits_into_are_refused() -> None:
    target = world.target("llama")
    engine = world.make_engine(target, world.make_drafter("none", target))
    engine.limits = Limits(kv_tokens=60)
    with pytest.raises(PromptError, match=r"cache, but it may have 60 .*lower max_new"):
        engine.submit([3] * 30, SamplingParams(max_new_tokens=40))
    with pytest.raises(ConfigError, match="prefill_chunk must be an integer of at least 1, got 0"):
        Limits(prefill_chunk=0)


@pytest.mark.parametrize("value", ["a", True, 1.5, None, 0])
def test_a_batch_size_is_a_count(value: Any) -> None:
    """Told before the target, which is not there, is loaded."""
    told = f"max_batch_size must be an integer of at least 1, got {value!r}"
    with pytest.raises(ConfigError, match=told):
        load("no/such/model", max_batch_size=value)
    with pytest.raises(ConfigError, match=told):
        Limits(value)
