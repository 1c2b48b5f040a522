"""Learning the heads of ``drafters/nn.py``: from true features, or their own, to the next ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jakiro.drafters.nn import DraftHead, HeadConfig
from jakiro.drafters.registry import find
from jakiro.errors import ConfigError
from jakiro.hub import checkpoint
from jakiro.target.target import Target
from jakiro.train.config import TrainConfig
from jakiro.train.evaluate import count_levels, judge
from jakiro.train.features import teach, wanted
from jakiro.train.learner import Learner, Outcome, Tally
from jakiro.train.losses import Kernel, Losses, measure, score, share_of
from jakiro.train.rollout import carry_of, rollout
from jakiro.train.samples import Batch, Samples
from jakiro.train.sharpness import fitted
from jakiro.train.vocabulary import frequent_tokens


class FeatureHead(Learner):
    """A draft head that predicts the target's features."""

    module: DraftHead
    options = frozenset({"head", "loss", "noise", "start", "unroll"})

    def __init__(self, target: Target, config: TrainConfig) -> None:
        self._start = None if config.start is None else _Start.read(target, config)
        self.sizes = head_config(target, config) if self._start is None else self._start.head.config
        target.check_features(self.sizes.needs)
        self._kernel: Kernel = score
        super().__init__(target, config)

    def compile(self, backend: str) -> None:
        self._kernel = torch.compile(score, backend=backend, dynamic=True)

    def build(self) -> DraftHead:
        head = DraftHead(self.sizes)
        if self._start is not None:
            head.load_state_dict(self._start.head.state_dict())
        return head

    def identity(self) -> dict[str, Any]:
        # A directory may be named in other words, and another head may come to lie in its place.
        return {} if self._start is None else {"start": self._start.digest}

    def prepare(self, samples: Samples, special: Collection[int]) -> None:
        if (size := self.sizes.draft_vocab_size) is not None and self._start is None:
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
        means = measure(
            outputs, lesson, self.target, share_of(self.sizes, self.config.loss), self._kernel
        )
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
        advice = None if self._start is None else self._start.advice
        if advice is not None:
            notes |= {"tree": advice.tree, "options": dict(advice.options)}
        if (found := notes.get("held_out")) is not None:
            branches = 1 + self.sizes.contrast_levels
            notes["options"] = notes.get("options", {}) | {"sharpness": fitted(found, branches)}
            # What it was fitted to is in the history.
            notes["held_out"] = {
                name: value for name, value in found.items() if not name.startswith("surprise")
            }
        checkpoint.save(module, directory, self.target.fingerprint(), notes, torch.float32)


class _Start(NamedTuple):
    """The head that a run starts from, what its checkpoint recommends, and its digest."""

    head: DraftHead
    advice: checkpoint.Advice
    digest: str

    @classmethod
    def read(cls, target: Target, config: TrainConfig) -> _Start:
        """The one that ``config`` names. Raises ``ConfigError`` where it is of another kind or of
        other sizes than ``config`` asks for, ``PairMismatch`` and ``CheckpointError``."""
        directory = Path(str(config.start))
        head = checkpoint.load(directory, target.fingerprint())
        found = head.config.method
        if not isinstance(head, DraftHead) or found != config.method:
            raise ConfigError(
                f"{directory} holds a {found} head, not one of {config.method}: say --method "
                f"{found}, or start from another head"
            )
        asked = {name: size for name, size in asdict(config.head).items() if size is not None}
        for name, value in asked.items():
            if (own := getattr(head.config, name)) != value:
                raise ConfigError(
                    f"{name} of the head in {directory} is {own!r}, {value!r} is asked for; leave "
                    "it out, or train from random weights"
                )
        weights = checkpoint.read_config(directory)["weights"]
        return cls(head, checkpoint.advice(directory), weights)


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
