"""The loop: it learns, and a run cut anywhere ends as the same run."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from jakiro.errors import CheckpointError, ConfigError, JakiroError, PairMismatch
from jakiro.hub import checkpoint
from jakiro.target.target import Target
from jakiro.train.config import HeadOptions, ModelOptions, TrainConfig, Work
from jakiro.train.history import History, draw
from jakiro.train.samples import Samples
from jakiro.train.trainer import HISTORY_FILE, STATE_FILE, Progress, Trainer
from tests.train.support import samples_of, tiny_target

SHORT = {
    "steps": 12,
    "batch_tokens": 48,
    "lr": 1e-3,
    "warmup": 2,
    "save_every": 4,
    "held_out": 1,
    "unroll": 2,
    "precision": "float32",
}


def short(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**SHORT, **changes})


def history(out: Path) -> list[dict[str, Any]]:
    records = History(out / HISTORY_FILE).read()
    for record in records:
        record.pop("tokens_per_s", None)
    return records


@pytest.mark.parametrize(
    ("method", "optimizer"), [("jakiro", "adamw"), ("eagle2", "adamw"), ("jakiro", "muon")]
)
def test_it_learns_by_heart(
    method: str,
    optimizer: Literal["adamw", "muon"],
    target: Target,
    samples: Samples,
    out: Path,
) -> None:
    config = TrainConfig(
        method=method,
        optimizer=optimizer,
        steps=250,
        batch_tokens=1000,
        lr=1e-2,
        warmup=20,
        noise=0,
        held_out=0,
        save_every=250,
        precision="float32",
        head=HeadOptions(expert_size=128),
    )
    Trainer(target, samples, config, out).run()
    records = history(out)
    first, last = (torch.tensor(records[place]["feature_losses"]) for place in (0, -1))
    assert len(first) == (2 if method == "jakiro" else 1)
    assert (first / last > 10).all()
    assert min(records[-1]["accuracy"]) > 0.9


@pytest.fixture(scope="module")
def whole(target: Target, samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    Trainer(target, samples, short(), out).run()
    return out


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_run_goes_on_as_if_it_had_not(
    optimizer: str, target: Target, samples: Samples, out: Path, tmp_path: Path, whole: Path
) -> None:
    config = short(optimizer=optimizer)
    if optimizer != "adamw":
        Trainer(target, samples, config, whole := tmp_path / "whole").run()

    def stop(progress: Progress) -> None:
        if progress.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(target, samples, config, out).run(stop)
    assert [record["step"] for record in history(out)][-1] == 7
    steps: list[int] = []
    Trainer(target, samples, config, out).run(lambda progress: steps.append(progress.step))
    assert steps == list(range(5, 13))
    assert history(out) == history(whole)
    ours, theirs = (checkpoint.load(place).state_dict() for place in (out, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_run_stays_finished(target: Target, samples: Samples, out: Path) -> None:
    Trainer(target, samples, short(steps=4), out).run()
    before = (out / HISTORY_FILE).read_bytes()
    steps: list[int] = []
    Trainer(target, samples, short(steps=4), out).run(lambda p: steps.append(p.step))
    assert steps == []
    assert (out / HISTORY_FILE).read_bytes() == before


KILLED = """
import sys, time, warnings
from pathlib import Path
import torch
import jakiro.train.trainer
from jakiro.train.trainer import Trainer
from tests.train.support import samples_of, tiny_target
from tests.train.test_trainer import short
torch.set_num_threads(1)
jakiro.train.trainer.draw = lambda records, path: False
Trainer(tiny_target(), samples_of(8, 16), short(), Path(sys.argv[1])).run(
    lambda progress: time.sleep(60 if progress.step == 7 else 0)
)
"""


def test_a_kill_loses_at_most_one_interval(
    target: Target, samples: Samples, out: Path, whole: Path
) -> None:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not history(out) or history(out)[-1]["step"] < 7:
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()  # type: ignore[union-attr]
    assert checkpoint.read_config(out)["notes"]["step"] == 4
    checkpoint.load(out, target.fingerprint())

    # A kill in the middle of a write leaves half a line and scratch files behind.
    with (out / HISTORY_FILE).open("a") as file:
        file.write('{"step": 8, "lo')
    (out / f"{STATE_FILE}.tmp").write_bytes(b"half")
    Trainer(target, samples, short(), out).run()
    assert history(out) == history(whole)


def test_another_run_does_not_go_on(target: Target, samples: Samples, out: Path) -> None:
    """Of another config, other data, another target, or a state that is damaged."""
    brief = short(steps=4)
    Trainer(target, samples, brief, out).run()
    for change, message in (
        (short(steps=4, lr=2e-3), r"lr was 0\.001, now 0\.002"),
        (short(steps=24), "steps was 4, now 24"),
        (short(steps=4, head=HeadOptions(64)), r"head\.expert_size was None, now 64"),
    ):
        with pytest.raises(ConfigError, match=message):
            Trainer(target, samples, change, out).run()
    with pytest.raises(ConfigError, match="samples was 8, now 9"):
        Trainer(target, samples_of(9, 16), brief, out).run()
    other = tiny_target()
    other.model.get_input_embeddings().weight.data.mul_(2)
    with pytest.raises(PairMismatch, match="another target"):
        Trainer(other, samples, brief, out).run()
    path = out / STATE_FILE
    state = torch.load(path, weights_only=True)
    del state["identity"]["head"]["contrast_strength"]
    torch.save(state, path)
    Trainer(target, samples, brief, out).run()  # a setting that older runs did not know
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"training\.pt is damaged"):
        Trainer(target, samples, brief, out).run()


def test_a_full_disk_keeps_the_last_checkpoint(
    target: Target, samples: Samples, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(progress: Progress) -> None:
        def no_space(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        if progress.step == 7:
            monkeypatch.setattr(os, "fsync", no_space)

    with pytest.raises(CheckpointError, match="No space left on device"):
        Trainer(target, samples, short(), out).run(fill)
    monkeypatch.undo()
    assert checkpoint.read_config(out)["notes"]["step"] == 4
    checkpoint.load(out)
    assert not list(out.glob("*.tmp"))


def test_the_learning_rate_rises_then_follows_a_cosine(
    target: Target, samples: Samples, out: Path
) -> None:
    trainer = Trainer(target, samples, short(steps=22, warmup=2, lr=1.0), out)
    rates = [trainer.learning_rate(step) for step in (0, 1, 2, 12, 22)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])


def test_epochs_are_counted_in_batches(target: Target, samples: Samples, out: Path) -> None:
    config = short(steps=None, epochs=2.5, held_out=0, batch_tokens=16, save_every=20)
    trainer = Trainer(target, samples, config, out)
    assert trainer.num_steps == 20
    seen: list[int] = []
    trainer.run(lambda progress: seen.append(progress.step))
    assert seen == list(range(1, 21))


def test_bfloat16_trains_float32_weights(samples: Samples, out: Path) -> None:
    config = short(precision="bfloat16", save_every=12)
    Trainer(tiny_target(torch.bfloat16), samples, config, out).run()
    records = [record for record in history(out) if "loss" in record]
    assert records[-1]["loss"] < records[0]["loss"]
    assert {tensor.dtype for tensor in checkpoint.load(out).state_dict().values()} == {
        torch.float32
    }


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    steps = [{"step": n, "loss": 1 / n, "accuracy": [0.5, 0.3], "tau": 2.0} for n in range(1, 9)]
    mark = {"step": 8, "held_out": {"accuracy": [0.4, 0.2], "tau": 1.9}}
    assert draw([*steps, mark], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "prompt_lookup"}, "unknown method to train .prompt_lookup."),
        ({"unroll": 0}, "unroll must be at least 1"),
        ({"length": 3}, "length must be at least 4"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"lr": float("inf")}, "lr must be finite"),
        ({"epochs": float("inf")}, "epochs must be finite"),
        ({"noise": -1.0}, "noise must be finite and not negative"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"precision": "int8"}, "precision must be float32 or bfloat16"),
        ({"seed": 2**64}, "seed must be an integer in 0..4294967295"),
    ],
)
def test_impossible_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        TrainConfig(**change)
    assert isinstance(caught.value, JakiroError)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("medusa", {"unroll": 2}, "training of medusa has no use for unroll, got 2"),
        ("draft_model", {"head": HeadOptions(64)}, "training of draft_model has no use for head"),
        ("jakiro", {"model": ModelOptions(1)}, "training of jakiro has no use for model"),
    ],
)
def test_settings_of_other_methods_are_refused(
    method: str, change: dict[str, Any], message: str, target: Target, samples: Samples, out: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(target, samples, short(**{"method": method, "unroll": 1, **change}), out)


def test_a_layer_that_the_target_has_not_is_refused(
    target: Target, samples: Samples, out: Path
) -> None:
    with pytest.raises(ConfigError, match=r"streams can be read at the layers 0 to .*, not at 99"):
        Trainer(target, samples, short(head=HeadOptions(reads=(99,))), out)


def test_recomputing_is_refused_where_it_does_nothing(
    target: Target, samples: Samples, out: Path
) -> None:
    with pytest.raises(ConfigError, match=r"training of medusa keeps little .*--recompute"):
        Trainer(target, samples, short(method="medusa", unroll=1), out, Work(recompute=True))


def test_a_finished_run_writes_its_head_again(target: Target, samples: Samples, out: Path) -> None:
    config = short(steps=2)
    Trainer(target, samples, config, out).run()
    weights = out / checkpoint.WEIGHTS_FILE
    before = weights.read_bytes()
    weights.unlink()
    Trainer(target, samples, config, out).run()
    assert weights.read_bytes() == before


def test_directories_of_the_user_stay(tmp_path: Path, target: Target, samples: Samples) -> None:
    files = ("training-data/notes.txt", "training-2024/notes.txt", "training-4/__0_0.distcp")
    for name in files:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("something")
    Trainer(target, samples, short(steps=1), tmp_path).run()
    assert [(tmp_path / name).exists() for name in files] == [True, True, False]


def test_a_run_that_diverges_keeps_what_it_saved(
    target: Target, samples: Samples, out: Path
) -> None:
    def spoil(progress: Progress) -> None:
        if progress.step == 6:
            weight.data.fill_(float("nan"))

    trainer = Trainer(target, samples, short(), out)
    weight = next(trainer.learner.module.parameters())
    with pytest.raises(ConfigError, match=r"the loss is nan at step 7.* a lower --lr than 0\.001"):
        trainer.run(spoil)
    assert checkpoint.read_config(out)["notes"]["step"] == 4
    assert all(tensor.isfinite().all() for tensor in checkpoint.load(out).state_dict().values())

    def spoil_at_last(progress: Progress) -> None:
        if progress.step == 8:
            weight.data.fill_(float("inf"))

    trainer = Trainer(target, samples, short(), out)
    weight = next(trainer.learner.module.parameters())
    with pytest.raises(ConfigError, match="weights are not finite at step 8"):
        trainer.run(spoil_at_last)
    assert checkpoint.read_config(out)["notes"]["step"] == 4


def test_a_compiled_loss_is_asked_for_by_name(
    target: Target, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives the same run, is nothing that a run is known by, and where there is nothing to
    compile it is refused."""
    compiled: list[str] = []

    def compile_(kernel: Any, backend: str, dynamic: bool) -> Any:
        compiled.append(f"{backend} {dynamic}")
        return kernel

    monkeypatch.setattr(torch, "compile", compile_)
    out = tmp_path / "compiled"
    Trainer(target, samples, short(steps=4), out, Work(compile=True)).run()
    assert compiled == ["inductor True"]
    Trainer(target, samples, short(steps=4), out).run()
    with pytest.raises(ConfigError, match="training of medusa has nothing that is compiled"):
        Trainer(target, samples, short(method="medusa", unroll=1), out, Work(compile=True))
