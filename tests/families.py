"""Tiny random models of many families, for every test that needs a target.

Float64, vocabulary 64, two layers, context 96; windows of 8, so that ordinary texts are longer
than they are. The weights are large enough that answers vary, and the seed is fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def build(
    model: type[hf.PreTrainedModel],
    config: hf.PreTrainedConfig,
    std: float = 0.3,
    dtype: torch.dtype = torch.float64,
) -> hf.PreTrainedModel:
    """A model in eval mode whose matrices are normal with ``std``; norms and biases stay."""
    # Grouped matrix products of the mixture models refuse double.
    config._experts_implementation = "eager"
    built = model(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(std * noise)
    return built


def _llama_like(name: str, **changes: Any) -> Callable[[], hf.PreTrainedModel]:
    def make() -> hf.PreTrainedModel:
        model, config = getattr(hf, f"{name}ForCausalLM"), getattr(hf, f"{name}Config")
        if name == "Gemma3":
            config = hf.Gemma3TextConfig
        return build(model, config(**(_LLAMA_LIKE | changes)))

    return make


def _gpt_neox() -> hf.PreTrainedModel:
    sizes = {k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"}
    return build(hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**sizes))


def _gpt2() -> hf.PreTrainedModel:
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
    shared = {name: _LLAMA_LIKE[name] for name in names}
    sizes = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return build(hf.GPT2LMHeadModel, hf.GPT2Config(**sizes, **shared))


FAMILIES: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "llama": _llama_like("Llama"),
    "qwen3": _llama_like("Qwen3", head_dim=8),
    "mistral": _llama_like("Mistral", sliding_window=WINDOW),
    "gemma3": _llama_like(
        "Gemma3",
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
    "mixtral": _llama_like("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "phi3": _llama_like("Phi3", sliding_window=WINDOW),
    "olmo2": _llama_like("Olmo2"),
}
"""Family name -> a fresh model of it, float64, in eval mode."""
