"""Learning Medusa's heads (arXiv 2401.10774, Medusa-1): cross-entropy with the text, head by head,
on the features of a frozen target."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from jakiro.drafters.medusa import MedusaConfig, MedusaHeads
from jakiro.hub import checkpoint
from jakiro.target.features import LAST_FEATURE
from jakiro.target.target import Target
from jakiro.train.config import TrainConfig
from jakiro.train.evaluate import chain_levels, shifted
from jakiro.train.frozen import chunk_rows, frozen_head, in_parts, likeliest
from jakiro.train.learner import Learner, Outcome, Tally
from jakiro.train.samples import Batch
from jakiro.tree.shapes import TreePlan

_RANKS = 10
"""Candidates per head that a tree may use, as published."""


class _Taught(nn.Module):
    """The heads with their loss: logits of a large vocabulary live for one chunk of rows only."""

    def __init__(self, heads: MedusaHeads, lm_head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.heads = heads
        self._lm_head = lm_head

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of features [M, H] and what each of K heads should guess [M, K]: the cross-entropy and
        the rank of the label among the guesses, each [M, K]."""
        size = chunk_rows(features.device, labels.shape[1] * self.heads.config.vocab_size)
        return in_parts(
            partial(recomputed, self._measure, use_reentrant=False), size, features, labels
        )

    def _measure(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.heads(features, self._lm_head).float()
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        own = logits.detach().gather(-1, labels[:, :, None])
        return losses.view_as(labels), (logits.detach() > own).sum(-1)


class _Rows(NamedTuple):
    """The M features [M, H] from which something is to be guessed, where they stand in the
    flattened batch [M], and which of K heads has a guess to make there [M, K]."""

    features: Tensor
    places: Tensor
    asked: Tensor


class MedusaLearner(Learner):
    """Heads that start as the target's own head."""

    module: _Taught
    options = frozenset({"one_shot"})
    can_recompute = False

    def __init__(self, target: Target, config: TrainConfig) -> None:
        target.check_features()
        super().__init__(target, config)

    def build(self) -> _Taught:
        options, target = self.config.one_shot, self.target
        heads = MedusaHeads(
            MedusaConfig(
                self.config.method,
                target.hidden_size,
                target.vocab_size,
                options.num_heads,
                options.num_layers,
                options.own_head,
            )
        )
        if options.own_head:
            weight = target.model.get_output_embeddings().weight
            for name, parameter in heads.named_parameters():
                if name.endswith(f".{options.num_layers}.weight"):
                    parameter.data.copy_(weight)
        return _Taught(heads, frozen_head(target))

    def counts(self, batch: Batch) -> Tensor:
        """Head k guesses the token two and k places after its feature."""
        heads = range(self.config.one_shot.num_heads)
        return torch.stack([batch.carries_loss[:, 2 + k :].sum() for k in heads]).double()

    def loss(self, batch: Batch, totals: Tensor, seed: int) -> Outcome:
        rows = self._rows(batch)
        losses, ranks = self.module(rows.features, self._after(batch.ids, rows.places, 2))
        summed = (losses * rows.asked).sum(0)
        options = self.config.one_shot
        decay = options.decay ** torch.arange(options.num_heads, device=summed.device)
        loss = (summed * decay / totals.to(summed).clamp_min(1)).sum()
        own = rows.asked.sum(0).float()
        tally = {"token_losses": torch.stack([summed.detach(), own])}
        return Outcome(loss, tally | self._count(batch, rows, ranks == 0))

    def judge(self, batch: Batch) -> Tally:
        """``alpha`` of the likeliest path; ``ranks_k``: how often the target's choice was each of
        head k's candidates."""
        rows = self._rows(batch)
        ids, lengths = batch.ids.to(self.target.device), batch.lengths.to(self.target.device)
        features = self.target.features(ids, lengths, LAST_FEATURE)
        # The choice after place s, which is the token at s + 1 where the target wrote the text.
        choices = likeliest(self.target, features)
        _, ranks = self.module(rows.features, self._after(choices, rows.places, 1))
        tally = self._count(batch, rows, ranks == 0)
        for head in range(rows.asked.shape[1]):
            asked = rows.asked[:, head]
            found = torch.bincount(ranks[asked, head], minlength=_RANKS)[:_RANKS].float()
            tally[f"ranks_{head}"] = torch.stack([found, asked.sum().expand(_RANKS).float()])
        return tally

    def save(self, module: nn.Module, directory: Path, notes: Mapping[str, Any]) -> None:
        assert isinstance(module, _Taught)
        notes = dict(notes)
        if "held_out" in notes:
            heads = range(self.config.one_shot.num_heads)
            ranks = [notes["held_out"][f"ranks_{head}"] for head in heads]
            notes["tree"] = str(best_tree(ranks, self.config.one_shot.tree_nodes))
        fingerprint = self.target.fingerprint()
        checkpoint.save(module.heads, directory, fingerprint, notes, torch.float32)

    @torch.no_grad()
    def _rows(self, batch: Batch) -> _Rows:
        ids, lengths = batch.ids.to(self.target.device), batch.lengths.to(self.target.device)
        features = self.target.features(ids, lengths, LAST_FEATURE).flatten(0, 1)
        carries = batch.carries_loss.to(ids.device)
        heads = range(self.config.one_shot.num_heads)
        asked = torch.stack([shifted(carries, 2 + k) for k in heads], -1).flatten(0, 1)
        index = asked.any(-1).nonzero()[:, 0]
        return _Rows(features[index].float(), index, asked[index])

    def _after(self, tokens: Tensor, places: Tensor, ahead: int) -> Tensor:
        """Of ``tokens`` [B, T] those ``ahead + k`` after each place, [M, K]; 0 past the end."""
        heads = range(self.config.one_shot.num_heads)
        tokens = tokens.to(places.device)
        return torch.stack([shifted(tokens, ahead + k).flatten()[places] for k in heads], -1)

    def _count(self, batch: Batch, rows: _Rows, hits: Tensor) -> Tally:
        """Top-1 agreement per head, and the paths of likeliest guesses from every place."""
        own = rows.asked.sum(0).float()
        good = hits & rows.asked
        shape = (2, rows.asked.shape[1], batch.ids.numel())
        dense = torch.zeros(shape, dtype=torch.bool, device=hits.device)
        dense[:, :, rows.places] = torch.stack([good.T, rows.asked.T])
        # Head k at place t is judged at the target's choice after place t + 1 + k.
        placed = [
            [shifted(each, -1 - k) for k, each in enumerate(kind)]
            for kind in dense.unflatten(-1, batch.ids.shape)
        ]
        return {"accuracy": torch.stack([good.sum(0).float(), own]), "alpha": chain_levels(*placed)}


def best_tree(ranks: Sequence[Sequence[float]], num_nodes: int) -> TreePlan:
    """The tree of ``num_nodes`` with the largest expected path, if heads were independent and head
    k's candidate of rank r right with probability ``ranks[k][r]``: always the likeliest node that
    hangs below the tree so far."""
    paths: list[tuple[int, ...]] = []
    heap: list[tuple[float, tuple[int, ...]]] = [
        (-share, (rank,)) for rank, share in enumerate(ranks[0])
    ]
    heapq.heapify(heap)
    while heap and len(paths) < num_nodes:
        value, path = heapq.heappop(heap)
        paths.append(path)
        if len(path) < len(ranks):
            for rank, share in enumerate(ranks[len(path)]):
                heapq.heappush(heap, (value * share, (*path, rank)))
    return TreePlan.static(tuple(paths))
