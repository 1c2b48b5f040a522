"""A draft model beside the target: what it has ready, that it writes while the target verifies, and
how it ends."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from jakiro.cache.kv_cache import KVCache
from jakiro.drafters.ahead import Keep, Message
from jakiro.drafters.pearl import Helper, Pearl
from jakiro.errors import DrafterFailed
from jakiro.sampling.params import SamplingParams
from jakiro.target.output import TargetOutput
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from tests.conformance import world
from tests.conformance.doubles import Beside
from tests.drafters.host import Spy, chains

WARM = SamplingParams(temperature=1.3, top_p=0.9)
ROWS = world.ROWS[3]


def each(settings: SamplingParams, num_new: int) -> list[SamplingParams]:
    return [replace(settings, seed=row, max_new_tokens=num_new + row) for row in ROWS]


@pytest.mark.parametrize("settings", [SamplingParams(), WARM], ids=["greedy", "warm"])
def test_the_target_beside_itself_is_never_refused(settings: SamplingParams) -> None:
    """After one token alone, every chain is whole, and so is the token behind it."""
    target, plan = world.target("llama"), TreePlan.chain(4)
    engine = world.make_engine(target, Pearl(target, target, Beside), plan, max_batch_size=3)
    prompts, params = [list(world.prompt(row)) for row in ROWS], each(settings, 23)
    done = engine.generate(prompts, params)
    for ids, asked, completion in zip(prompts, params, done, strict=True):
        assert completion.token_ids == world.answer(target.model, ids, asked)
    assert engine.stats.alpha == [1.0] * 4
    for asked, completion in zip(params, done, strict=True):
        # One from the prompt, one from the forward that nothing was ready for, then five each.
        assert completion.stats.num_forwards == 1 + -(-(asked.max_new_tokens - 2) // 5)


def test_drafts_are_those_of_the_published_machine() -> None:
    """Step by step on lists: what was written behind a chain is the next, if all of the chain and
    the token behind it were right; else the target goes on alone by one token."""
    target, limit, spy = world.target("llama"), 4, Spy()
    model = world.draft_model(target, "wide")
    drafter = Pearl(model, target, Beside)
    engine = world.make_engine(target, drafter, TreePlan.chain(limit), rule=spy.rule)
    prompt, num_new = [7, 3, 9, 40, 11], 30
    (done,) = engine.generate([prompt], SamplingParams(max_new_tokens=num_new))

    @torch.inference_mode()
    def written(text: list[int], size: int) -> list[int]:
        for _ in range(size):
            text = [*text, int(model.model(torch.tensor([text])).logits[0, -1].argmax())]
        return text

    text, ready, sizes = [*prompt, done.token_ids[0]], list[int](), []
    whole = [*prompt, *done.token_ids]
    for tree, _, verdict in spy.seen:
        cap = num_new + len(prompt) - len(text) - 1
        chain = ready[: min(limit, cap)]
        assert chains(tree) == [chain]
        ahead = written([*text, *chain], min(cap, len(chain) + 1 + limit) - len(chain))
        text = whole[: len(text) + len(verdict.paths[0])]
        ready = ahead[len(text) :] if ahead[: len(text)] == text else []
        sizes.append(len(chain))
    assert {0, limit} <= set(sizes) and text == whole


class _Watched:
    """A target whose first verifications do not go on before the other process has written."""

    def __init__(self, link: Helper, verify: Any) -> None:
        self.link, self.verify, self.num_met = link, verify, 0

    def __call__(self, tree: TokenTree, cache: KVCache, *args: Any) -> TargetOutput:
        before, end = self.link.guesses(), time.monotonic() + 60
        while self.num_met < 4 and self.link.guesses() is before:
            assert time.monotonic() < end, "nothing was written while the target verified"
            time.sleep(1e-3)
        self.num_met += 1
        return self.verify(tree, cache, *args)  # type: ignore[no-any-return]


def test_it_writes_in_its_process_while_the_target_verifies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The text stays; the process is told to end, and a killed one is reported."""
    target = world.target("llama")
    drafter = Pearl(world.draft_model(target, "wide"), target)
    link = drafter._link = drafter._start()
    assert isinstance(link, Helper)
    monkeypatch.setattr(target, "verify", _Watched(link, target.verify))
    engine = world.make_engine(target, drafter, max_batch_size=3)
    prompts, params = [list(world.prompt(row)) for row in ROWS], each(WARM, 12)
    done = engine.generate(prompts, params)
    for ids, asked, completion in zip(prompts, params, done, strict=True):
        assert completion.token_ids == world.answer(target.model, ids, asked)
    assert drafter._link is link and link._process.poll() is None
    link._process.kill()
    link._process.wait()
    with pytest.raises(DrafterFailed, match="the process that drafts"):
        engine.generate(prompts, params)
    assert drafter._link is None, "the next request starts another"
    link.close()


class _Failing(Beside):
    """Fails at the fifth message, once."""

    num_left = 5

    def send(self, message: Message) -> None:
        _Failing.num_left -= 1
        if _Failing.num_left == 0:
            raise DrafterFailed("gone")
        super().send(message)


def test_after_a_failure_the_next_request_is_answered() -> None:
    target = world.target("llama")
    drafter = Pearl(world.draft_model(target, "wide"), target, _Failing)
    engine = world.make_engine(target, drafter, max_batch_size=3)
    prompts, params = [list(world.prompt(row)) for row in ROWS], each(WARM, 12)
    with pytest.raises(DrafterFailed, match="gone"):
        engine.generate(prompts, params)
    done = engine.generate(prompts, params)
    for ids, asked, completion in zip(prompts, params, done, strict=True):
        assert completion.token_ids == world.answer(target.model, ids, asked)


class _FailingToKeep(Beside):
    """Fails when the first row leaves, once."""

    has_failed = False

    def send(self, message: Message) -> None:
        if isinstance(message, Keep) and not _FailingToKeep.has_failed:
            _FailingToKeep.has_failed = True
            raise DrafterFailed("gone")
        super().send(message)


def test_rows_that_stay_are_told_to_the_next_process() -> None:
    target = world.target("llama")
    drafter = Pearl(target, target, _FailingToKeep)
    engine = world.make_engine(target, drafter, max_batch_size=2)
    prompts = [[3, 4], [5, 6, 7]]
    params = [replace(WARM, seed=0, max_new_tokens=count) for count in (4, 24)]
    done = engine.generate(prompts, params)
    assert _FailingToKeep.has_failed
    for ids, asked, completion in zip(prompts, params, done, strict=True):
        assert completion.token_ids == world.answer(target.model, ids, asked)
    assert done[1].stats.num_forwards < 12
