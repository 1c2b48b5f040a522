"""Learning the heads of ``drafters/nn.py``: from true features, or their own, to the next ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jakiro.drafters.nn import DraftHead, HeadConfig
from jakiro.drafters.registry import find
from jakiro.hub import checkpoint
from jakiro.target.target import Target
from jakiro.train.config import TrainConfig
from jakiro.train.evaluate import count_levels, judge
from jakiro.train.features import teach, wanted
from jakiro.train.learner import Learner, Outcome, Tally
from jakiro.train.losses import Losses, measure, share_of
from jakiro.train.rollout import carry_of, rollout
from jakiro.train.samples import Batch, Samples
from jakiro.train.sharpness import fitted
from jakiro.train.vocabulary import frequent_tokens


class FeatureHead(Learner):
    """A draft head that predicts the target's features."""

    module: DraftHead
    options = frozenset({"head", "loss", "noise", "unroll"})

    def __init__(self, target: Target, config: TrainConfig) -> None:
        self.sizes = head_config(target, config)
        target.check_features(self.sizes.needs)
        super().__init__(target, config)

    def build(self) -> DraftHead:
        return DraftHead(self.sizes)

    def prepare(self, samples: Samples, special: Collection[int]) -> None:
        if (size := self.sizes.draft_vocab_size) is not None:
            ids = frequent_tokens(samples.counts(self.sizes.vocab_size), size, special)
            self.module.get_buffer("draft_ids").copy_(ids)

    def counts(self, batch: Batch) -> Tensor:
        """Of J passes with C branches each, [J * C]: pass j predicts no feature before j + 1 with
        branch 1, before j + 2 with branch 2."""
        positions = wanted(batch.carries_loss)
        branches = 1 + self.sizes.contrast_levels
        return torch.stack(
            [
                positions[:, number + ahead :].sum()
                for number in range(self.config.unroll)
                for ahead in range(1, branches + 1)
            ]
        ).double()

    def loss(self, batch: Batch, totals: Tensor, seed: int) -> Outcome:
        lesson = teach(self.target, batch, self.config.noise, seed, self.sizes.needs)
        outputs = rollout(
            self.module,
            lesson.embeddings,
            lesson.inputs,
            self.config.unroll,
            self.sizes.contrast_levels,
            self.recompute,
            carry_of(self.sizes, self.target, lesson.tokens),
        )
        means = measure(outputs, lesson, self.target, share_of(self.sizes, self.config.loss))
        own = means.valid.sum((2, 3))
        share = (own / totals.to(own.device).view_as(own).clamp_min(1)).float()
        losses = replace(
            means,
            feature=means.feature * share,
            token=means.token * share,
            balance=means.balance * share[0, 0],
            similarity=means.similarity * share[0, 0],
        )
        return Outcome(losses.total(self.config.loss), _tally(means))

    def judge(self, batch: Batch) -> Tally:
        return judge(self.module, self.target, batch)

    def save(self, module: nn.Module, directory: Path, notes: Mapping[str, Any]) -> None:
        assert isinstance(module, DraftHead)
        notes = dict(notes)
        if (found := notes.get("held_out")) is not None:
            branches = 1 + self.sizes.contrast_levels
            notes["options"] = {"sharpness": fitted(found, branches)}
            # What it was fitted to is in the history.
            notes["held_out"] = {
                name: value for name, value in found.items() if not name.startswith("surprise")
            }
        checkpoint.save(module, directory, self.target.fingerprint(), notes, torch.float32)


def _tally(losses: Losses) -> Tally:
    """Losses and accuracy per branch, of the first pass; chains as deep as the run unrolls."""
    own = losses.valid[0].sum((1, 2)).float()
    first = {"feature_losses": losses.feature[0] * own, "token_losses": losses.token[0] * own}
    return {
        **{name: torch.stack([summed.detach(), own]) for name, summed in first.items()},
        "accuracy": torch.stack([losses.hits[0].sum((1, 2)).float(), own]),
        "alpha": count_levels(losses),
    }


def head_config(target: Target, config: TrainConfig) -> HeadConfig:
    """Sizes of a head for ``target``: attention like one of its layers."""
    model: Any = target.config
    heads = int(model.num_attention_heads)
    head_dim = getattr(model, "head_dim", None) or target.hidden_size // heads
    inner = getattr(model, "intermediate_size", None) or 4 * target.hidden_size
    return HeadConfig(
        method=config.method,
        hidden_size=target.hidden_size,
        num_heads=heads,
        num_kv_heads=int(getattr(model, "num_key_value_heads", None) or heads),
        head_dim=int(head_dim),
        expert_size=config.head.expert_size or int(inner),
        vocab_size=target.vocab_size,
        rope_theta=_rope_theta(model),
        rms_norm_eps=float(getattr(model, "rms_norm_eps", None) or 1e-6),
        **{**find(config.method).settings, **config.head.settings()},
    )


def _rope_theta(model: Any) -> float:
    """The rotary base of the target; of its global layers where layer types differ."""
    rope = getattr(model, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    return float(rope.get("rope_theta") or 10000.0)
