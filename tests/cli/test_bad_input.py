"""What a user can get wrong, through the command itself: one clear line, the right exit code, and
nothing half-written that loads."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from jakiro.drafters.nn import DraftHead
from jakiro.errors import CheckpointError
from jakiro.hub import checkpoint
from jakiro.target.target import Target
from jakiro.train.config import TrainConfig
from jakiro.train.feature_head import head_config
from tests.cli.conftest import Run
from tests.train.support import VOCABULARY, tiny_target

USAGE, FAILURE = 2, 1


def assert_error(result: Result, code: int, *parts: str) -> None:
    """``code``, nothing on standard output, and one line that ends standard error."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.startswith("Error: ") for line in lines].count(True) == 1, result.stderr
    assert lines[-1].startswith("Error: "), result.stderr
    for part in parts:
        assert part in lines[-1]


def save_head(target: Target, directory: Path) -> str:
    checkpoint.save(DraftHead(head_config(target, TrainConfig())), directory, target.fingerprint())
    return str(directory)


@pytest.fixture
def head(tmp_path: Path) -> str:
    """An untrained head for the target of the other fixture."""
    return save_head(tiny_target(), tmp_path / "head")


@pytest.fixture
def copy(target: str, tmp_path: Path) -> Path:
    """A target that may be damaged."""
    return Path(shutil.copytree(target, tmp_path / "copy"))


# -- names and places ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--target", "no/such/model"], FAILURE, "model from 'no/such/model': there is no such"),
        (
            ["--drafter", "oracle"],
            USAGE,
            "unknown drafter 'oracle'; known: a directory, ",
        ),
        (["--drafter", "jakiro"], FAILURE, "was trained for the bundled target 'pico'; train one"),
        (["--device", "abacus"], USAGE, "cannot use the device 'abacus'"),
        (["--device", "cuda:99"], USAGE, "cannot use the device 'cuda:99'"),
        (["--dtype", "int3"], USAGE, "unknown dtype 'int3'; use float32"),
        (["--tree", "bush:3"], USAGE, "cannot read the tree 'bush:3'; write chain:DEPTH"),
        (["--tree", "chain:0"], USAGE, "depth must be an integer in 1..16384, got 0"),
        (["--tree", "dynamic:5,9,99999999"], USAGE, "in 1..16384, got 99999999"),
        (["--threads", "100000"], USAGE, "per core of this machine), got 100000"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_unknown_names(
    run: Run, target: str, arguments: list[str], code: int, message: str
) -> None:
    assert_error(run("generate", "w1", "--target", target, *arguments), code, message)


def test_unknown_methods_to_measure(run: Run, target: str, prompts: str) -> None:
    result = run("bench", "--target", target, "--task", prompts, "--method", "oracle@chain:2")
    assert_error(result, USAGE, "unknown drafter 'oracle'")


def test_a_registered_name_wins_over_a_directory(
    run: Run, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("none").mkdir()
    result = run("generate", "w1", "--target", target, "--drafter", "none", "-n", "3")
    assert result.exit_code == 0
    assert_error(run("generate", "w1", "--target", target, "--drafter", "./none"), FAILURE, "none")


def test_what_looks_like_markup_in_a_path_is_none(
    run: Run, target: str, prompts: str, tmp_path: Path
) -> None:
    odd = tmp_path / "[/b]"
    shutil.copytree(target, odd / "target")
    task = shutil.copy(prompts, odd / "[i]words.jsonl")
    places = ("--target", str(odd / "target"), "--task", task, "--out", str(odd / ":fire:"))
    for said in ("[/b]/:fire:: report.json", "[/b]/:fire: were measured before"):
        result = run("bench", *places, "--method", "prompt_lookup@chain:2", "-n", "3")
        assert result.exit_code == 0
        assert said in " ".join(result.stderr.split())
        assert "[i]words" in result.stdout


def test_a_head_loads_where_nothing_is_wrong(run: Run, target: str, head: str) -> None:
    result = run("generate", "w1", "--target", target, "--drafter", head, "-n", "3")
    assert result.exit_code == 0
    assert "Error" not in result.stderr


@pytest.mark.parametrize(("size", "changed"), [("vocab_size", 44), ("hidden_size", 64)])
def test_a_head_of_another_target(
    run: Run, target: str, tmp_path: Path, size: str, changed: int
) -> None:
    other = tiny_target()
    model = type(other.model)(type(other.config)(**other.config.to_dict() | {size: changed}))
    stranger = save_head(Target(model.eval()), tmp_path / "other")
    result = run("generate", "w1", "--target", target, "--drafter", stranger)
    mine = {"vocab_size": VOCABULARY, "hidden_size": 32}[size]
    found = f"{size} is {changed} there and {mine} in this target"
    assert_error(result, FAILURE, "was made for another target", found)


# -- damaged files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 5, 400, -1])
def test_a_truncated_head(run: Run, target: str, head: str, kept: int) -> None:
    path = Path(head) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    result = run("generate", "w1", "--target", target, "--drafter", head)
    assert_error(result, FAILURE, "model.safetensors is damaged or truncated")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_head_that_lacks_a_file(run: Run, target: str, head: str, name: str) -> None:
    (Path(head) / name).unlink()
    result = run("generate", "w1", "--target", target, "--drafter", head)
    assert_error(result, FAILURE, f"{name} is missing")


@pytest.mark.parametrize("kept", [0, 5, 400, -1])
def test_a_truncated_target(run: Run, copy: Path, kept: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    result = run("generate", "w1", "--target", str(copy))
    assert_error(result, FAILURE, "cannot load a causal language model", str(copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"intermediate_size": 56}, "model.layers.0.mlp.down_proj.weight has shape [32, 48]"),
        ({"model_type": "nobody"}, "cannot load a causal language model"),
        ({"layer_types": ["full_attention"]}, "cannot load a causal language model"),
    ],
    ids=["a layer more", "a wider layer", "no such family", "a config at odds with itself"],
)
def test_a_target_whose_weights_do_not_fit_its_config(
    run: Run, copy: Path, change: dict[str, Any], message: str
) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert_error(run("generate", "w1", "--target", str(copy)), FAILURE, message)


def test_a_target_without_a_tokenizer(run: Run, copy: Path) -> None:
    """Of some families a tokenizer comes out all the same, one that knows no text."""
    for path in copy.glob("tokenizer*"):
        path.unlink()
    train = ("train", "--data", str(copy / "none.jsonl"), "--out", str(copy / "out"))
    for command in (("generate", "w1"), train):
        result = run(*command, "--target", str(copy))
        assert_error(result, FAILURE, "there is no tokenizer in", str(copy), "read text")
    (copy / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    result = run("generate", "w1", "--target", str(copy))
    assert_error(result, FAILURE, "there is no tokenizer in", str(copy))


# -- prompts and settings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([""], None, "the prompt is empty"),
        ([], "\n", "the prompt is empty"),
        (["-"], "", "the prompt is empty"),
        (["  ", "--raw"], None, "the prompt is empty"),
        (["w1 " * 128, "--raw"], None, "the prompt has 128 tokens, but the context"),
        ([], b"\xff\xfe w1", "the prompt is not UTF-8 text"),
        (["w1 \udcff"], None, "the prompt is not UTF-8 text"),
    ],
    ids=["argument", "pipe", "dash", "no token", "long", "bytes", "surrogate"],
)
def test_bad_prompts(run: Run, target: str, arguments: list[str], stdin: Any, message: str) -> None:
    result = run("generate", "--target", target, *arguments, stdin=stdin)
    assert_error(result, FAILURE, message)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--max-new-tokens", "0", "max_new_tokens must be an integer of at least 1, got 0"),
        ("--min-new-tokens", "200", "min_new_tokens must be an integer in 0..128, got 200"),
        ("--temperature", "-1", "temperature must be a number, in 0.0..10000.0, got -1.0"),
        ("--temperature", "nan", "temperature must be a number"),
        ("--temperature", "1e-9", "temperature must be 0 (greedy) or at least"),
        ("--top-k", "-3", "top_k must be an integer of at least 0, got -3"),
        ("--top-p", "2", "top_p must be a number, in 0.0..1.0, got 2.0"),
        ("--min-p", "-0.5", "min_p must be a number, in 0.0..1.0, got -0.5"),
        ("--repetition-penalty", "0", "repetition_penalty must be above 0"),
        ("--presence-penalty", "inf", "presence_penalty must be a number, in -3.4e+38..3.4e+38"),
        ("--frequency-penalty", "nan", "frequency_penalty must be a number, in -3.4e"),
        ("--logit-bias", "7:1", "cannot read the bias '7:1'; write TOKEN_ID=VALUE"),
        ("--logit-bias", "7=nan", "logit_bias[7] must be a number"),
        ("--logit-bias", "40=1", "logit_bias names token 40"),
        ("--stop", "", "stop takes non-empty strings, got ''"),
        ("--stop-token-id", "-1", "stop_token_ids must be an integer of at least 0, got -1"),
        ("--logprobs", "-1", "logprobs must be an integer of at least 0, got -1"),
        ("--seed", "-1", "seed must be an integer of at least 0"),
    ],
)
def test_invalid_sampling_values(
    run: Run, target: str, flag: str, value: str, message: str
) -> None:
    assert_error(run("generate", "w1", "--target", target, flag, value), USAGE, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "w1", "--max-new-tokens", "many"], "valid integer"),
        (["demo", "--alternations", "2"], "'--alternations'"),
        (["check", "--limit", "0"], "'--limit'"),
        (["train", "--data", "x.jsonl", "--out", "x"], "Missing option '--target'"),
        (["generate", "w1", "--temprature", "1"], "No such option"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_shows_the_usage(run: Run, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == USAGE
    assert result.stdout == ""
    assert result.stderr.startswith("Usage: jakiro")
    assert message in " ".join(result.stderr.split())


# -- data files ------------------------------------------------------------------------------------

GOOD = b'{"text": "w1 w2 w3 w4 w5 w6"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "w1', "line 3: not JSON"),
        (b"[1, 2]", "line 3: "),
        (b'{"body": "w1"}', "line 3: "),
        (b'{"messages": [{"role": "user"}]}', "line 3: "),
        (b'{"text": "\xff"}', "can't decode byte 0xff"),
    ],
    ids=["cut", "a list", "no field", "no content", "no UTF-8"],
)
@pytest.mark.parametrize("command", ["train", "bench", "check"])
def test_unreadable_data_lines(
    run: Run, target: str, tmp_path: Path, command: str, line: bytes, message: str
) -> None:
    path, out = tmp_path / "data.jsonl", tmp_path / "out"
    path.write_bytes(GOOD + b"\n" + line + b"\n")
    places = ("--data", str(path), "--out", str(out)) if command == "train" else ("--task", path)
    result = run(command, "--target", target, *map(str, places))
    assert_error(result, FAILURE, str(path), message)
    assert {path.name for path in out.glob("*")} <= {".lock"}


def test_missing_and_empty_data(run: Run, target: str, tmp_path: Path) -> None:
    empty, out, missing = tmp_path / "empty.jsonl", str(tmp_path / "out"), str(tmp_path / "missing")
    empty.write_bytes(b"\n")
    train = ("train", "--target", target, "--out", out, "--data")
    assert_error(run(*train, missing), FAILURE, "cannot read", missing)
    assert_error(run(*train, str(empty)), FAILURE, "holds no sample")
    bench = ("bench", "--target", target, "--task")
    assert_error(run(*bench, missing), USAGE, "unknown task", missing)
    assert_error(run(*bench, str(empty)), FAILURE, str(empty), "holds no prompt")


# -- places that cannot be written -----------------------------------------------------------------


@contextmanager
def disk_of(num_bytes: int) -> Iterator[None]:
    """No file can grow beyond ``num_bytes``; the system refuses the write as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def training(target: str, tmp_path: Path) -> list[str]:
    data = tmp_path / "data.jsonl"
    data.write_bytes(GOOD * 6)
    places = ["--target", target, "--data", str(data), "--out", str(tmp_path / "out")]
    return ["train", *places, "--steps", "2", "--save-every", "1", "--precision", "float32"]


@pytest.mark.parametrize("room", [0, 3000, 60_000], ids=["history", "head", "state"])
def test_a_full_disk_while_training(
    run: Run, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """The head takes about 48 kB, the state thrice that. Once there is room, the run goes on."""
    monkeypatch.setattr("jakiro.train.trainer.draw", lambda records, path: False)
    arguments, out = training(target, tmp_path), tmp_path / "out"
    with disk_of(room):
        result = run(*arguments)
    assert_error(result, FAILURE, str(out), "File too large")
    assert not list(out.glob("*.tmp"))
    assert not (out / "training.pt").exists()
    if room < 60_000:
        with pytest.raises(CheckpointError, match="is missing"):
            checkpoint.load(out)
    else:
        assert checkpoint.read_config(out)["notes"]["step"] == 1
        checkpoint.load(out, tiny_target().fingerprint())
    assert run(*arguments).exit_code == 0
    assert checkpoint.read_config(out)["notes"]["step"] == 2
    checkpoint.load(out, tiny_target().fingerprint())


@pytest.mark.parametrize("saved", [False, True])
def test_an_interrupted_training_says_what_there_is(
    run: Run, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    place = tmp_path / "odd[/b]"
    place.mkdir(parents=True)

    def interrupted(*ignored: Any) -> None:
        if saved:
            (place / "out").mkdir()
            (place / "out" / "training.pt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("jakiro.train.run.train", interrupted)
    result = run(*training(target, place))
    assert result.exit_code == 130
    assert (
        "last checkpoint is in" in result.stderr if saved else "before the first" in result.stderr
    )


def test_a_full_disk_under_a_report(run: Run, target: str, prompts: str, tmp_path: Path) -> None:
    arguments = ("bench", "--target", target, "--task", prompts, "-n", "3", "--out", str(tmp_path))
    with disk_of(1000):
        result = run(*arguments)
    assert_error(result, FAILURE, "cannot write the report", "File too large")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "bench"])
def test_an_output_that_is_no_directory(
    run: Run, target: str, prompts: str, tmp_path: Path, command: str
) -> None:
    (tmp_path / "out").write_text("a file")
    bench = ["bench", "--target", target, "--task", prompts, "--out", str(tmp_path / "out")]
    arguments = training(target, tmp_path) if command == "train" else bench
    assert_error(run(*arguments), FAILURE, "cannot write", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "a file"
