"""Learning the target's next-token distribution: forward KL, on text the target should have
written."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from jakiro.target.features import LAST_FEATURE, FeatureSpec
from jakiro.target.target import Target
from jakiro.train.config import TrainConfig
from jakiro.train.evaluate import chain_levels
from jakiro.train.frozen import chunk_rows, in_parts
from jakiro.train.learner import Learner, Outcome, Tally
from jakiro.train.samples import Batch

_DEPTH = 6
"""Levels of the chains that are judged."""


class Student(nn.Module):
    """What is taught, with its loss; logits of a large vocabulary live for a chunk of rows only."""

    def __init__(self, teacher: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._teacher = teacher

    @abstractmethod
    def states(self, inputs: Tensor) -> Tensor:
        """What goes into its head [B, T, H], from ``inputs`` [B, T, ..]."""

    @abstractmethod
    def logits(self, states: Tensor) -> Tensor:
        """[M, V] of ``states`` [M, H]."""

    def forward(
        self, inputs: Tensor, features: Tensor, places: Tensor, recompute: bool
    ) -> tuple[Tensor, Tensor]:
        """At ``places`` [M] of the flattened ``inputs`` [B, T, ..], where the target has the last
        ``features`` [M, H]: divergence from the target, and whether the likeliest token is the
        same, each [M]."""
        run = partial(recomputed, self.states, use_reentrant=False) if recompute else self.states
        states = run(inputs).flatten(0, 1)[places]
        size = chunk_rows(features.device, self._teacher(features[:1]).shape[-1])
        return in_parts(
            partial(recomputed, self._measure, use_reentrant=False), size, states, features
        )

    def _measure(self, states: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        mine = self.logits(states).float()
        with torch.no_grad():
            theirs = self._teacher(features).float()
        wanted = theirs.log_softmax(-1)
        divergence = (wanted.exp() * (wanted - mine.log_softmax(-1))).sum(-1)
        return divergence, mine.argmax(-1) == theirs.argmax(-1)


class Distiller(Learner):
    """Teaches a ``Student`` at every place whose next token carries loss. ``reads``: the layer
    whose stream its inputs are; None: the token ids."""

    module: Student

    def __init__(self, target: Target, config: TrainConfig) -> None:
        target.check_features()
        super().__init__(target, config)

    @property
    def reads(self) -> int | None:
        return None

    def counts(self, batch: Batch) -> Tensor:
        return batch.carries_loss[:, 1:].sum().double()[None]

    def loss(self, batch: Batch, totals: Tensor, seed: int) -> Outcome:
        divergences, tally = self._measured(batch)
        return Outcome(divergences.sum() / totals[0].to(divergences).clamp_min(1), tally)

    def judge(self, batch: Batch) -> Tally:
        return self._measured(batch)[1]

    def _measured(self, batch: Batch) -> tuple[Tensor, Tally]:
        """The divergence wherever the next token carries loss, and what to report of it."""
        ids, lengths = batch.ids.to(self.target.device), batch.lengths.to(self.target.device)
        judged = torch.zeros_like(ids, dtype=torch.bool)
        judged[:, :-1] = batch.carries_loss[:, 1:].to(ids.device)
        places = judged.flatten().nonzero()[:, 0]
        needs = LAST_FEATURE if self.reads is None else FeatureSpec(True, (self.reads,))
        *below, last = self.target.features(ids, lengths, needs).split(self.target.hidden_size, -1)
        inputs = below[0].float() if below else ids
        divergences, hits = self.module(inputs, last.flatten(0, 1)[places], places, self.recompute)
        hit = torch.zeros_like(judged)
        hit.view(-1)[places] = hits
        count = judged.sum().float()
        return divergences, {
            "divergence": torch.stack([divergences.detach().sum(), count])[:, None],
            "accuracy": torch.stack([hit.sum().float(), count])[:, None],
            "alpha": chain_levels([hit] * _DEPTH, [judged] * _DEPTH),
        }
