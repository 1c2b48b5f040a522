"""What differs between model families, read from their configs. No modelling file is copied."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from jakiro.cache.mask import Window
from jakiro.errors import TargetRefused

Windows = dict[str, Window | None]
"""Layer type -> how far it looks back (None: everything)."""

_ALIBI = ("bloom", "mpt")


def causal_lm(model: Any) -> PreTrainedModel:
    """``model`` itself, or the model inside a PEFT wrapper with its adapters in place.

    Raises ``TargetRefused``, naming the reason, for what can be told from class and config alone;
    the probe finds the rest.
    """
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise TargetRefused(
                f"the adapter is of type {model.active_peft_config.peft_type.value}, which puts "
                "virtual tokens into the prompt; use an adapter that changes weights, like LoRA"
            )
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise TargetRefused(
            f"the target must be a transformers PreTrainedModel, got {type(model).__name__}; "
            "load it with AutoModelForCausalLM.from_pretrained"
        )
    reason = _refusal(model)
    if reason:
        raise TargetRefused(f"{type(model).__name__} ({model.config.model_type}) {reason}")
    return model


def _refusal(model: PreTrainedModel) -> str | None:
    """Why ``model`` cannot be a target, or None."""
    config: Any = model.config
    if config.is_encoder_decoder:
        return "is an encoder-decoder; only decoder-only language models can be targets"
    if config.get_text_config() is not config:
        return (
            "is a multimodal wrapper; load only its text model, the ...ForCausalLM class of "
            f"its text config ({config.get_text_config().model_type})"
        )
    if not model.can_generate() or model.get_output_embeddings() is None:
        return "is not a causal language model; load it with AutoModelForCausalLM"
    strange = sorted(set(getattr(config, "layer_types", None) or ()) - set(_known_windows(config)))
    if model._is_stateful or strange:
        kinds = f" (layers of type {', '.join(strange)})" if strange else ""
        return (
            f"keeps a recurrent or compressed state{kinds} that cannot be rolled back to an "
            "accepted path; use a model with attention layers only"
        )
    if config.model_type in _ALIBI or getattr(config, "alibi", False):
        return (
            "uses ALiBi, which measures distance by cache slot, so that two branches of a tree "
            "cannot share the cache; use a model with rotary or learned positions"
        )
    training = next((name for name, part in model.named_modules() if part.training), None)
    if training is not None:
        return (
            f"is in training mode ({training or 'the whole model'}), where dropout may change its "
            "answers; call model.eval() first"
        )
    return None


def _known_windows(config: Any) -> Windows:
    sliding = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    return {
        "full_attention": None,
        "sliding_attention": Window(sliding) if sliding else None,
        "chunked_attention": Window(chunk, chunked=True) if chunk else None,
    }


def windows(config: Any) -> Windows:
    """The window of every layer type of ``config``; one entry where all layers are alike."""
    known = _known_windows(config)
    types = getattr(config, "layer_types", None)
    if types:
        return {name: known[name] for name in dict.fromkeys(types)}
    name = "sliding_attention" if known["sliding_attention"] else "full_attention"
    return {name: known[name]}


def chains_only(config: Any) -> bool:
    """Whether attention applies a window of its own by cache slot, behind any mask (GPT-Neo):
    exact for text in order, wrong for trees, and shown by no short probe."""
    return config.model_type == "gpt_neo" and "local" in config.attention_layers


def context_length(config: Any) -> int:
    """Tokens that a text may have. LongRoPE turns to other frequencies, for a whole forward, behind
    as many as the model was first trained on: keys would depend on what else is in it, so texts end
    there."""
    given: Any = getattr(config, "rope_parameters", None) or {}
    kinds = given.values() if all(isinstance(each, dict) for each in given.values()) else [given]
    most = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
    long = (each for each in kinds if each.get("rope_type") == "longrope")
    return min((int(each["original_max_position_embeddings"]) for each in long), default=most)


def head_transform(config: Any) -> Callable[[Tensor], Tensor]:
    """What a family does to the output of its head: scale (Cohere, Granite), soft cap (Gemma)."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def transform(logits: Tensor) -> Tensor:
        scaled = logits if scale == 1.0 else logits * scale
        return scaled if cap is None else cap * torch.tanh(scaled / cap)

    return transform
