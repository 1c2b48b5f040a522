"""``jakiro train`` from a directory and a file to a head that loads."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import ByT5Tokenizer
from typer.testing import CliRunner

import jakiro
from jakiro.cli.train import train
from jakiro.drafters.feature import FeatureDrafter
from jakiro.errors import ConfigError, DataError, TargetRefused
from jakiro.hub import checkpoint
from jakiro.target.target import Target
from jakiro.train.config import TrainConfig
from jakiro.train.run import Reports, _key, quantised
from jakiro.train.run import train as run
from jakiro.train.samples import Samples
from jakiro.train.trainer import Trainer
from tests.train.support import tiny_target

CONVERSATION = {
    "messages": [
        {"role": "user", "content": "w1 w2 w3"},
        {"role": "assistant", "content": "w4 w5 w6 w7"},
    ]
}
QUICK = ["--steps", "3", "--save-every", "2", "--warmup", "1", "--precision", "float32"]


def invoke(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def directory(target: Target, tokenizer: Any, tmp_path: Path) -> Path:
    target.model.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    lines = [CONVERSATION] * 6 + [{"text": "w1 w2 w3 w4 w5"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.mark.usefixtures("curves")
@pytest.mark.parametrize("method", ["jakiro", "eagle2"])
def test_a_run_leaves_a_head_that_fits_its_target(
    directory: Path, target: Target, method: str
) -> None:
    places = ["--target", str(directory / "target"), "--data", str(directory / "data.jsonl")]
    out = directory / "head"
    result = invoke(*places, "--out", str(out), "--method", method, "--regenerate", *QUICK)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    head = checkpoint.load(out, target.fingerprint())
    assert head.config.method == method
    assert head.config.expert_size == 48
    notes = checkpoint.read_config(out)["notes"]
    assert notes["step"] == 3
    assert 1 <= notes["held_out"]["tau"] <= 7
    assert len(notes["options"]["sharpness"]) == (2 if method == "jakiro" else 1)
    drafter = jakiro.load(directory / "target", out).drafter
    assert isinstance(drafter, FeatureDrafter)
    assert [list(each) for each in drafter._sharpness] == notes["options"]["sharpness"]
    assert not any(name.startswith("surprise") for name in notes["held_out"])
    assert len((out / "regenerated.jsonl").read_text().splitlines()) == 6
    assert {"history.jsonl", "curves.png", "training.pt"} <= {path.name for path in out.iterdir()}


def test_a_run_starts_from_a_head(directory: Path) -> None:
    places = ["--target", str(directory / "target"), "--data", str(directory / "data.jsonl")]
    first, second = directory / "first", directory / "second"
    assert invoke(*places, "--out", str(first), *QUICK).exit_code == 0
    still = [*QUICK, "--start", str(first), "--lr", "1e-30"]
    assert invoke(*places, "--out", str(second), *still).exit_code == 0
    ours, theirs = (checkpoint.read_config(place) for place in (second, first))
    assert ours["weights"] == theirs["weights"]
    assert ours["notes"]["training"]["start"] == str(first)


def test_a_bfloat16_run_leaves_a_head_that_fits_the_float32_target(
    directory: Path, target: Target
) -> None:
    places = ["--target", str(directory / "target"), "--data", str(directory / "data.jsonl")]
    result = invoke(*places, "--out", str(directory / "head"), *QUICK, "--precision", "bfloat16")
    assert result.exit_code == 0, result.output
    assert "memory on cpu: about" in result.stderr
    checkpoint.load(directory / "head", target.fingerprint())


def test_a_target_whose_features_cannot_be_read_is_refused(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny_target()
    monkeypatch.setattr(target, "feature_refusal", "its head reads something else")
    with pytest.raises(TargetRefused, match="its head reads something else"):
        Trainer(target, samples, TrainConfig(), tmp_path)


def test_a_target_in_int8_leaves_a_head_that_fits_the_target(
    directory: Path, target: Target
) -> None:
    model = copy.deepcopy(target.model)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    narrow = quantised(model).state_dict()
    shared = {"model.embed_tokens.weight", "lm_head.weight"}
    for name, each in before.items():
        if each.dim() == 2 and name not in shared:
            assert type(narrow[name]).__name__ == "Int8Tensor"
            error = (narrow[name].dequantize() - each).abs().amax(1) / each.abs().amax(1)
            assert 0 < error.max() < 1 / 100
        else:
            assert torch.equal(narrow[name], each)

    places = ["--target", str(directory / "target"), "--data", str(directory / "data.jsonl")]
    result = invoke(*places, "--out", str(directory / "head"), *QUICK, "--target-int8")
    assert result.exit_code == 0, result.output
    checkpoint.load(directory / "head", target.fingerprint())
    assert checkpoint.read_config(directory / "head")["notes"]["training"]["target_int8"]


def test_a_target_split_by_a_device_map_trains(directory: Path, target: Target) -> None:
    places = ["--target", str(directory / "target"), "--data", str(directory / "data.jsonl")]
    result = invoke(*places, "--out", str(directory / "head"), *QUICK, "--device", "auto")
    assert result.exit_code == 0, result.output
    checkpoint.load(directory / "head", target.fingerprint())


def test_bad_data_stops_before_anything_is_written(directory: Path) -> None:
    (directory / "data.jsonl").write_text("{")
    places = ["--target", str(directory / "target"), "--data", str(directory / "data.jsonl")]
    result = invoke(*places, "--out", str(directory / "head"), *QUICK)
    assert isinstance(result.exception, DataError)
    assert [path.name for path in (directory / "head").iterdir()] == [".lock"]


def test_the_target_is_not_written_over(directory: Path) -> None:
    places = ["--target", str(directory / "target"), "--data", str(directory / "data.jsonl")]
    before = (directory / "target" / "config.json").read_bytes()
    result = invoke(*places, "--out", str(directory / "target"), *QUICK)
    assert isinstance(result.exception, ConfigError)
    assert "holds a model that no training has left there" in str(result.exception)
    assert (directory / "target" / "config.json").read_bytes() == before


def test_a_slow_tokenizer_is_refused_before_anything_is_written(directory: Path) -> None:
    for path in (directory / "target").glob("*token*"):
        path.unlink()
    ByT5Tokenizer().save_pretrained(directory / "target")
    places = ["--target", str(directory / "target"), "--data", str(directory / "data.jsonl")]
    result = invoke(*places, "--out", str(directory / "head"), "--regenerate", *QUICK)
    assert isinstance(result.exception, ConfigError)
    assert "needs a fast tokenizer" in str(result.exception)
    assert [path.name for path in (directory / "head").iterdir()] == [".lock"]


def test_help_does_not_import_torch() -> None:
    code = "import sys, jakiro.cli.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_does_not_write_over_its_start(tmp_path: Path) -> None:
    head = tmp_path / "head"
    config = TrainConfig(start=str(tmp_path / "." / "head"))
    nobody = Reports(*[lambda *_: None] * 3)
    with pytest.raises(ConfigError, match="is the head to start from"):
        run(tmp_path / "target", [tmp_path / "data.jsonl"], head, config, None, nobody)
    assert not head.exists()


def test_tokens_do_not_depend_on_what_was_tokenised_last(tokenizer: Any) -> None:
    """Of several processes the first has read prompts, which leaves its mark on the tokenizer."""
    fresh = copy.deepcopy(tokenizer)
    fresh.backend_tokenizer.enable_truncation(64)
    assert _key([], fresh, "64") == _key([], tokenizer, "64")
    fresh.add_tokens(["another"])
    assert _key([], fresh, "64") != _key([], tokenizer, "64")
