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


def in_parts(
    measure: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], size: int, one: Tensor, two: Tensor
) -> tuple[Tensor, Tensor]:
    """The two results of ``measure`` for all rows of ``one`` and ``two``, of which it is given
    ``size`` at a time."""
    found: tuple[Tensor, Tensor] | None = None
    for first in range(0, max(1, len(one)), size):
        part = measure(one[first : first + size], two[first : first + size])
        if found is None:
            made = (each.new_empty(len(one), *each.shape[1:]) for each in part)
            found = next(made), next(made)
        # Into one place: small results of their own would each lie in what logits were freed from,
        # and the next ones would not fit there any more.
        for whole, each in zip(found, part, strict=True):
            whole[first : first + size] = each
    assert found is not None, "no rows are one part"
    return found


@torch.no_grad()
def likeliest(target: Target, features: Tensor) -> Tensor:
    """The target's choice [...] after ``features`` [..., H]."""
    rows = features.flatten(0, -2)
    found = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    size = chunk_rows(rows.device, target.vocab_size)
    for part, out in zip(rows.split(size), found.split(size), strict=True):
        out.copy_(target.lm_head(part).argmax(-1))
    return found.view(features.shape[:-1])


def frozen_head(target: Target) -> Callable[[Tensor], Tensor]:
    """``Target.lm_head`` through which gradients pass to the features only: its weights, which may
    require some, are left out."""
    head, transform = target.model.get_output_embeddings(), head_transform(target.config)
    weights = {name: tensor.detach() for name, tensor in head.named_parameters()}

    def logits(features: Tensor) -> Tensor:
        return transform(functional_call(head, weights, (features,)))

    return logits
