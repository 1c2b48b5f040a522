"""A run that starts from a head that is there: whose weights, sizes and advice it goes on from."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jakiro.errors import CheckpointError, ConfigError, PairMismatch
from jakiro.hub import checkpoint
from jakiro.target.target import Target
from jakiro.train.config import HeadOptions, TrainConfig
from jakiro.train.feature_head import FeatureHead
from jakiro.train.samples import Samples
from jakiro.train.trainer import Trainer
from tests.train.support import samples_from, samples_of, tiny_target
from tests.train.test_trainer import history, short

SIZES = HeadOptions(expert_size=24, draft_vocab_size=9, reads=(1,))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of unusual sizes, which recommends a tree and a window."""
    directory = tmp_path_factory.mktemp("start") / "head"
    target, samples = tiny_target(), samples_of(8, 16)
    Trainer(target, samples, short(steps=4, head=SIZES), directory).run()
    notes = checkpoint.read_config(directory)["notes"]
    notes |= {"tree": "dynamic:3,2,5", "options": {**notes["options"], "window": 7}}
    head = checkpoint.load(directory)
    (directory / "training.pt").unlink()
    checkpoint.save(head, directory, target.fingerprint(), notes, torch.float32)
    return directory


def onward(start: Path, **changes: Any) -> TrainConfig:
    return short(**{"steps": 4, "seed": 1, "start": str(start), **changes})


def test_weights_sizes_and_advice_are_gone_on_from(start: Path, target: Target, out: Path) -> None:
    other = samples_from([([token] * 12, [True] * 12) for token in range(12, 30)])
    trainer = Trainer(target, other, onward(start, lr=1e-30), out)
    trainer.learner.prepare(other, [])
    trainer.run()
    before, after = checkpoint.load(start), checkpoint.load(out)
    assert after.config == before.config
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor), name
    tree, options = checkpoint.advice(out)
    assert tree == "dynamic:3,2,5"
    assert options["window"] == 7
    assert set(options) == {"window", "sharpness"}


def test_it_goes_on_learning(start: Path, target: Target, samples: Samples, tmp_path: Path) -> None:
    settings = {"noise": 0, "held_out": 0}
    Trainer(target, samples, onward(start, **settings), tmp_path / "onward").run()
    fresh = replace(onward(start, **settings), start=None, head=SIZES)
    Trainer(target, samples, fresh, tmp_path / "fresh").run()
    ours, theirs = (history(tmp_path / name) for name in ("onward", "fresh"))
    assert ours[0]["loss"] < theirs[0]["loss"]
    own = checkpoint.load(tmp_path / "onward").state_dict()
    assert not all(torch.equal(own[n], t) for n, t in checkpoint.load(start).state_dict().items())


def test_a_stopped_run_knows_its_start(
    start: Path, target: Target, samples: Samples, out: Path, tmp_path: Path
) -> None:
    """By its weights, wherever they lie."""
    Trainer(target, samples, onward(start), out).run()
    copy = shutil.copytree(start, tmp_path / "copy")
    steps: list[int] = []
    Trainer(target, samples, onward(copy), out).run(lambda progress: steps.append(progress.step))
    assert steps == []
    head = checkpoint.load(copy)
    next(head.parameters()).data.add_(1)
    checkpoint.save(head, copy, target.fingerprint(), {}, torch.float32)
    for config in (onward(copy), replace(onward(start), start=None)):
        with pytest.raises(ConfigError, match="belongs to another run: start was"):
            Trainer(target, samples, config, out).run()


def test_what_does_not_fit_is_named(start: Path, target: Target, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a jakiro head, .* say --method jakiro"):
        FeatureHead(target, onward(start, method="eagle2"))
    with pytest.raises(ConfigError, match=r"expert_size of the head in .* is 24, 25 is asked for"):
        FeatureHead(target, onward(start, head=HeadOptions(25)))
    with pytest.raises(ConfigError, match=r"reads of the head in .* is \(1,\), \(0,\) is asked"):
        FeatureHead(target, onward(start, head=HeadOptions(reads=(0,))))
    FeatureHead(target, onward(start, head=SIZES))
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        FeatureHead(target, onward(tmp_path))
    target = tiny_target()
    target.model.get_input_embeddings().weight.data.mul_(2)
    with pytest.raises(PairMismatch, match="another target"):
        FeatureHead(target, onward(start))


def test_only_heads_that_predict_features_start_from_one(
    start: Path, target: Target, samples: Samples, out: Path
) -> None:
    with pytest.raises(ConfigError, match="training of medusa has no use for start"):
        Trainer(target, samples, onward(start, method="medusa", unroll=1), out)
