"""The anchor of the anchor: the oracle is what ``transformers`` itself generates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.oracles.plain import Settings, generate, processors_of, trace

VOCAB = 96
PROMPT = [5, 17, 3, 3, 60]
EOS = 2

CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy-penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
    "free": {"temperature": 1.3},
    "top-k-p": {"temperature": 0.6, "top_k": 20, "top_p": 0.9},
    "all": {
        "temperature": 1.7,
        "top_k": 50,
        "top_p": 0.95,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "logit_bias": {9: 1.5},
        "min_new_tokens": 12,
    },
}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).double().eval()


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_transformers_generate(model: LlamaForCausalLM, name: str, seed: int) -> None:
    settings = {**CASES[name], "seed": seed, "eos_ids": (EOS,), "max_new_tokens": 40}
    expected = model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=40,
        logits_processor=processors_of(Settings(**settings), len(PROMPT)),
    )[0, len(PROMPT) :].tolist()
    assert generate(model, PROMPT, **settings) == expected
    assert len(set(expected)) > 5


def test_cuts_after_eos_and_reports_margins(model: LlamaForCausalLM) -> None:
    steps = trace(model, PROMPT, max_new_tokens=30, temperature=1.0)
    stop = steps[9].token
    cut = trace(model, PROMPT, max_new_tokens=30, temperature=1.0, eos_ids=(stop,))
    first = [step.token for step in steps].index(stop)
    assert cut == steps[: first + 1]
    assert len(steps) == 30
    assert all(step.margin > 0 for step in steps)


def test_settings_and_seeds_matter(model: LlamaForCausalLM) -> None:
    texts = [generate(model, PROMPT, **case) for case in CASES.values()]
    texts += [generate(model, PROMPT, temperature=1.3, seed=seed) for seed in (1, 2)]
    texts += [generate(model, PROMPT, temperature=1.3, choice_index=1)]
    assert len({tuple(text) for text in texts}) == len(texts)


def test_processors_run_before_the_temperature(model: LlamaForCausalLM) -> None:
    seen: list[Tensor] = []

    def record(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(scores)
        return scores

    generate(model, PROMPT, max_new_tokens=1, temperature=0.5, processors=[record])
    logits = model(input_ids=torch.tensor([PROMPT])).logits[:, -1]
    torch.testing.assert_close(seen[0], logits)
