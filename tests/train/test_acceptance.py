"""Learning which drafted tokens are accepted: the labels, the loss, and what a run leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jakiro.api import load
from jakiro.drafters.specdec_pp import SpecDecPP
from jakiro.errors import ConfigError, PairMismatch
from jakiro.hub import checkpoint
from jakiro.sampling.params import SamplingParams
from jakiro.target.target import Target
from jakiro.train.acceptance import AcceptanceLearner
from jakiro.train.config import AcceptanceOptions, ModelOptions, TrainConfig
from jakiro.train.draft_model import small_model
from jakiro.train.samples import Samples
from jakiro.train.trainer import Trainer


def config(place: Path | None, **changes: Any) -> TrainConfig:
    options = AcceptanceOptions(
        draft_model=None if place is None else str(place),
        num_blocks=1,
        threshold=0.4,
        temperature=changes.pop("temperature", 1.0),
    )
    settings = {"precision": "float32", "batch_tokens": 200, "lr": 2e-2, "warmup": 2, **changes}
    return TrainConfig(method="specdec_pp", acceptance=options, held_out=1, **settings)


@pytest.fixture
def draft(target: Target, tokenizer: Any, tmp_path: Path) -> Path:
    """A draft model of one of the target's layers, beside the target."""
    target.model.save_pretrained(tmp_path / "target")
    small_model(target, ModelOptions(num_layers=1)).save_pretrained(tmp_path / "draft")
    for name in ("target", "draft"):
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path / "draft"


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_labels_are_chances_of_acceptance(
    target: Target, samples: Samples, draft: Path, temperature: float
) -> None:
    """``min(1, p / q)`` of a token that the model would draw, or whether both choose the same; read
    back from the states, which tell the token that was fed."""
    learner = AcceptanceLearner(target, config(draft, temperature=temperature))
    batch = samples.batch(range(6))
    lesson = learner._lesson(batch, 3)
    again = learner._lesson(samples.batch(range(6)), 3)
    alone = learner._lesson(samples.batch([4]), 3)
    assert torch.equal(lesson.labels, again.labels)
    assert alone.labels.tolist() in [
        lesson.labels[i : i + len(alone.labels)].tolist() for i in range(len(lesson.labels))
    ]
    carried = int(batch.carries_loss[:, 1:].sum())
    assert 0.7 * carried < len(lesson.labels) < 0.97 * carried
    with torch.no_grad():
        theirs, mine = (
            of.model(input_ids=batch.ids).logits.double() for of in (target, learner.draft)
        )
    if not temperature:
        share = (theirs.argmax(-1) == mine.argmax(-1))[:, :-1][batch.carries_loss[:, 1:]]
        assert set(lesson.labels.tolist()) <= {0.0, 1.0}
        assert abs(lesson.labels.mean() - share.double().mean()) < 0.1
        return
    p, q = ((each / temperature).softmax(-1) for each in (theirs, mine))
    expected = torch.minimum(p, q).sum(-1)[:, :-1][batch.carries_loss[:, 1:]].mean()
    drawn = [learner._lesson(batch, seed).labels.mean() for seed in range(40)]
    assert float(torch.stack(drawn).mean()) == pytest.approx(float(expected), abs=0.02)


def test_a_run_leaves_a_head_that_finds_its_model(
    target: Target, samples: Samples, draft: Path, tmp_path: Path
) -> None:
    """Stopped and continued; the text stays, and another model is refused."""
    engine, out = load(tmp_path / "target", "none", dtype="float32"), draft / "specdec_pp"
    losses: list[float] = []

    def watch(progress: Any) -> None:
        losses.append(progress.loss)
        if len(losses) == 20:
            raise KeyboardInterrupt

    settings = config(draft, steps=40, save_every=10)
    with pytest.raises(KeyboardInterrupt):
        Trainer(engine.target, samples, settings, out).run(watch)
    again = config(draft / ".." / draft.name, steps=40, save_every=10)
    Trainer(engine.target, samples, again, out).run(watch)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    notes = checkpoint.read_config(out)["notes"]
    assert notes["training"]["acceptance"]["draft_model"] == notes["draft_model"]["path"] == ".."
    assert notes["draft_model"]["digest"] == checkpoint.digest(draft)
    assert str(tmp_path) not in str(notes)
    drafting = load(tmp_path / "target", out, dtype="float32")
    assert isinstance(drafting.drafter, SpecDecPP) and drafting.drafter.threshold == 0.4
    params = SamplingParams(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=1)
    ours, plain = (each.generate([[3, 4, 5]], params)[0] for each in (drafting, engine))
    assert ours.token_ids == plain.token_ids
    other = small_model(target, ModelOptions(num_layers=1))
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1.5)
    other.save_pretrained(draft)
    with pytest.raises(PairMismatch, match="made for another draft model: embedding_sha256"):
        load(tmp_path / "target", out)
    with pytest.raises(ConfigError, match=r"another run: acceptance\.draft_model was"):
        Trainer(engine.target, samples, settings, out).run()


def test_it_is_for_a_draft_model(target: Target) -> None:
    with pytest.raises(ConfigError, match="give its directory"):
        AcceptanceLearner(target, config(None))
    with pytest.raises(ConfigError, match="threshold must lie between 0 and 1, got 2"):
        AcceptanceOptions(threshold=2)
