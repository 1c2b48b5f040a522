"""What the frozen target hands to the head: features, embeddings, and the noise on the former."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jakiro.target.features import LAST_FEATURE, FeatureSpec
from jakiro.target.target import Target
from jakiro.train.samples import Batch


@dataclass(frozen=True, eq=False)
class Lesson:
    """One batch seen by the target. Pair i of the N = T - 1 pairs is (token i + 1, feature i).

    ``tokens`` [B, N], as ``embeddings`` [B, N, H], and ``inputs`` [B, N, F] go into the head, F
    being H and more where it reads streams besides; ``features`` [B, T, H] are what it should
    predict. ``wanted`` [B, T]: feature s is predicted where the token s + 1, which it decides,
    carries loss.
    """

    tokens: Tensor
    embeddings: Tensor
    inputs: Tensor
    features: Tensor
    wanted: Tensor


@torch.no_grad()
def teach(
    target: Target,
    batch: Batch,
    noise: float = 0.0,
    seed: int = 0,
    needs: FeatureSpec = LAST_FEATURE,
) -> Lesson:
    """Run the target over ``batch``. No gradient reaches it, nor its embedding. ``noise`` is on the
    last features only."""
    ids = batch.ids.to(target.device)
    lengths = batch.lengths.to(target.device)
    *below, features = target.features(ids, lengths, needs).split(target.hidden_size, -1)
    inputs = features[:, :-1]
    if noise:
        inputs = add_noise(inputs, batch, noise, seed)
    if below:
        inputs = torch.cat([*(stream[:, :-1] for stream in below), inputs], -1)
    places = wanted(batch.carries_loss).to(ids.device)
    return Lesson(ids[:, 1:], target.embed(ids[:, 1:]), inputs, features, places)


def wanted(carries_loss: Tensor) -> Tensor:
    """Features [B, T] to be predicted, from the tokens [B, T] that carry loss."""
    places = carries_loss.roll(-1, 1)
    places[:, -1] = False
    # Feature 0 has no pair before it that could predict it.
    places[:, 0] = False
    return places


def add_noise(features: Tensor, batch: Batch, width: float, seed: int) -> Tensor:
    """``f + (U[0, 1) - 0.5) * width * 512 / T`` with each row's own length T: long texts get less.

    ``features`` [B, N, H]. Drawn on the CPU and keyed by ``seed`` and the index of the sample, so
    the noise of a sample is the same on every machine and in every batch.
    """
    noise = torch.zeros(features.shape)
    for row, (index, length) in enumerate(
        zip(batch.indices.tolist(), batch.lengths.tolist(), strict=True)
    ):
        generator = generator_of(seed, index)
        places = min(length, features.shape[1])
        uniform = torch.rand(places, features.shape[2], generator=generator)
        noise[row, :places] = (uniform - 0.5) * (width * 512 / length)
    return features + noise.to(features.device, features.dtype)


def generator_of(seed: int, index: int) -> torch.Generator:
    """Of the randomness of sample ``index`` in a step of ``seed``, on the CPU."""
    key = int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(key >> 1)
