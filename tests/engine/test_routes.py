"""What the engine does with targets that can do less."""

from __future__ import annotations

import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from jakiro.api import load
from jakiro.drafters import registry
from jakiro.drafters.none import NoDrafter
from jakiro.engine.engine import Engine
from jakiro.errors import TargetRefused
from jakiro.sampling.params import SamplingParams
from jakiro.target.features import LAST_FEATURE
from tests.oracles import plain


def chain_only() -> GPTNeoForCausalLM:
    torch.manual_seed(3)
    config = GPTNeoConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=96,
        initializer_range=0.6,
    )
    return GPTNeoForCausalLM(config).eval()  # its attention is float32 in any case


@pytest.mark.parametrize("name", [e.name for e in registry.ENTRIES.values() if not e.is_trained])
def test_a_chain_only_target_gets_chains_and_the_same_text(name: str) -> None:
    model = chain_only()
    try:
        engine = load(model, name, tree="dynamic:5,4,12")
    except TargetRefused:
        pytest.skip("needs more than this target has, and says so")
    assert engine.target.route == "chain"
    assert engine.plan.kind == "chain" and engine.plan.depth == 5
    prompts = [[1, 2, 3, 1, 2, 3, 1], [9, 8, 9, 8, 9]]
    params = SamplingParams(max_new_tokens=30, temperature=0.7, seed=5)
    for prompt, done in zip(prompts, engine.generate(prompts, params), strict=True):
        wanted = plain.generate(model, prompt, max_new_tokens=30, temperature=0.7, seed=5)
        assert done.token_ids == wanted


def test_a_drafter_that_needs_features_is_refused_where_there_are_none() -> None:
    engine = load(chain_only(), "none")
    engine.target.feature_refusal = "its head is not a function of its last feature"

    reader = NoDrafter()
    reader.needs = LAST_FEATURE
    with pytest.raises(TargetRefused, match="features"):
        Engine(engine.target, reader, engine.rule)
