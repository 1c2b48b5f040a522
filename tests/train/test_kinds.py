"""Every kind of head learns what it is drafted with."""

from __future__ import annotations

import pytest
import torch

from jakiro.train.config import HeadOptions, LossOptions, TrainConfig
from jakiro.train.feature_head import FeatureHead
from jakiro.train.learner import readings
from tests.train.support import samples_of, tiny_target

KINDS = {
    "sum": ("jakiro", HeadOptions()),
    "decoupled": ("jakiro", HeadOptions(branches="decoupled", contrast_levels=0)),
    "three": ("jakiro", HeadOptions(branches="decoupled", num_experts=3, contrast_levels=2)),
    "star": ("jakiro_star", HeadOptions()),
    "one": ("eagle1", HeadOptions()),
    "streams": ("jakiro", HeadOptions(reads=(0, 1))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_fall_on_every_branch_and_level(kind: str) -> None:
    target, samples = tiny_target(), samples_of(count=8, length=24)
    method, options = KINDS[kind]
    weights = LossOptions(token_weight=0.5, balance=0.01, diversity=0.01)
    learner = FeatureHead(
        target, TrainConfig(method=method, head=options, loss=weights, unroll=2, noise=0.0)
    )
    optimizer = torch.optim.AdamW(learner.module.parameters(), lr=3e-3)
    batch, history = samples.batch(list(range(8))), []
    for step in range(40):
        outcome = learner.loss(batch, learner.counts(batch), step)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        history.append(readings(outcome.tally))
    first, last = history[0], history[-1]
    for before, after in zip(first["feature_losses"], last["feature_losses"], strict=True):
        assert after < 0.85 * before
    for before, after in zip(first["token_losses"], last["token_losses"], strict=True):
        assert after < before - 0.3
    quality = readings(learner.judge(batch))
    contrasts = learner.sizes.contrast_levels
    assert len(quality["accuracy"]) == len(last["token_losses"]) == 1 + contrasts
    assert quality["accuracy"][0] > 0.4 and quality["tau"] > 1.5
    assert len(quality["recall_2"]) == len(quality["alpha"]) == 6
    for few, more in zip(quality["recall_2"], quality["recall_8"], strict=True):
        assert few <= more
    assert quality["recall_2"][0] >= quality["accuracy"][0]


def test_streams_are_learned_and_judged() -> None:
    target, samples = tiny_target(), samples_of(count=4, length=24)
    options = HeadOptions(reads=(0, 1))
    learner = FeatureHead(target, TrainConfig(head=options, unroll=2, noise=0.0))
    batch, weight = samples.batch(list(range(4))), learner.module.streams.proj.weight
    learner.loss(batch, learner.counts(batch), 0).loss.backward()
    assert weight.grad is not None and weight.grad.abs().max() > 0
    before = learner.judge(batch)
    torch.nn.init.normal_(weight)
    after = learner.judge(batch)
    assert not torch.equal(before["surprise_1"], after["surprise_1"])
