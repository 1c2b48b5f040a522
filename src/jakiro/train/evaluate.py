"""Held-out quality of a head: per-branch accuracy, and the τ a greedy chain would reach."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jakiro.drafters.nn import DraftHead
from jakiro.target.target import Target
from jakiro.train.data import Batch
from jakiro.train.features import teach
from jakiro.train.losses import Losses, measure
from jakiro.train.rollout import rollout


@dataclass(frozen=True)
class Quality:
    """``accuracy``: top-1 agreement with the target per branch, on true features. ``alpha``:
    acceptance by depth, given that the chain got there. ``tau``: see ``chain_tau``."""

    accuracy: list[float]
    alpha: list[float]
    tau: float


@torch.no_grad()
def evaluate(head: DraftHead, target: Target, batches: list[Batch], depth: int = 6) -> Quality:
    """Measure ``head`` on ``batches`` with chains of ``depth`` levels; with a second branch it
    gives the last of them."""
    head.eval()
    contrast = head.config.contrast
    passes = max(1, depth - contrast)
    branches = 1 + contrast
    right, total = torch.zeros(branches), torch.zeros(branches)
    levels = torch.zeros(2, passes + contrast)
    for batch in batches:
        lesson = teach(target, batch)
        outputs = rollout(head, lesson.embeddings, lesson.inputs, passes, contrast)
        losses = measure(outputs, lesson, target)
        right += losses.hits[0].sum((1, 2)).cpu()
        total += losses.valid[0].sum((1, 2)).cpu()
        levels += count_levels(losses).cpu()
    head.train()
    alpha = _ratio(levels[0], levels[1])
    return Quality(_ratio(right, total).tolist(), alpha.tolist(), chain_tau(levels))


def count_levels(losses: Losses) -> Tensor:
    """Of the greedy chains that start at every position: [2, D], how many were accepted at each
    depth, and how many were accepted before it and had a position left to be judged at.

    A chain is fed the text's own token at every level, so it follows the target exactly where the
    text is what the target would write; elsewhere this is an approximation.
    """
    hits = [*losses.hits[:, 0], *losses.hits[-1:, 1:].flatten(0, 1)]
    valid = [*losses.valid[:, 0], *losses.valid[-1:, 1:].flatten(0, 1)]
    alive = torch.ones_like(hits[0])
    counts = []
    for level, (hit, judged) in enumerate(zip(hits, valid, strict=True)):
        # The chain that starts at s is judged at s + level.
        width = alive.shape[1] - level
        asked = alive[:, :width] & judged[:, level:]
        alive = torch.nn.functional.pad(asked & hit[:, level:], (0, level))
        counts.append(torch.stack([alive.sum(), asked.sum()]))
    return torch.stack(counts, 1).float()


def chain_tau(levels: Tensor) -> float:
    """Expected tokens per verification, ``1 + a_1 + a_1 a_2 + ...``, from ``count_levels``."""
    return 1.0 + float(_ratio(levels[0], levels[1]).cumprod(0).sum())


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp_min(1)
