"""What is raised in the middle of things ends the requests it touches and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from jakiro.engine.engine import Engine
from jakiro.errors import ConfigError, PromptError
from jakiro.sampling.params import SamplingParams
from tests.conformance import world
from tests.conformance.guided import Guided
from tests.engine.bytes_tokenizer import tokenizer
from tests.families import VOCAB_SIZE

ROWS = (0, 1, 2)
PROMPTS = [list(world.prompt(row)) for row in ROWS]


def truth(row: int) -> list[int]:
    return list(world.truth("llama", "top_p", row))


def each() -> list[SamplingParams]:
    return [world.params("top_p", row) for row in ROWS]


def build(case: str, max_batch_size: int = 2) -> Engine:
    """With a drafter that is often right, so that blocks are long."""
    target = world.target("llama")
    texts = [[*world.prompt(row), *truth(row)] for row in ROWS]
    drafter = Guided(world.make_drafter(case, target), texts)
    return world.make_engine(target, drafter, world.TREES["dynamic"], max_batch_size=max_batch_size)


def assert_usable(engine: Engine) -> None:
    """Nothing is left of what was going on, and the engine says what a fresh one would."""
    assert engine.step() is False
    assert [done.token_ids for done in engine.generate(PROMPTS, each())] == [*map(truth, ROWS)]


class Broken(BaseException):
    """Goes through everything, as an interrupt does."""


class BreaksAt:
    """A logits processor that refuses texts of ``length`` tokens or more."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if ids.shape[1] >= self._length:
            raise Broken("no more")
        return logits


CASES = world.kinds()


@pytest.mark.parametrize("case", CASES)
def test_a_request_that_raises_at_its_prompt_leaves_the_others_alone(case: str) -> None:
    engine = build(case, max_batch_size=3)
    fine = [engine.submit(PROMPTS[row], each()[row]) for row in (0, 1)]
    engine.step()
    broken = engine.submit(PROMPTS[2], each()[2], processors=[BreaksAt(len(PROMPTS[2]))])
    with pytest.raises(Broken):
        engine.step()
    assert (broken.finish_reason, broken.error) == ("error", "Broken: no more")
    while engine.step():
        pass
    assert [request.token_ids for request in fine] == [truth(0), truth(1)]
    assert_usable(engine)


@pytest.mark.parametrize("case", CASES)
def test_a_cycle_that_raises_ends_its_rows_and_not_the_engine(case: str) -> None:
    engine = build(case)
    shared = [engine.submit(PROMPTS[row], each()[row]) for row in (0, 1)]
    breaks = BreaksAt(len(PROMPTS[2]) + 6)
    with pytest.raises(Broken):
        engine.generate([PROMPTS[2]], each()[2], processors=[breaks])
    assert {request.finish_reason for request in shared} <= {"error", "length"}
    for row, request in enumerate(shared):
        assert request.token_ids == truth(row)[: len(request.token_ids)]
    assert_usable(engine)


SITES: dict[str, Callable[[Engine], tuple[Any, str]]] = {
    "prefill": lambda engine: (engine.target, "prefill"),
    "sampler admits": lambda engine: (engine._batch.sampler, "admit"),
    "drafter begins": lambda engine: (engine.drafter, "resume"),
    "sampler chooses": lambda engine: (engine._batch.sampler, "view"),
    "draft": lambda engine: (engine.drafter, "draft"),
    "head": lambda engine: (engine.drafter, "_forward"),
    "verify": lambda engine: (engine.target, "verify"),
    "commit": lambda engine: (engine._batch.cache, "commit"),
    "accept": lambda engine: (engine.drafter, "accept"),
}


@pytest.mark.parametrize("call", [2, 5])
@pytest.mark.parametrize("site", SITES)
def test_an_interrupt_anywhere_leaves_the_engine_usable(
    site: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = world.target("llama")
    engine = world.make_engine(
        target, world.make_feature_drafter(target), world.TREES["dynamic"], max_batch_size=2
    )
    owner, name = SITES[site](engine)
    honest, calls = getattr(owner, name), 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        found = honest(*args, **kwargs)
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS * 2, each() * 2)
    monkeypatch.undo()
    assert_usable(engine)


# -- rows that fail ------------------------------------------------------------------------------


class OnlyAlong:
    """Leaves no token at all after a text that is not the beginning of ``text``."""

    def __init__(self, text: Sequence[int]) -> None:
        self._text = list(text)

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        is_off = [row != self._text[: len(row)] for row in ids.tolist()]
        return logits.masked_fill(torch.tensor(is_off)[:, None], -torch.inf)


@pytest.mark.parametrize("case", CASES)
def test_a_draft_that_goes_where_nothing_is_allowed_is_only_rejected(case: str) -> None:
    text = [*PROMPTS[0], *truth(0)]
    (done,) = build(case).generate([PROMPTS[0]], each()[0], processors=[OnlyAlong(text)])
    assert (done.finish_reason, done.token_ids) == ("length", truth(0))


class Strict:
    """Raises at a text that is not the beginning of ``text``, and nothing is left after ``good``
    tokens of it."""

    def __init__(self, text: Sequence[int], good: int) -> None:
        self._text, self._good = list(text), good

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if any(row != self._text[: len(row)] for row in ids.tolist()):
            raise ValueError("off the text")
        return logits * torch.nan if ids.shape[1] == self._good else logits


@pytest.mark.parametrize("case", ["none", "jakiro/wide"])
def test_a_processor_that_raises_at_a_rejected_draft_changes_nothing(case: str) -> None:
    text = [*PROMPTS[0], *truth(0)]
    (done,) = build(case).generate([PROMPTS[0]], each()[0], processors=[Strict(text, len(text))])
    assert (done.finish_reason, done.token_ids) == ("length", truth(0))
    failing = Strict(text, len(PROMPTS[0]) + 9)
    (done,) = build(case).generate([PROMPTS[0]], each()[0], processors=[failing])
    assert (done.finish_reason, done.token_ids) == ("error", truth(0)[:9])
    assert done.error is not None and "NaN" in done.error, "what it raised elsewhere is no reason"


@pytest.mark.parametrize("case", ["none", "jakiro/wide"])
@pytest.mark.parametrize("good", [0, 1, 7])
def test_a_processor_that_raises_fails_its_request_there(good: int, case: str) -> None:
    def broken(ids: Tensor, logits: Tensor) -> Tensor:
        if ids.shape[1] >= len(PROMPTS[0]) + good:
            raise KeyError("no more")
        return logits

    engine = build(case)
    neighbour = engine.submit(PROMPTS[1], each()[1])
    (done,) = engine.generate([PROMPTS[0]], each()[0], processors=[broken])
    assert (done.finish_reason, done.error) == ("error", "a processor raised KeyError: 'no more'")
    assert done.token_ids == truth(0)[:good]
    while engine.step():
        pass
    assert neighbour.token_ids == truth(1)
    assert_usable(engine)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("good", [0, 1, 7, 12])
def test_a_row_fails_at_the_token_where_plain_decoding_would(good: int, case: str) -> None:
    def nan_then(ids: Tensor, logits: Tensor) -> Tensor:
        return logits * torch.nan if ids.shape[1] - len(PROMPTS[0]) == good else logits

    engine = build(case)
    (done,) = engine.generate([PROMPTS[0]], each()[0], processors=[nan_then])
    assert (done.finish_reason, done.token_ids) == ("error", truth(0)[:good])
    assert engine.stats.num_prefills == min(good, 1)
    assert_usable(engine)


# -- before anything starts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "message"),
    [
        ([], {}, PromptError, "empty"),
        ([VOCAB_SIZE], {}, PromptError, f"token id {VOCAB_SIZE}"),
        ([3] * 96, {}, PromptError, "96 tokens"),
        (7, {}, PromptError, "got int"),
        (torch.tensor([3, 4]), {}, PromptError, r"got Tensor; .*tolist"),
        ("text", {}, PromptError, "need a tokenizer"),
        ([1.0, 2.0], {}, PromptError, r"token ids \(int\) only .* got 1.0 \(float\) at place 0"),
        ([3, "a"], {}, PromptError, r"got 'a' \(str\) at place 1"),
        ([3, True], {}, PromptError, r"got True \(bool\) at place 1"),
        ([{"role": "user", "content": "a"}, 3], {}, PromptError, r"got 3 \(int\) at place 1"),
        ([3], {"logit_bias": {10**12: 1.0}}, ConfigError, "logit_bias names token 10000"),
        ([3], {"stop": ("x",)}, ConfigError, "stop strings need a tokenizer"),
    ],
    ids=lambda value: str(value)[:16],
)
def test_one_bad_request_starts_none(
    prompt: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    engine = build("jakiro/wide")
    with pytest.raises(error, match=message):
        engine.generate([PROMPTS[0], prompt], [SamplingParams(), SamplingParams(**settings)])
    assert engine.stats.num_prefills == 0
    assert_usable(engine)


@pytest.mark.parametrize("params", [{"max_new_tokens": 3}, {}, "greedy", 3])
def test_only_sampling_params_are_params(params: Any) -> None:
    target = world.target("llama")
    engine = world.make_engine(target, world.make_drafter("none", target))
    told = re.escape(f"params must be SamplingParams, got {params!r}; write")
    for given in (params, [params]):
        with pytest.raises(ConfigError, match=told):
            engine.generate([[3]], given)
    with pytest.raises(ConfigError, match=told):
        engine.submit([3], params)
    with pytest.raises(ConfigError, match=told):
        next(engine.stream([3], params))


@pytest.mark.parametrize("processors", [BreaksAt(3), [BreaksAt(3), "min_p"], iter([BreaksAt(3)])])
def test_only_lists_of_callables_are_processors(processors: Any) -> None:
    engine = build("none")
    with pytest.raises(ConfigError, match=r"list of callables, got .*; write a single one as \["):
        engine.generate([PROMPTS[0]], each()[0], processors=processors)
    assert_usable(engine)


def test_a_template_that_refuses_is_a_prompt_error() -> None:
    refusing = tokenizer()
    refusing.chat_template = "{{ raise_exception('roles must alternate') }}"
    target = world.target("llama")
    engine = world.make_engine(target, world.make_drafter("none", target), tokenizer=refusing)
    with pytest.raises(PromptError, match="refuses the conversation: roles must alternate"):
        engine.encode([{"role": "user", "content": "a"}])


# -- edges ---------------------------------------------------------------------------------------


def test_a_request_cancelled_while_it_waits_is_never_started() -> None:
    engine = build("jakiro/wide", max_batch_size=1)
    requests = [engine.submit(PROMPTS[row], each()[row]) for row in ROWS]
    engine.step()
    requests[1].cancel()
    while engine.step():
        pass
    assert [request.finish_reason for request in requests] == ["length", "cancelled", "length"]
    assert requests[1].token_ids == []
    assert requests[2].token_ids == truth(2)
    assert engine.stats.num_prefills == 2


def test_more_logprobs_than_tokens_are_all_of_them() -> None:
    params = SamplingParams(max_new_tokens=2, logprobs=VOCAB_SIZE + 1)
    (done,) = build("none").generate([PROMPTS[0]], params)
    assert done.logprobs is not None
    assert [len(entry.top) for entry in done.logprobs] == [VOCAB_SIZE] * 2


def test_drawn_seeds_follow_the_global_generator() -> None:
    """And each prompt has its own."""
    params = SamplingParams(temperature=1.0, max_new_tokens=12)

    def answers(case: str) -> list[tuple[int, list[int]]]:
        engine = build(case)
        torch.manual_seed(5)
        done = engine.generate([PROMPTS[0]] * 3, params)
        return [(completion.seed, completion.token_ids) for completion in done]

    first = answers("jakiro/wide")
    assert first == answers("none")
    assert len({seed for seed, _ in first}) == 3
