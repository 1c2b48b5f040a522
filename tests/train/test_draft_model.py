"""Distilling a draft model: what it starts as, what it minimises, and what it leaves."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jakiro.api import load
from jakiro.drafters.draft_model import DraftModel
from jakiro.errors import ConfigError
from jakiro.sampling.params import SamplingParams
from jakiro.target.features import LAST_FEATURE
from jakiro.target.target import Target
from jakiro.train.config import ModelOptions, TrainConfig
from jakiro.train.draft_model import Distillation, small_model
from jakiro.train.frozen import CHUNK_ELEMENTS
from jakiro.train.history import History
from jakiro.train.learner import readings
from jakiro.train.run import quantised
from jakiro.train.samples import Samples
from jakiro.train.trainer import HISTORY_FILE, Trainer
from tests.families import FAMILIES

SHORT: dict[str, Any] = {"steps": 6, "batch_tokens": 48, "warmup": 2, "save_every": 3}


def config(**changes: Any) -> TrainConfig:
    settings = {"method": "draft_model", "precision": "float32", "held_out": 1, **SHORT, **changes}
    return TrainConfig(**settings)


def test_a_student_of_all_layers_is_the_target(target: Target, samples: Samples) -> None:
    """No divergence, every chain accepted."""
    options = ModelOptions(num_layers=target.num_layers)
    learner = Distillation(target, config(model=options))
    learner.module.eval()
    batch = samples.batch(range(8))
    outcome = learner.loss(batch, learner.counts(batch), 0)
    assert outcome.loss.item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        assert readings(learner.judge(batch))["alpha"] == [1.0] * 6


def test_the_loss_is_the_divergence_from_the_target(
    target: Target, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Distillation(target, config(model=ModelOptions(num_layers=1)))
    batch = samples.batch(range(8))
    features = target.features(batch.ids, batch.lengths, LAST_FEATURE)
    with torch.no_grad():
        theirs = target.lm_head(features).log_softmax(-1)
        mine = learner.module.model(input_ids=batch.ids).logits.log_softmax(-1)
    divergences = (theirs.exp() * (theirs - mine)).sum(-1)
    places = [
        (row, place)
        for row, place in product(range(8), range(batch.ids.shape[1] - 1))
        if place + 1 < batch.lengths[row] and batch.carries_loss[row, place + 1]
    ]
    expected = sum(float(divergences[place]) for place in places) / len(places)
    totals = learner.counts(batch)
    assert totals.tolist() == [len(places)]
    assert expected > 0.1
    loss = learner.loss(batch, totals, 0).loss
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    parts = [learner.loss(samples.batch(range(i, i + 4)), totals, 0).loss.item() for i in (0, 4)]
    assert sum(parts) == pytest.approx(expected, rel=1e-4)
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 1)
    loss = learner.loss(batch, totals, 0).loss
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert all(parameter.grad is not None for parameter in learner.module.parameters())
    assert all(parameter.grad is None for parameter in target.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_small_one(family: str) -> None:
    """Fewer layers, the first of the target's, and everything around them."""
    model = FAMILIES[family]()
    small = small_model(Target(model), ModelOptions(num_layers=1))
    known = model.state_dict()
    assert 0 < len(small.state_dict()) < len(known)
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, known[name].float()), name
    assert Target(small.eval()).num_layers == 1


def test_sizes_are_those_asked_for(target: Target) -> None:
    options = ModelOptions(num_layers=1, hidden_size=24, mlp_size=40)
    small = Target(small_model(target, options).eval())
    assert (small.num_layers, small.hidden_size) == (1, 24)
    assert small.config.intermediate_size == 40
    assert small.config.num_attention_heads == 3
    with pytest.raises(ConfigError, match="hidden_size must be a multiple of 8"):
        small_model(target, ModelOptions(hidden_size=20))
    with pytest.raises(ConfigError, match="would have 3 layers, the target has 2"):
        small_model(target, ModelOptions(num_layers=3))


def test_a_small_gpt2_has_its_own_width_and_no_dropout() -> None:
    """Dropout draws from what no state keeps."""
    model = FAMILIES["gpt2"]()
    model.config.update({"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1})
    small = small_model(Target(model), ModelOptions(num_layers=1, mlp_size=24))
    assert small.state_dict()["transformer.h.0.mlp.c_fc.weight"].shape[1] == 24
    drops = [each.p for each in small.modules() if isinstance(each, torch.nn.Dropout)]
    assert drops and not any(drops)


def test_a_target_in_int8_gives_its_layers(target: Target) -> None:
    pytest.importorskip("torchao")
    narrow = Target(quantised(copy.deepcopy(target.model)))
    small, whole = small_model(narrow, ModelOptions(num_layers=1)), target.model.state_dict()
    for name, tensor in small.state_dict().items():
        assert (tensor - whole[name]).abs().max() <= whole[name].abs().max() / 100, name


def test_it_learns(target: Target, samples: Samples, out: Path) -> None:
    settings = {"steps": 150, "batch_tokens": 1000, "lr": 1e-2, "held_out": 0, "save_every": 150}
    Trainer(target, samples, config(**settings, model=ModelOptions(num_layers=1)), out).run()
    records = History(out / HISTORY_FILE).read()
    assert records[0]["divergence"][0] / records[-1]["divergence"][0] > 10
    assert records[-1]["accuracy"][0] > 0.9


def test_a_run_leaves_a_model_with_its_tokenizer(
    target: Target, tokenizer: Any, samples: Samples, tmp_path: Path
) -> None:
    """Stopped and continued, as if it had not been."""
    target.model.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    opened = load(tmp_path / "target", "none", dtype="float32")
    settings = config(model=ModelOptions(num_layers=1))
    whole, out = tmp_path / "whole", tmp_path / "out"
    Trainer(opened.target, samples, settings, whole).run()

    def stop(progress: Any) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(opened.target, samples, settings, out).run(stop)
    Trainer(opened.target, samples, settings, out).run()
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(place, dtype="auto").state_dict()
        for place in (out, whole)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert AutoTokenizer.from_pretrained(out).get_vocab() == tokenizer.get_vocab()

    engine = load(tmp_path / "target", out)
    assert isinstance(engine.drafter, DraftModel)
    params = SamplingParams(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=1)
    (done,) = engine.generate([[3, 4, 5]], params)
    assert done.token_ids == opened.generate([[3, 4, 5]], params)[0].token_ids
