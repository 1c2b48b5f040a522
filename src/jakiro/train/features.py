"""What the frozen target hands to the head: features, embeddings, and the noise on the former."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jakiro.target.features import LAST_FEATURE
from jakiro.target.target import Target
from jakiro.train.data import Batch


@dataclass(frozen=True, eq=False)
class Lesson:
    """One batch seen by the target. Pair i of the N = T - 1 pairs is (token i + 1, feature i).

    ``embeddings`` [B, N, H] and ``inputs`` [B, N, H] go into the head; ``features`` [B, T, H] are
    what it should predict. ``wanted`` [B, T]: feature s is predicted where the token s + 1, which
    it decides, carries loss.
    """

    embeddings: Tensor
    inputs: Tensor
    features: Tensor
    wanted: Tensor


@torch.no_grad()
def teach(
    target: Target, batch: Batch, noise: float = 0.0, generator: torch.Generator | None = None
) -> Lesson:
    """Run the target over ``batch``. No gradient reaches it, nor its embedding."""
    ids = batch.ids.to(target.device)
    lengths = batch.lengths.to(target.device)
    features = target.features(ids, lengths, LAST_FEATURE)
    inputs = features[:, :-1]
    if noise:
        inputs = add_noise(inputs, lengths, noise, generator)
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    wanted[:, :-1] = batch.carries_loss.to(ids.device)[:, 1:]
    # Feature 0 has no pair before it that could predict it.
    wanted[:, 0] = False
    return Lesson(target.embed(ids[:, 1:]), inputs, features, wanted)


def add_noise(
    features: Tensor, lengths: Tensor, width: float, generator: torch.Generator | None = None
) -> Tensor:
    """``f + (U[0, 1) - 0.5) * width * 512 / T`` with each row's own length T: long texts get less.

    ``features`` [B, N, H], ``lengths`` [B]. Drawn on the CPU, so a seed means the same everywhere.
    """
    uniform = torch.rand(features.shape, generator=generator).to(features.device)
    scale = width * 512 / lengths[:, None, None].float()
    return features + ((uniform - 0.5) * scale).to(features.dtype)
