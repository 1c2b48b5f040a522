"""One run, divided: over parts of a step, over processes, over shards."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jakiro.errors import ConfigError
from jakiro.target.target import Target
from jakiro.train.config import ModelOptions, Work
from jakiro.train.samples import Samples
from jakiro.train.trainer import Trainer
from tests.train.test_trainer import history, short

DIVIDED = """
import shutil, sys
from pathlib import Path
import torch
import jakiro.train.trainer
from jakiro.train.config import Work
from jakiro.train.processes import joined
from jakiro.train.trainer import Trainer
from tests.train.support import samples_of, tiny_target
from tests.train.test_processes import OTHERS
from tests.train.test_trainer import short

torch.set_num_threads(1)
out, target, samples = Path(sys.argv[1]), tiny_target(), samples_of(8, 16)

def stop(progress):
    if progress.step == 7:
        raise KeyboardInterrupt

jakiro.train.trainer.draw = lambda records, path: False

with joined() as processes:
    def trainer(name, work, config=short()):
        return Trainer(target, samples, config, out / name, work, processes)

    trainer("copied", Work(accumulate=2)).run()
    for config in OTHERS:
        trainer(config.method, Work(), config).run()
    try:
        trainer("sharded", Work(shard=True)).run(stop)
    except KeyboardInterrupt:
        pass
    processes.wait()
    if processes.is_first:
        shutil.copytree(out / "sharded", out / "crossed")
        print(sorted(path.name for path in (out / "sharded").glob("training*")), flush=True)
    processes.wait()
    trainer("sharded", Work(shard=True, recompute=True)).run()
    trainer("spread", Work(shard=True), short(optimizer="muon", steps=4)).run()
"""


OTHERS = [
    short(optimizer="muon", steps=4),
    short(method="medusa", steps=4, unroll=1),
    short(method="draft_model", steps=4, unroll=1, model=ModelOptions(num_layers=1)),
]
"""The other optimiser, and the other learners, briefly."""


@pytest.fixture(scope="module")
def whole(target: Target, samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by one process in one part."""
    out = tmp_path_factory.mktemp("whole")
    Trainer(target, samples, short(), out).run()
    return out


def start(script: str, count: int, *arguments: str) -> str:
    """Run ``script`` in ``count`` processes, joined as torchrun joins them; what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    shared = {
        "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    # One that fails takes the others with it: what all of them said.
    said = "\n".join(errors for _, errors in outputs)
    assert all(process.returncode == 0 for process in processes), said
    return "".join(printed for printed, _ in outputs)


def assert_same_run(ours: Path, theirs: Path, atol: float = 2e-5) -> None:
    """The same history and the same head, but for rounding."""
    lines, expected = history(ours), history(theirs)
    assert len(lines) == len(expected)
    for line, wanted in zip(lines, expected, strict=True):
        assert same(line, wanted), (line, wanted)
    mine, other = (load_file(place / "model.safetensors") for place in (ours, theirs))
    assert mine.keys() == other.keys()
    for name in other:
        torch.testing.assert_close(mine[name], other[name], atol=atol, rtol=1e-3)


def same(ours: Any, theirs: Any) -> bool:
    """Equality of JSON values, numbers to five digits."""
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == pytest.approx(theirs, rel=1e-4, abs=1e-6))


@pytest.mark.parametrize("work", [Work(accumulate=3), Work(recompute=True)])
def test_parts_and_recomputation_change_nothing(
    target: Target, samples: Samples, out: Path, whole: Path, work: Work
) -> None:
    Trainer(target, samples, short(), out, work).run()
    assert_same_run(out, whole)


def test_two_processes_make_the_same_run(
    target: Target, samples: Samples, tmp_path: Path, whole: Path
) -> None:
    printed = start(DIVIDED, 2, str(tmp_path))
    assert_same_run(tmp_path / "copied", whole)
    assert json.loads(printed.replace("'", '"')) == ["training-4", "training.pt"]
    assert len(list((tmp_path / "sharded" / "training-12").glob("*.distcp"))) == 2
    assert not (tmp_path / "sharded" / "training-4").exists()
    assert_same_run(tmp_path / "sharded", whole)

    for config in OTHERS:
        alone = tmp_path / "alone" / config.method
        Trainer(target, samples, config, alone).run()
        if config.optimizer == "muon":
            # It rounds to bfloat16 within its steps, of 2e-4 here.
            for ours in (config.method, "spread"):
                assert_same_run(tmp_path / ours, alone, atol=1e-4)
        else:
            assert_same_run(tmp_path / config.method, alone)

    # One process goes on from the shards of two.
    Trainer(target, samples, short(), tmp_path / "crossed").run()
    assert_same_run(tmp_path / "crossed", whole)


def test_shards_need_processes(target: Target, samples: Samples, out: Path) -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        Trainer(target, samples, short(), out, Work(shard=True))
