"""Learning which tokens of a draft model the target accepts (SpecDec++, arXiv 2405.19715, section
3.2): a head on its last states, the model itself being frozen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jakiro.drafters.specdec_pp import AcceptanceConfig, AcceptanceHead
from jakiro.errors import ConfigError
from jakiro.hub import checkpoint
from jakiro.hub.models import load_model, load_tokenizer, second_model, tokenizer_beside
from jakiro.target.features import LAST_FEATURE
from jakiro.target.target import Target
from jakiro.train.config import TrainConfig
from jakiro.train.evaluate import chain_levels
from jakiro.train.features import generator_of
from jakiro.train.frozen import chunk_rows
from jakiro.train.learner import Learner, Outcome, Tally
from jakiro.train.samples import Batch

_DEPTH = 6
"""Levels of the chains that ``alpha`` tells of."""


class _Lesson(NamedTuple):
    """The states [M, H] after M drafted tokens, how likely the target is to accept each [M], and
    where model and target have the same first choice, and where that was asked, both [B, T]."""

    states: Tensor
    labels: Tensor
    hits: Tensor
    judged: Tensor


class AcceptanceLearner(Learner):
    """The text is that of the target; most of its tokens are replaced by what the draft model would
    have drawn in their places, and of each of these the head learns the probability
    ``min(1, p / q)`` with which the target accepts it. Some tokens of the text stay, so that what
    stands before a draft is not all drafted."""

    module: AcceptanceHead
    options = frozenset({"acceptance"})
    can_recompute = False

    def __init__(self, target: Target, config: TrainConfig) -> None:
        target.check_features()
        place = config.acceptance.draft_model
        if place is None:
            raise ConfigError(
                f"{config.method} is trained for a draft model: give its directory (--draft-model)"
            )
        self._place = Path(place)
        self._digest = checkpoint.digest(self._place)
        self.draft = _draft_model(self._place, target)
        super().__init__(target, config)

    def build(self) -> AcceptanceHead:
        sizes = (self.draft.hidden_size, self.config.acceptance.num_blocks)
        return AcceptanceHead(AcceptanceConfig(self.config.method, *sizes))

    def identity(self) -> dict[str, Any]:
        # The model may be named in other words, and another may come to lie in its place.
        return {"acceptance": {**asdict(self.config.acceptance), "draft_model": self._digest}}

    def counts(self, batch: Batch) -> Tensor:
        return batch.carries_loss[:, 1:].sum().double()[None]

    def loss(self, batch: Batch, totals: Tensor, seed: int) -> Outcome:
        losses, tally = self._measured(batch, seed)
        return Outcome(losses.sum() / totals[0].to(losses).clamp_min(1), tally)

    def judge(self, batch: Batch) -> Tally:
        return self._measured(batch, 0)[1]

    def save(self, module: nn.Module, directory: Path, notes: Mapping[str, Any]) -> None:
        """The place of the draft model is kept as seen from ``directory``, in the settings of the
        run too, and with the digest of its weights: both hold on another machine."""
        assert isinstance(module, AcceptanceHead)
        place = os.path.relpath(self._place.resolve(), directory.resolve())
        draft = {
            "path": place,
            "digest": self._digest,
            "fingerprint": self.draft.fingerprint(),
        }
        own = self.config.acceptance
        told = replace(self.config, acceptance=replace(own, draft_model=place))
        notes = {
            **notes,
            "training": asdict(told),
            "draft_model": draft,
            "options": {"threshold": own.threshold},
        }
        checkpoint.save(module, directory, self.target.fingerprint(), notes, torch.float32)

    def _measured(self, batch: Batch, seed: int) -> tuple[Tensor, Tally]:
        """The loss at each drafted token, and what to report: how likely acceptance was said to be
        and how likely it was, and how often both were on one side of a half."""
        lesson = self._lesson(batch, seed)
        odds = self.module(lesson.states)
        weight = self.config.acceptance.reject_weight
        losses = -lesson.labels * F.logsigmoid(odds)
        losses = losses - weight * (1 - lesson.labels) * F.logsigmoid(-odds)
        count = torch.tensor(float(len(odds)), device=odds.device)
        summed = {
            "cross_entropy": losses.detach().sum(),
            "predicted": odds.detach().sigmoid().sum(),
            "accepted": lesson.labels.sum(),
            "accuracy": ((odds > 0) == (lesson.labels > 0.5)).float().sum(),
        }
        tally = {name: torch.stack([total, count])[:, None] for name, total in summed.items()}
        alpha = chain_levels([lesson.hits] * _DEPTH, [lesson.judged] * _DEPTH)
        return losses, tally | {"alpha": alpha}

    @torch.no_grad()
    def _lesson(self, batch: Batch, seed: int) -> _Lesson:
        device = self.target.device
        ids, lengths = batch.ids.to(device), batch.lengths.to(device)
        judged = torch.zeros_like(ids, dtype=torch.bool)
        judged[:, :-1] = batch.carries_loss[:, 1:].to(device)
        places = judged.flatten().nonzero()[:, 0]
        chances = _uniforms(batch, seed).to(device)
        theirs, mine = (
            of.features(ids, lengths, LAST_FEATURE).flatten(0, 1)[places]
            for of in (self.target, self.draft)
        )
        size = chunk_rows(device, self.target.vocab_size)
        draws = chances[:, :, 0].roll(-1, 1).flatten()[places]
        parts = zip(*(part.split(size) for part in (theirs, mine, draws)), strict=True)
        tokens, labels, same = map(
            torch.cat, zip(*(self._drawn(*part) for part in parts), strict=True)
        )
        # What is drawn at a place stands at the next.
        drawn, wanted = ids.flatten().clone(), torch.zeros(ids.numel(), device=device)
        drawn[places + 1], wanted[places + 1] = tokens, labels
        is_drawn = torch.zeros_like(judged).flatten()
        is_drawn[places + 1] = True
        is_drawn &= chances[:, :, 1].flatten() >= self.config.acceptance.text_share
        mixed = torch.where(is_drawn, drawn, ids.flatten()).view_as(ids)
        mixed = mixed.where(mixed < self.draft.vocab_size, 0)
        states = self.draft.features(mixed, lengths, LAST_FEATURE).flatten(0, 1)[is_drawn]
        hits = torch.zeros_like(judged)
        hits.view(-1)[places] = same
        return _Lesson(states.float(), wanted[is_drawn], hits, judged)

    def _drawn(self, theirs: Tensor, mine: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From features [M, H] of target and model, and uniform numbers [M]: a token the model
        draws, how likely the target accepts it, and whether their first choices agree, each [M]."""
        of_target = self.target.lm_head(theirs).float()
        of_model = self.draft.lm_head(mine).float()[:, : of_target.shape[-1]]
        best = of_model.argmax(-1)
        same = best == of_target.argmax(-1)
        temperature = self.config.acceptance.temperature
        if not temperature:
            return best, same.float(), same
        target_probs, draft_probs = (
            (logits / temperature).softmax(-1) for logits in (of_target, of_model)
        )
        total = draft_probs.double().cumsum(-1)
        tokens = torch.searchsorted(total, draws[:, None] * total[:, -1:], right=True)
        tokens = tokens.clamp_max(draft_probs.shape[-1] - 1)
        p, q = (probs.gather(1, tokens)[:, 0] for probs in (target_probs, draft_probs))
        return tokens[:, 0], (p / q.clamp_min(1e-30)).clamp_max(1), same


def _uniforms(batch: Batch, seed: int) -> Tensor:
    """[B, T, 2] float64 for every place: which token is drawn, and whether it is used."""
    chances = torch.zeros(*batch.ids.shape, 2, dtype=torch.float64)
    for row, (index, length) in enumerate(
        zip(batch.indices.tolist(), batch.lengths.tolist(), strict=True)
    ):
        own = torch.rand(length, 2, generator=generator_of(seed, index), dtype=torch.float64)
        chances[row, :length] = own
    return chances


def _draft_model(place: Path, target: Target) -> Target:
    """The model in ``place``, which must share the vocabulary of ``target``."""
    model = load_model(place, torch.float32, target.device).requires_grad_(False)
    source = target.model.name_or_path
    tokenizers = (tokenizer_beside(place), load_tokenizer(source) if source else None)
    wrapped = second_model(model, target, tokenizers, "the draft model")
    wrapped.check_features()
    return wrapped
