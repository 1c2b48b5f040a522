"""The adapter over the first layers: what it drafts, and when it stops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jakiro.drafters.base import DraftRequest
from jakiro.drafters.kangaroo import Adapter, AdapterConfig, Kangaroo
from jakiro.errors import ConfigError
from jakiro.sampling.params import SamplingParams
from jakiro.target.features import FeatureSpec
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from tests.conformance import world


def drafter_of(target: Target, **options: Any) -> tuple[Kangaroo, Adapter]:
    adapter = world.head(target, "kangaroo", std=0.3)
    return Kangaroo(adapter, target, **options), adapter


def chain(target: Target, adapter: Adapter, text: list[int], depth: int) -> list[int]:
    """What adapter and head say behind ``text``, greedy, every time from the whole text."""
    drafted: list[int] = []
    for _ in range(depth):
        ids = torch.tensor([text + drafted])
        where = torch.arange(ids.shape[1])[None]
        with torch.no_grad():
            streams = target.features(ids, torch.tensor([ids.shape[1]]), FeatureSpec(layers=(1,)))
            drafted.append(int(target.lm_head(adapter(streams, where))[0, -1].argmax()))
    return drafted


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_drafts_are_those_of_the_whole_text(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In ragged batches, behind prompts, accepted paths and rows that left."""
    target = world.target(family)
    drafter, adapter = drafter_of(target, confidence=0.0)
    engine = world.make_engine(target, drafter, TreePlan.chain(3), max_batch_size=2)
    usual, seen = drafter.draft, set()

    def draft(request: DraftRequest) -> TokenTree:
        tree = usual(request)
        for row, asked in enumerate(engine._batch.rows):
            text = [*asked.prompt_ids, *asked.token_ids]
            own = tree.tokens[row, tree.valid[row]][1:].tolist()
            assert own == chain(target, adapter, text, len(own))
            seen.add((row, len(text)))
        return tree

    monkeypatch.setattr(drafter, "draft", draft)
    prompts = [list(world.prompt(row)) for row in (2, 0, 3)]
    done = engine.generate(prompts, [SamplingParams(max_new_tokens=count) for count in (7, 16, 12)])
    assert len(seen) > 15
    assert [len(one.token_ids) for one in done] == [7, 16, 12]


def test_a_surer_exit_is_asked_for_more_and_drafts_less() -> None:
    """0: six tokens, but for the end; above 1: one; between, fewer the more is asked."""
    target = world.target("llama")
    counts = []
    for confidence in (0.0, 0.3, 0.5, 1.01):
        engine = world.make_engine(target, drafter_of(target, confidence=confidence)[0])
        engine.generate([list(world.prompt(0))], SamplingParams(max_new_tokens=24))
        counts.append(engine.stats.num_drafted / engine.stats.num_forwards)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 4.5 and counts[-1] <= 1.0
    assert len(set(counts)) == 4


def test_sizes_that_cannot_be_are_refused() -> None:
    target = world.target("llama")
    sizes: dict[str, Any] = {"method": "kangaroo", "hidden_size": 32, "num_heads": 4}
    sizes |= {"num_kv_heads": 2, "head_dim": 8}
    with pytest.raises(ConfigError, match="behind layer 2 of a target of 2"):
        Kangaroo(Adapter(AdapterConfig(**sizes, exit_layer=2)), target)
    with pytest.raises(ConfigError, match="confidence must be at least 0"):
        drafter_of(target, confidence=-1.0)
    with pytest.raises(ConfigError, match="exit_layer must be at least 1, got 0"):
        AdapterConfig(**sizes, exit_layer=0)
    with pytest.raises(ConfigError, match="multiple of num_kv_heads"):
        AdapterConfig(**sizes | {"num_kv_heads": 3}, exit_layer=1)
