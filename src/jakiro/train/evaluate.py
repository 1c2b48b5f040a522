"""Held-out quality of a head: per-branch accuracy, and how far greedy chains would reach."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.drafters.nn import DraftHead
from jakiro.target.target import Target
from jakiro.train.config import LossOptions
from jakiro.train.features import teach
from jakiro.train.learner import Tally
from jakiro.train.losses import Losses, measure, share_of
from jakiro.train.rollout import carry_of, rollout
from jakiro.train.samples import Batch
from jakiro.train.sharpness import surprise

RECALL_WIDTHS = (2, 4, 8)


@torch.no_grad()
def judge(head: DraftHead, target: Target, batch: Batch, depth: int = 6) -> Tally:
    """``accuracy``: top-1 agreement with the target per branch, on true features. ``alpha``: of
    chains of ``depth`` levels; contrastive branches give the last of them. ``recall_K``: by level,
    how often the target's first choice is among the K best children of the text's own chain: what a
    tree of that width can reach, of one feature or of several. And the ``surprise``."""
    sizes = head.config
    lesson = teach(target, batch, needs=sizes.needs)
    passes = max(1, depth - sizes.contrast_levels)
    carry = carry_of(sizes, target, lesson.tokens)
    outputs = rollout(
        head, lesson.embeddings, lesson.inputs, passes, sizes.contrast_levels, carry=carry
    )
    losses = measure(outputs, lesson, target, share_of(sizes, LossOptions()))
    counted = [each[0].sum((1, 2)).float() for each in (losses.hits, losses.valid)]
    recall = {f"recall_{width}": count_recall(losses, width) for width in RECALL_WIDTHS}
    tally = {"accuracy": torch.stack(counted), "alpha": count_levels(losses), **recall}
    return tally | surprise(outputs[0], lesson, target, batch.indices.tolist())


def count_recall(losses: Losses, width: int) -> Tensor:
    """[2, D]: at each level how often the target's first choice was among the ``width`` best, and
    at how many places it was asked."""
    found = (losses.ranks < width) & losses.valid
    levels = [
        torch.cat([each[:, 0], each[-1, 1:]]).sum((1, 2)).float() for each in (found, losses.valid)
    ]
    return torch.stack(levels)


def count_levels(losses: Losses) -> Tensor:
    """Of the greedy chains that start at every position: [2, D], how many were accepted at each
    depth, and how many were accepted before it and had a position left to be judged at.

    A chain is fed the text's own token at every level, so it follows the target exactly where the
    text is what the target would write; elsewhere this is an approximation.
    """
    hits = [*losses.hits[:, 0], *losses.hits[-1:, 1:].flatten(0, 1)]
    valid = [*losses.valid[:, 0], *losses.valid[-1:, 1:].flatten(0, 1)]
    return chain_levels(hits, valid)


def chain_levels(hits: Sequence[Tensor], valid: Sequence[Tensor]) -> Tensor:
    """``count_levels`` of any drafter: per level [B, T], was the target's choice at place s hit
    by the chain that starts ``level`` places before, and was there one to be hit."""
    alive = torch.ones_like(hits[0])
    counts = []
    for level, (hit, judged) in enumerate(zip(hits, valid, strict=True)):
        # The chain that starts at s is judged at s + level.
        asked = alive & shifted(judged, level)
        alive = asked & shifted(hit, level)
        counts.append(torch.stack([alive.sum(), asked.sum()]))
    return torch.stack(counts, 1).float()


def shifted(values: Tensor, by: int) -> Tensor:
    """``values`` [B, T] moved ``by`` places to the front (back, where negative), 0 where nothing
    comes."""
    width = values.shape[1]
    if by >= 0:
        return F.pad(values[:, by:], (0, min(by, width)))
    return F.pad(values[:, : max(0, width + by)], (min(-by, width), 0))
