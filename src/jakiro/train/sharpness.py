"""How much surer of the target's choice a head may be than its logits say.

A head learns how likely the target finds each token. A tree asks which one the target will choose:
the largest of its logits plus the noise that both know. If draft logits q err by Gumbel noise of
scale s, that is token x with the probability ``softmax((q + T G) / s)_x``. So one number per
branch, ``1 / s``, turns scores into chances of acceptance. It is fitted on held-out text, half
greedy and half at T = 1, as confidence is calibrated by a temperature (arXiv 1706.04599).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.drafters.experts import HeadOutput
from jakiro.target.target import Target
from jakiro.train.features import Lesson, generator_of
from jakiro.train.learner import Tally

GRID = tuple(tenth / 10 for tenth in range(4, 26))
"""What is tried."""
EVERY = 4
"""Of the positions that carry loss one of so many is asked."""


@torch.no_grad()
def surprise(output: HeadOutput, lesson: Lesson, target: Target, indices: Sequence[int]) -> Tally:
    """``surprise_c`` of each branch c, from 1: by how much the target's choices surprise a head of
    each sharpness of ``GRID``, in nats. ``indices`` [B] of the samples seed the noise."""
    names = [f"surprise_{branch}" for branch in range(1, 2 + len(output.ahead))]
    tally = {name: torch.zeros(2, len(GRID), device=lesson.features.device) for name in names}
    for row, index in enumerate(indices):
        places = lesson.wanted[row].nonzero()[::EVERY, 0]
        wanted = target.lm_head(lesson.features[row, places]).float()
        noise = torch.empty(wanted.shape).exponential_(generator=generator_of(0, index))
        noise = -noise.log().to(wanted.device)
        noise[::2] = 0.0
        choices = (wanted + noise).argmax(-1)
        for branch, law in enumerate(_laws(output, row, places, target), 1):
            # Branch c predicts from the pair c places before.
            asked = places >= branch
            noisy, chosen = (law + noise)[asked], choices[asked]
            nats = [F.cross_entropy(sharp * noisy, chosen, reduction="sum") for sharp in GRID]
            count = asked.sum().expand(len(GRID))
            tally[names[branch - 1]] += torch.stack([torch.stack(nats), count.float()])
    return tally


def _laws(output: HeadOutput, row: int, places: Tensor, target: Target) -> Iterator[Tensor]:
    """Of each branch its logits [M, V] for what the target chooses after ``places`` [M]."""
    pairs = (places - 1).clamp_min(0)
    if output.experts is None:
        yield target.lm_head(output.next[row, pairs]).float()
    else:
        features, weights = (part[row, pairs] for part in output.experts)
        laws = target.lm_head(features).float().log_softmax(-1)
        yield (laws + weights.float().log()[..., None]).logsumexp(-2)
    for ahead, feature in enumerate(output.ahead, 2):
        yield target.lm_head(feature[row, (places - ahead).clamp_min(0)]).float()


def fitted(held_out: Mapping[str, Sequence[float]], branches: int) -> list[float]:
    """The least surprised sharpness of each branch, from the readings of ``surprise``; 1 where
    nothing was asked."""
    found = [list(held_out[f"surprise_{branch}"]) for branch in range(1, branches + 1)]
    return [GRID[nats.index(min(nats))] if any(nats) else 1.0 for nats in found]
