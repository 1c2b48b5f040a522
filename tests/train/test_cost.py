"""The estimate counts what is kept, and a run that cannot fit says so first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jakiro.errors import ConfigError
from jakiro.target.target import Target
from jakiro.train import cost
from jakiro.train.config import TrainConfig, Work
from jakiro.train.cost import Cost, Pace, estimate, free_memory
from jakiro.train.feature_head import FeatureHead
from jakiro.train.samples import Samples
from jakiro.train.trainer import STATE_FILE, Trainer
from tests.train.test_trainer import short


def cost_of(target: Target, samples: Samples, work: Work, tokens: int = 160) -> Cost:
    learner = FeatureHead(target, short(batch_tokens=tokens))
    learner.recompute = work.recompute
    return estimate(learner, samples, samples.split(0, 0)[0], work, processes=1)


def test_weights_are_counted_exactly(target: Target, samples: Samples) -> None:
    head = FeatureHead(target, short()).module
    weights = 4 * sum(each.numel() for each in head.parameters())
    found = cost_of(target, samples, Work())
    assert found.network == weights
    assert found.optimizer == 3 * weights
    assert found.target == 4 * sum(each.numel() for each in target.model.parameters())
    assert 0 < found.free <= free_memory(torch.device("cpu")) * 1.5


def test_what_is_kept_grows_with_the_tokens_of_a_part(target: Target, samples: Samples) -> None:
    ten, twenty = (cost_of(target, samples, Work(), 16 * rows).kept for rows in (10, 20))
    one = cost_of(target, samples, Work(), 16).kept
    assert (twenty - one) / (ten - one) == pytest.approx(19 / 9)
    assert cost_of(target, samples, Work(accumulate=10), 160).kept == one
    assert cost_of(target, samples, Work(recompute=True)).kept < ten / 2


def test_a_run_that_cannot_fit_names_what_would_help(
    target: Target, samples: Samples, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cost_of(target, samples, Work())
    needs = found.optimizer + found.kept + found.forward + found.logits
    monkeypatch.setattr(cost, "free_memory", lambda device: needs - found.kept // 2)
    with pytest.raises(ConfigError, match=r"does not fit.* are missing") as caught:
        Trainer(target, samples, short(batch_tokens=160), out)
    assert "--accumulate 2" in str(caught.value)
    assert "--batch-tokens 80" in str(caught.value)
    assert "--recompute" in str(caught.value)
    assert not (out / STATE_FILE).exists()
    monkeypatch.setattr(cost, "free_memory", lambda device: found.optimizer // 2)
    with pytest.raises(ConfigError, match="--shard") as caught:
        Trainer(target, samples, short(batch_tokens=160), out)
    assert "--accumulate" not in str(caught.value)
    monkeypatch.setattr(cost, "free_memory", lambda device: 2 * needs)
    Trainer(target, samples, short(batch_tokens=160), out)


def test_what_is_proposed_does_fit() -> None:
    tight = Cost("cpu", 10, 100, 300, kept=5000, forward=1000, logits=100, free=2000)
    with pytest.raises(ConfigError, match="--accumulate 8") as caught:
        tight.check(TrainConfig(batch_tokens=8192), Work(accumulate=2), can_recompute=False)
    assert "--recompute" not in str(caught.value)
    assert "--batch-tokens 2048" in str(caught.value)
    assert replace(tight, kept=5000 // 4, forward=1000 // 4).missing < 0


def test_the_pace_leaves_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now)
    pace = Pace()
    for took in (100, 50, 20):
        now += took
        pace.step(64)
        assert pace.tokens_per_s is None
        assert pace.seconds(10) is None
    for took in (2, 4):
        now += took
        pace.step(60)
    assert pace.tokens_per_s == 20
    assert pace.seconds(10) == 30


def test_what_files_take_in_a_container_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1000 bytes 900 are taken, 600 of them by files, which are given back when wanted."""
    monkeypatch.setattr(cost, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 500\nactive_file 100\n")
    assert free_memory(torch.device("cpu")) == 700
    (tmp_path / "memory.stat").unlink()
    assert free_memory(torch.device("cpu")) == 100
