"""Tiny random models of many families, for every test that needs a target.

Float64, vocabulary 64, two layers, contexts of 80 to 96; windows of 8, so that ordinary texts are
longer than they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers as hf

VOCAB_SIZE = 64
CONTEXT = 96
WINDOW = 8

_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}


class Weights(NamedTuple):
    """Standard deviations of the matrices and of the input embedding, and the seed: chosen so that
    forty greedy tokens hold about twenty distinct ones, whatever the prompt."""

    matrices: float = 0.7
    embedding: float = 0.3
    seed: int = 2


DEFAULT = Weights()


def build(
    model: type[hf.PreTrainedModel],
    config: hf.PreTrainedConfig,
    weights: Weights = DEFAULT,
) -> hf.PreTrainedModel:
    """A float64 model in eval mode with normal matrices; biases and most norms stay as made."""
    # Grouped matrix products of the mixture models refuse double.
    config._experts_implementation = "eager"
    built = model(config).double().eval()
    generator = torch.Generator().manual_seed(weights.seed)
    embedding = built.get_input_embeddings().weight
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.ndim > 1:
                std = weights.embedding if parameter is embedding else weights.matrices
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(std * noise)
            elif "q_norm" in name or "k_norm" in name:
                parameter.fill_(2.0)  # else attention is too even to tell texts apart
    return built


def llama_like(
    name: str, weights: Weights = DEFAULT, **changes: Any
) -> Callable[[], hf.PreTrainedModel]:
    def make() -> hf.PreTrainedModel:
        config = hf.Gemma3TextConfig if name == "Gemma3" else getattr(hf, f"{name}Config")
        return build(getattr(hf, f"{name}ForCausalLM"), config(**(_LLAMA_LIKE | changes)), weights)

    return make


def _gpt_neox() -> hf.PreTrainedModel:
    sizes = {k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"}
    return build(
        hf.GPTNeoXForCausalLM,
        hf.GPTNeoXConfig(**sizes | {"max_position_embeddings": 88}),
        Weights(1.0, 0.3, 38),
    )


def _gpt2() -> hf.PreTrainedModel:
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
    shared = {name: _LLAMA_LIKE[name] for name in names}
    sizes = {"n_positions": 80, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return build(hf.GPT2LMHeadModel, hf.GPT2Config(**sizes, **shared), Weights(1.0, 0.03, 3))


FAMILIES: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "llama": llama_like("Llama"),
    "qwen3": llama_like("Qwen3", Weights(0.7, 0.1, 5), head_dim=8),
    "mistral": llama_like("Mistral", Weights(1.0, 0.1, 1), sliding_window=WINDOW),
    "gemma3": llama_like(
        "Gemma3",
        Weights(0.4, 1.0, 3),
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
    "mixtral": llama_like(
        "Mixtral", Weights(0.7, 0.1, 1), num_local_experts=4, num_experts_per_tok=2
    ),
    "phi3": llama_like("Phi3", Weights(0.4, 1.0, 6), sliding_window=WINDOW),
    "olmo2": llama_like("Olmo2", Weights(0.7, 1.0, 4)),
}
"""Family name -> a fresh model of it, float64, in eval mode."""
