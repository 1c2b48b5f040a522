"""An engine that has answered many requests holds no more than one that has answered a few."""

from __future__ import annotations

import gc

import torch

from jakiro.engine.engine import Engine
from jakiro.sampling.params import SamplingParams
from tests.conformance import world


def tensor_bytes() -> int:
    """All tensors alive, each storage once; packed weights, which other tests may have left, show
    none."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
    tensors = [each for each in tensors if each.layout == torch.strided]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def answer(engine: Engine, count: int) -> None:
    asked = SamplingParams(max_new_tokens=3)
    prompts = [[2 + number % 50, 7, 9] for number in range(count)]
    done = engine.generate(prompts, asked)
    assert {len(completion.token_ids) for completion in done} == {3}


def test_two_hundred_requests_leave_no_tensor_behind() -> None:
    target = world.target("llama")
    drafter = world.make_drafter("suffix_automaton+jakiro/wide", target)
    engine = world.make_engine(target, drafter, world.TREES["dynamic"], max_batch_size=8)
    answer(engine, 40)
    before = tensor_bytes()
    answer(engine, 200)
    assert tensor_bytes() <= before
    assert not engine.step()
