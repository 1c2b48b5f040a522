"""``jakiro import``, ``restrict``, ``sharpen`` and ``export``, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Run
from tests.hub.convert import synthetic

USAGE, FAILURE = 2, 1


@pytest.fixture
def published(tmp_path: Path) -> str:
    shapes, config = synthetic.SOURCES["jakiro"]
    tensors = synthetic.random_tensors(shapes)
    legacy = {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    return str(synthetic.write(tmp_path / "published", legacy | tensors, config))


@pytest.fixture
def inside(published: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the published head in IN."""
    place = Path(published).parent
    monkeypatch.chdir(place)
    Path(published).rename("IN")
    return place


def test_there_and_back(run: Run, target: str, published: str, tmp_path: Path) -> None:
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    result = run("import", published, "--out", ours, "--target", target)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == ours
    assert "left out: layers.0.self_attn.rotary_emb.inv_freq" in result.stderr
    assert "Jakiro head (0.0M parameters, float16), method jakiro" in result.stderr

    result = run("generate", "w1 w2", "--target", target, "--drafter", ours, "-n", "4")
    assert result.exit_code == 0, result.output

    result = run("export", ours, "--out", theirs, "--format", "original", "-t", "pico")
    assert "hidden_size is 32 there and 256 in this target" in " ".join(result.stderr.split())

    result = run("export", ours, "--out", theirs, "--format", "original")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == theirs
    first, last = (
        torch.load(Path(place) / "pytorch_model.bin", weights_only=True)
        for place in (published, theirs)
    )
    assert set(first) - set(last) == {"layers.0.self_attn.rotary_emb.inv_freq"}
    assert all(torch.equal(first[name], tensor) for name, tensor in last.items())


def test_json(run: Run, target: str, published: str, tmp_path: Path) -> None:
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    record = json.loads(run("import", published, "--out", ours, "-t", target, "--json").stdout)
    assert record == {
        "out": ours,
        "layout": "Jakiro",
        "method": "jakiro",
        "dtype": "float16",
        "num_parameters": record["num_parameters"],
        "left_out": ["layers.0.self_attn.rotary_emb.inv_freq"],
    }
    record = json.loads(
        run("export", ours, "--out", theirs, "--format=eagle-vllm", "--json").stdout
    )
    assert record == {
        "out": theirs,
        "method": "jakiro",
        "format": "eagle-vllm",
        "dtype": "float16",
        "files": ["model.safetensors", "config.json"],
    }


@pytest.fixture
def imported(run: Run, target: str, published: str, tmp_path: Path) -> tuple[str, ...]:
    """A head of ours, its target and a little text, as commands take them."""
    ours, data = tmp_path / "ours", tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "w1 w2 w3 w1 w2 w1"}) + "\n")
    assert run("import", published, "--out", str(ours), "-t", target).exit_code == 0
    return (str(ours), "-t", target, "--data", str(data))


def test_an_imported_head_is_restricted(
    run: Run, target: str, imported: tuple[str, ...], tmp_path: Path
) -> None:
    few, given = str(tmp_path / "few"), ("restrict", *imported, "--draft-vocab")
    result = run(*given, "6", "--out", few, "--json")
    assert json.loads(result.stdout) == {
        "out": few,
        "num_tokens": 6,
        "vocab_size": 40,
        "share": pytest.approx(5 / 6),
    }
    result = run("generate", "w1 w2", "--target", target, "--drafter", few, "-n", "4")
    assert result.exit_code == 0, result.output
    result = run(*given, "3", "--out", str(tmp_path / "no"))
    assert result.exit_code == USAGE and "cannot hold the 4 special tokens" in result.stderr
    assert run(*given, "6", "--out", few).exit_code == FAILURE


def test_an_imported_head_is_sharpened(
    run: Run, target: str, imported: tuple[str, ...], tmp_path: Path
) -> None:
    sharp, given = str(tmp_path / "sharp"), ("sharpen", *imported, "--out")
    record = json.loads(run(*given, sharp, "--json").stdout)
    assert record == {"out": sharp, "sharpness": record["sharpness"]}
    assert [len(branch) for branch in record["sharpness"]] == [2, 2]
    noted = json.loads((Path(sharp) / "config.json").read_text())["notes"]["options"]
    assert noted == {"sharpness": record["sharpness"]}
    result = run("generate", "w1 w2", "--target", target, "--drafter", sharp, "-n", "4")
    assert result.exit_code == 0, result.output
    result = run(*given, str(tmp_path / "again"))
    assert result.stdout.strip() == str(tmp_path / "again")
    assert "for logits and" in result.stderr
    assert run(*given, sharp).exit_code == FAILURE
    assert run(*given, str(tmp_path / "no"), "--samples", "0").exit_code == USAGE


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["import", "IN", "--out", "OUT"], USAGE, "Missing option '--target'"),
        (["import", "IN", "--target", "TARGET"], USAGE, "Missing option '--out'"),
        (["export", "IN", "--out", "OUT"], USAGE, "Missing option '--format'"),
        (["export", "IN", "--out", "OUT", "--format", "onnx"], USAGE, "'onnx' is not one of"),
        (["import", "no/such", "--out", "OUT", "-t", "TARGET"], FAILURE, "is not a directory"),
        (["import", "TARGET", "--out", "OUT", "-t", "TARGET"], FAILURE, "no layout that is known"),
        (["import", "IN", "--out", "IN", "-t", "TARGET"], FAILURE, "IN exists already"),
        (["import", "IN", "--out", "OUT", "-t", "pico"], FAILURE, "was made for another target"),
        (["export", "IN", "--out", "OUT", "--format", "original"], FAILURE, "config of a draft"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_goes_wrong(
    run: Run, target: str, inside: Path, arguments: list[str], code: int, message: str
) -> None:
    result = run(*(target if argument == "TARGET" else argument for argument in arguments))
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert message in " ".join(result.stderr.split())
    assert not (inside / "OUT").exists()
