"""Prompts that are refused, sizes, and what a checkpoint remembers."""

from __future__ import annotations

import pytest
import torch

from jakiro.errors import PromptError
from jakiro.target.families import context_length
from jakiro.target.target import Target
from tests.families import FAMILIES, llama_like


@pytest.fixture(scope="module")
def llama() -> Target:
    return Target(FAMILIES["llama"]())


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "the prompt is empty"),
        ([1] * 96, "96 tokens, but the context of the target holds 96"),
        ([1] * 200, "200 tokens"),
        ([1, 64], r"token id 64 is not in the vocabulary of the target \(0 to 63\)"),
        ([1, -3, 2], "token id -3"),
    ],
)
def test_bad_prompts(llama: Target, ids: list[int], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        llama.check_prompt(ids)
    cache = llama.new_cache()
    row = cache.admit()
    with pytest.raises(PromptError, match=message):
        llama.prefill(ids, cache, row)
    assert cache.lengths == [0]


@pytest.mark.parametrize("ids", [[0], [63], [5] * 95])
def test_prompts_at_the_edge(llama: Target, ids: list[int]) -> None:
    llama.check_prompt(ids)
    cache = llama.new_cache()
    assert llama.prefill(ids, cache, cache.admit()).logits.shape == (1, 1, 64)


def test_sizes(llama: Target) -> None:
    assert (llama.vocab_size, llama.hidden_size, llama.num_layers) == (64, 32, 2)
    assert (llama.context_length, llama.dtype) == (96, torch.float64)
    assert llama.device == torch.device("cpu")
    assert llama.embed(torch.tensor([[1, 2]])).shape == (1, 2, 32)


def test_fingerprint_tells_models_apart(llama: Target) -> None:
    print_of = llama.fingerprint()
    assert print_of == Target(FAMILIES["llama"]()).fingerprint()
    other = FAMILIES["llama"]()
    with torch.no_grad():
        other.get_input_embeddings().weight[40] += 1
    changed = Target(other).fingerprint()
    assert changed["embedding_sha256"] != print_of["embedding_sha256"]
    assert changed | {"embedding_sha256": None} == print_of | {"embedding_sha256": None}


@pytest.mark.parametrize("is_by_kind", [False, True])
def test_a_text_ends_before_longrope_turns_to_other_frequencies(is_by_kind: bool) -> None:
    """For a whole forward at once: earlier keys would depend on what else is in it."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    make = llama_like("Phi3", rope_parameters=rope, original_max_position_embeddings=32)
    config = (model := make()).config
    assert Target(model).context_length == 32
    if is_by_kind:
        config.rope_parameters = {"full_attention": config.rope_parameters}
    assert context_length(config) == 32
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    assert context_length(config) == 96
