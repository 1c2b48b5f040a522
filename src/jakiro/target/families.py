"""What differs between model families, read from their configs. No modelling file is copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jakiro.cache.mask import Window
from jakiro.errors import TargetRefused

Windows = dict[str, Window | None]
"""Layer type -> how far it looks back (None: everything)."""


def windows(config: Any) -> Windows:
    """The window of every layer type of ``config``; one entry where all layers are alike."""
    sliding = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    known: Windows = {
        "full_attention": None,
        "sliding_attention": Window(sliding) if sliding else None,
        "chunked_attention": Window(chunk, chunked=True) if chunk else None,
    }
    types = getattr(config, "layer_types", None)
    if not types:
        return {"sliding_attention" if sliding else "full_attention": known["sliding_attention"]}
    strange = sorted(set(types) - set(known))
    if strange:
        raise TargetRefused(
            f"{config.model_type} has layers of type {', '.join(strange)}: their state cannot be "
            "rolled back to an accepted path. Use a model with attention layers only."
        )
    return {name: known[name] for name in dict.fromkeys(types)}


def head_transform(config: Any) -> Callable[[Tensor], Tensor]:
    """What a family does to the output of its head: scale (Cohere, Granite), soft cap (Gemma)."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def transform(logits: Tensor) -> Tensor:
        scaled = logits if scale == 1.0 else logits * scale
        return scaled if cap is None else cap * torch.tanh(scaled / cap)

    return transform
