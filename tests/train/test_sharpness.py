"""The sharpness that is measured is that of the errors that were made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import jakiro
from jakiro.drafters.experts import Experts, HeadOutput
from jakiro.drafters.feature import FeatureDrafter
from jakiro.errors import CheckpointError, ConfigError, DataError
from jakiro.hub import checkpoint
from jakiro.sampling.nodes import AS_SAID
from jakiro.sampling.params import SamplingParams
from jakiro.train.data import Records, tokenise
from jakiro.train.evaluate import judge
from jakiro.train.features import Lesson
from jakiro.train.learner import add_up, readings
from jakiro.train.samples import stored
from jakiro.train.sharpness import GRID, fitted, sharpen, surprise
from tests.conformance import world
from tests.train.support import tiny_target, word_tokenizer

VOCABULARY, ROWS, PLACES = 30, 4, 8_000
TARGET: Any = SimpleNamespace(lm_head=lambda features: features, vocab_size=VOCABULARY)
"""Its features are its logits."""


def gumbel(*shape: int) -> Tensor:
    return -torch.empty(*shape).exponential_().log()


@pytest.mark.parametrize(
    "errors", [((0.5, 1.0), (2.0, 1.0)), ((1.25, 1.25), (0.7, 1.4)), ((1.25, 1.0), (0.5, 0.95))]
)
def test_errors_of_gumbel_noise_are_found(errors: Sequence[tuple[float, float]]) -> None:
    """Draft logits that lack Gumbel noise of a scale are that much surer, by its inverse; flat ones
    must grow by as much beside the noise that both know."""
    torch.manual_seed(0)
    drafts = 3 * torch.randn(2, ROWS, PLACES, VOCABULARY)
    wanted = torch.ones(ROWS, PLACES, dtype=torch.bool)
    wanted[:, 0] = False
    found = []
    for branch, (scale, flat) in enumerate(errors):
        # Pair i predicts feature i + 1 + branch.
        truth = flat * drafts[branch] + scale * gumbel(ROWS, PLACES, VOCABULARY)
        lesson = Lesson(*[torch.zeros(0)] * 3, truth.roll(1 + branch, 1), wanted)
        tally = surprise(HeadOutput(drafts[0], (drafts[1],)), lesson, TARGET, range(ROWS))
        found.append(fitted(readings(tally), 2)[branch])
    for sharpness, (scale, flat) in zip(found, errors, strict=True):
        assert sharpness.logits == pytest.approx(flat / scale, rel=0.08)
        assert sharpness.logits / sharpness.noise == pytest.approx(flat, rel=0.11)


def test_experts_are_measured_by_their_mixture() -> None:
    torch.manual_seed(0)
    laws = torch.randn(1, 40, 2, VOCABULARY).log_softmax(-1)
    weights = torch.rand(1, 40, 2).softmax(-1)
    mixture = (weights[..., None] * laws.exp()).sum(-2).log()
    lesson = Lesson(*[torch.zeros(0)] * 3, mixture.roll(1, 1), torch.ones(1, 40, dtype=torch.bool))
    alone = surprise(HeadOutput(mixture), lesson, TARGET, [7])
    parts = surprise(HeadOutput(mixture, experts=Experts(laws, weights)), lesson, TARGET, [7])
    torch.testing.assert_close(alone["surprise_1"], parts["surprise_1"])


def test_a_branch_is_asked_where_a_pair_is_before() -> None:
    """Pair i of branch c predicts feature i + c, so feature 1 is not asked of the second branch."""
    torch.manual_seed(0)
    truth, wanted = torch.randn(1, 6, VOCABULARY), torch.zeros(1, 6, dtype=torch.bool)
    wanted[0, 1] = True
    lesson = Lesson(*[torch.zeros(0)] * 3, truth, wanted)
    output = HeadOutput(truth[:, 1:], (torch.randn(1, 5, VOCABULARY),))
    tally = surprise(output, lesson, TARGET, [0])
    assert tally["surprise_1"][1].unique().tolist() == [1]
    assert not tally["surprise_2"].any()


def test_nothing_to_ask_is_no_error() -> None:
    lesson = Lesson(*[torch.zeros(0)] * 3, torch.zeros(1, 5, 9), torch.zeros(1, 5).bool())
    tally = surprise(HeadOutput(torch.zeros(1, 4, 9)), lesson, TARGET, [0])
    assert fitted(readings(tally), 1) == [AS_SAID]


def test_a_trained_head_is_sharpened(tmp_path: Path) -> None:
    """What is measured is what the head lacks; its weights stay, and texts too."""
    engine = jakiro.load(tiny_target().model, "none", tokenizer=word_tokenizer())
    data = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for number, path in enumerate(data):
        words = (f"w{(7 * place * place + number) % 31}" for place in range(200))
        path.write_text(json.dumps({"text": " ".join(words)}) + "\n")
    head, target = world.head(engine.target, "jakiro"), engine.target
    notes = {"tree": "dynamic:3,4,9", "options": {"window": 64, "sharpness": [3.0]}}
    before, after = tmp_path / "before", tmp_path / "after"
    checkpoint.save(head, before, target.fingerprint(), notes)

    found = sharpen(before, engine, data, after, count=3)
    # Two samples of either file, as evaluation in training measures them.
    samples = stored(
        lambda: tokenise(Records(data), engine.tokenizer, target.context_length, target.vocab_size),
        tmp_path,
        "all",
    )
    assert len(samples) == 4
    tallies = [judge(head.float(), target, samples.batch([number])) for number in range(4)]
    assert found == fitted(readings(add_up(tallies)), 2)
    options = checkpoint.read_config(after)["notes"]
    assert options == notes | {"options": {"window": 64, "sharpness": [list(s) for s in found]}}
    assert len(found) == 2 and set(found) <= set(GRID)
    tensors = [load_file(place / checkpoint.WEIGHTS_FILE) for place in (before, after)]
    assert all(tensor.equal(tensors[1][name]) for name, tensor in tensors[0].items())

    drafting = jakiro.load(target.model, after, tokenizer=engine.tokenizer)
    assert isinstance(drafting.drafter, FeatureDrafter)
    assert drafting.drafter._sharpness == found
    params = SamplingParams(24, temperature=1.2, top_k=20, seed=3, ignore_eos=True)
    plain, fast = (each.generate(["w1 w8 w2"], params)[0] for each in (engine, drafting))
    assert fast.token_ids == plain.token_ids


def test_what_cannot_be_sharpened(tmp_path: Path) -> None:
    engine = jakiro.load(tiny_target().model, "none", tokenizer=word_tokenizer())
    empty, out = tmp_path / "empty.jsonl", tmp_path / "out"
    empty.touch()
    for method in ("jakiro", "medusa"):
        head = world.head(engine.target, method)
        checkpoint.save(head, tmp_path / method, engine.target.fingerprint())
    with pytest.raises(DataError, match="no sample with a token"):
        sharpen(tmp_path / "jakiro", engine, [empty], out)
    with pytest.raises(ConfigError, match="a medusa head cannot be sharpened"):
        sharpen(tmp_path / "medusa", engine, [empty], out)
    with pytest.raises(CheckpointError, match="exists already"):
        sharpen(tmp_path / "jakiro", engine, [empty], tmp_path / "medusa")
    assert not out.exists()
