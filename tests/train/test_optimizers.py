"""Which weights each optimiser moves, and how far."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon

from jakiro.errors import ConfigError
from jakiro.target.target import Target
from jakiro.train.medusa import MedusaLearner
from jakiro.train.optimizers import optimizers, state_bytes
from jakiro.train.samples import Samples
from jakiro.train.trainer import Trainer
from tests.train.test_trainer import short


def names(module: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    return {name for name, each in module.named_parameters() if id(each) in held}


def test_adamw_takes_everything(target: Target) -> None:
    module = MedusaLearner(target, short(method="medusa", unroll=1)).module
    (only,) = optimizers(module, short(), target.vocab_size)
    assert isinstance(only, AdamW)
    assert names(module, only) == {name for name, _ in module.named_parameters()}
    assert state_bytes(module, short(), target.vocab_size) == 12 * sum(
        each.numel() for each in module.parameters()
    )


def test_muon_leaves_vocabularies_and_vectors_to_adamw(target: Target) -> None:
    config = short(method="medusa", unroll=1, optimizer="muon")
    module = MedusaLearner(target, config).module
    adamw, muon = optimizers(module, config, target.vocab_size)
    assert isinstance(adamw, AdamW)
    assert isinstance(muon, Muon)
    weights = dict(module.named_parameters())
    hidden = {
        name
        for name, each in weights.items()
        if each.shape == (target.hidden_size, target.hidden_size)
    }
    assert names(module, muon) == hidden
    assert names(module, adamw) == set(weights) - hidden
    assert any(target.vocab_size in weights[name].shape for name in names(module, adamw))
    moments = sum(each.numel() * (1 if name in hidden else 2) for name, each in weights.items())
    network = sum(each.numel() for each in weights.values())
    assert state_bytes(module, config, target.vocab_size) == 4 * (network + moments)


def test_a_step_of_muon_turns_all_directions_by_the_same(
    target: Target, samples: Samples, out: Path
) -> None:
    """Its update is near an orthogonal matrix, as large in the mean square as AdamW's usual 0.2."""
    config = short(optimizer="muon", steps=1, warmup=0, weight_decay=0.0)
    trainer = Trainer(target, samples, config, out)
    weight = trainer.learner.module.get_parameter("layers.0.self_attn.o_proj.weight")
    before = weight.detach().clone()
    trainer.run()
    update = (weight.detach() - before) / config.lr
    assert update.square().mean().sqrt() == pytest.approx(0.2, rel=0.15)
    # Five steps of Newton-Schulz lift all directions but the very weakest to about the same size.
    sizes = torch.linalg.svdvals(update)
    sizes /= sizes.median()
    assert sizes.max() < 1.6
    assert (sizes > 0.6).float().mean() > 0.85


def test_other_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="adamw or muon, got 'sgd'"):
        short(optimizer="sgd")
