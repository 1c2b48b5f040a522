"""Draft heads on disk: what is saved loads, and nothing else does."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from jakiro.drafters.nn import DraftHead, HeadConfig
from jakiro.errors import CheckpointError, PairMismatch
from jakiro.hub import checkpoint

FINGERPRINT = {"hidden_size": 16, "vocab_size": 11, "embedding": "abc"}
GATE = "layers.0.mlp_moe.gate.weight"


def new_head(method: str = "jakiro", seed: int = 0) -> DraftHead:
    torch.manual_seed(seed)
    return DraftHead(HeadConfig(method, 16, 4, 2, 4, expert_size=24, vocab_size=11))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save(new_head(), tmp_path / "head", FINGERPRINT, {"steps": 3}, torch.float32)
    return tmp_path / "head"


def rewrite(directory: Path, change: dict[str, Tensor | None]) -> None:
    """Replace (None: drop) tensors of a checkpoint, keeping its digest."""
    path = directory / checkpoint.WEIGHTS_FILE
    tensors = {**load_file(path), **change}
    digest = checkpoint.read_config(directory)["weights"]
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, metadata={"weights": digest})


@pytest.mark.parametrize("method", ["jakiro", "eagle2"])
def test_a_round_trip_changes_nothing(method: str, tmp_path: Path) -> None:
    head = new_head(method)
    checkpoint.save(head, tmp_path / "new" / "head", FINGERPRINT, {"steps": 3}, torch.float32)
    again = checkpoint.load(tmp_path / "new" / "head", FINGERPRINT)
    assert again.config == head.config
    assert not again.training
    for name, tensor in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert checkpoint.read_config(tmp_path / "new" / "head")["notes"] == {"steps": 3}


def test_half_precision_on_disk_loads_as_asked(tmp_path: Path) -> None:
    head = new_head()
    checkpoint.save(head, tmp_path, FINGERPRINT)
    assert load_file(tmp_path / checkpoint.WEIGHTS_FILE)[GATE].dtype == torch.bfloat16
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        again = checkpoint.load(tmp_path, dtype=dtype)
        expected = head.state_dict()[GATE].bfloat16().to(dtype)
        assert torch.equal(again.state_dict()[GATE], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({GATE: None}, f"lacks tensors: {GATE}"),
        ({"norm.weight": torch.zeros(3)}, "unexpected tensors: norm.weight"),
        ({GATE: torch.zeros(4, 15)}, rf"{GATE} has shape \[4, 15\], the config asks for \[4, 16\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    saved: Path, change: dict[str, Tensor | None], message: str
) -> None:
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved)


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_truncated_file_is_refused(saved: Path, kept: int) -> None:
    path = saved / checkpoint.WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["head"].update(method="none"), "unknown head method 'none'"),
        (lambda c: c["head"].pop("method"), "unknown head method None"),
        (lambda c: c["head"].pop("expert_size"), "lacks head settings: expert_size"),
        (lambda c: c["head"].update(colour="red"), "unknown head settings: colour"),
        (lambda c: c.pop("target"), "lacks the entry 'target'"),
        (lambda c: c.update(notes=None), "notes must be a dict, got None"),
        (lambda c: c.update(format=99), "format 1"),
    ],
)
def test_a_wrong_config_is_refused(saved: Path, edit: Any, message: str) -> None:
    path = saved / checkpoint.CONFIG_FILE
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved)


@pytest.mark.parametrize("name", [checkpoint.CONFIG_FILE, checkpoint.WEIGHTS_FILE])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoint.load(saved)


def test_unreadable_json_is_refused(saved: Path) -> None:
    (saved / checkpoint.CONFIG_FILE).write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        checkpoint.load(saved)


def test_another_target_is_named(saved: Path) -> None:
    checkpoint.load(saved, FINGERPRINT)
    with pytest.raises(PairMismatch, match="embedding is 'abc' there and 'xyz' in this target"):
        checkpoint.load(saved, {**FINGERPRINT, "embedding": "xyz"})
    with pytest.raises(PairMismatch, match="layers is None there and 2"):
        checkpoint.load(saved, {**FINGERPRINT, "layers": 2})


def test_a_full_disk_leaves_the_old_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoint.save(new_head(seed=1), saved, FINGERPRINT)
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoint.save(new_head(seed=1), saved.parent / "fresh", FINGERPRINT)
    assert not list((saved.parent / "fresh").iterdir())
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(checkpoint.load(saved).state_dict()[GATE], new_head().state_dict()[GATE])


def test_a_kill_between_the_two_files_does_not_load(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def killed_at_the_config(source: Path, place: Path) -> None:
        if Path(place).name == checkpoint.CONFIG_FILE:
            raise KeyboardInterrupt
        replace(source, place)

    monkeypatch.setattr(os, "replace", killed_at_the_config)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(new_head(seed=1), saved, FINGERPRINT)
    with pytest.raises(CheckpointError, match="different saves"):
        checkpoint.load(saved)


def test_a_second_save_replaces_the_first_and_spares_other_files(saved: Path) -> None:
    (saved / "history.jsonl").write_text("{}\n")
    checkpoint.save(new_head(seed=1), saved, FINGERPRINT, dtype=torch.float32)
    assert sorted(path.name for path in saved.iterdir()) == [
        checkpoint.CONFIG_FILE,
        "history.jsonl",
        checkpoint.WEIGHTS_FILE,
    ]
    expected = new_head(seed=1).state_dict()[GATE]
    assert torch.equal(checkpoint.load(saved).state_dict()[GATE], expected)
