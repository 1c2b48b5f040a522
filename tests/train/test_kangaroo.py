"""Learning an adapter: where it starts, what it is told, and that it can be drafted with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jakiro.api import load
from jakiro.drafters.kangaroo import Kangaroo
from jakiro.errors import ConfigError
from jakiro.sampling.params import SamplingParams
from jakiro.target.features import FeatureSpec
from jakiro.target.target import Target
from jakiro.train.config import ModelOptions, TrainConfig
from jakiro.train.history import History
from jakiro.train.kangaroo import AdapterLearner
from jakiro.train.samples import Samples
from jakiro.train.trainer import HISTORY_FILE, Trainer
from tests.conformance import world


def config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"method": "kangaroo", "precision": "float32", "held_out": 0}
    return TrainConfig(**settings | {"model": ModelOptions(num_layers=1)} | changes)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_an_adapter_starts_as_an_early_exit(family: str) -> None:
    """The target's last norm over the stream; of a layer norm all but the bias."""
    target = world.target(family)
    adapter = AdapterLearner(target, config()).module.adapter.double()
    norm = next(
        m
        for name, m in target.model.named_modules()
        if name.endswith((".norm", "final_layer_norm"))
    )
    streams = torch.randn(1, 5, 32, dtype=torch.float64)
    if family == "gpt_neox":
        streams -= streams.mean(-1, keepdim=True)
    with torch.no_grad():
        found = adapter(streams, torch.arange(5)[None])
        torch.testing.assert_close(found, norm(streams), atol=1e-4, rtol=1e-4)


def test_the_loss_is_the_divergence_from_the_target(target: Target, samples: Samples) -> None:
    learner = AdapterLearner(target, config())
    torch.nn.init.normal_(learner.module.adapter.self_attn.o_proj.weight, std=0.3)
    batch = samples.batch(range(4))
    with torch.no_grad():
        found = learner.loss(batch, learner.counts(batch), 0).loss
        total, count = 0.0, 0
        for row in range(4):
            ids = batch.ids[row : row + 1, : int(batch.lengths[row])]
            where = torch.arange(ids.shape[1])[None]
            theirs = target.forward(ids, where, None).logits[0].log_softmax(-1)
            streams = target.features(ids, batch.lengths[row : row + 1], FeatureSpec(layers=(1,)))
            states = learner.module.adapter(streams, where)
            mine = target.lm_head(states)[0].log_softmax(-1)
            kl = (theirs.exp() * (theirs - mine)).sum(-1)
            asked = batch.carries_loss[row, 1 : ids.shape[1]]
            total, count = total + float(kl[:-1][asked].sum()), count + int(asked.sum())
    assert found.item() == pytest.approx(total / count, rel=1e-4)


def test_it_learns_and_drafts(target: Target, samples: Samples, out: Path) -> None:
    settings = {"steps": 60, "batch_tokens": 200, "lr": 1e-2, "warmup": 5, "save_every": 20}
    Trainer(target, samples, config(**settings), out).run()
    lines = [line["divergence"][0] for line in History(out / HISTORY_FILE).read()]
    assert lines[-1] < 0.5 * lines[0]
    engine = load(target.model, out)
    assert isinstance(engine.drafter, Kangaroo)
    params = SamplingParams(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=1)
    plain = load(target.model, "none").generate([[3, 4, 5]], params)
    assert engine.generate([[3, 4, 5]], params)[0].token_ids == plain[0].token_ids
    assert engine.stats.tau > 1


def test_an_exit_above_the_last_layer_is_refused(target: Target) -> None:
    with pytest.raises(ConfigError, match="behind layer 2 of a target of 2"):
        AdapterLearner(target, config(model=ModelOptions(num_layers=2)))
