"""The target's head as a part of what is learned, without being learned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from jakiro.target.families import head_transform
from jakiro.target.target import Target

CHUNK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Logits held at once: what fits a cache, or keeps an accelerator busy."""


def chunk_rows(device: torch.device, width: int) -> int:
    """How many rows of ``width`` logits are worked on at once; one at least."""
    return max(1, CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cuda"]) // width)


def chunk_bytes(device: torch.device, width: int) -> int:
    """About what such a chunk and all that is made of it take: five tensors in float32."""
    return 20 * width * chunk_rows(device, width)


def frozen_head(target: Target) -> Callable[[Tensor], Tensor]:
    """``Target.lm_head`` through which gradients pass to the features only: its weights, which may
    require some, are left out."""
    head, transform = target.model.get_output_embeddings(), head_transform(target.config)
    weights = {name: tensor.detach() for name, tensor in head.named_parameters()}

    def logits(features: Tensor) -> Tensor:
        return transform(functional_call(head, weights, (features,)))

    return logits
