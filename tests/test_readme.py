"""The README does what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import jakiro
from jakiro.cli.main import app
from jakiro.engine.scheduler import Scheduler
from jakiro.serve.app import create_app
from jakiro.serve.settings import Settings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
PICO = ROOT / "src" / "jakiro" / "models" / "pico"


def test_the_example_runs_and_streams_the_same_text(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(compile(BLOCKS[0], "README.md", "exec"), names)
    printed = capsys.readouterr().out
    done = names["done"]
    assert isinstance(done, jakiro.Completion)
    assert done.stats.tau > 1.5
    assert printed.count(done.text) == 2


def test_the_transformers_way_runs() -> None:
    model = AutoModelForCausalLM.from_pretrained(PICO, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(PICO)
    inputs = tokenizer("def add(a, b):", return_tensors="pt", return_token_type_ids=False)
    names = {"jakiro": jakiro, "model": model, "inputs": inputs}
    model.generation_config.max_new_tokens = 16
    found = eval(compile(BLOCKS[1].strip(), "README.md", "eval"), names)
    assert torch.equal(found, model.generate(**inputs, do_sample=False))


def test_the_transcripts_are_what_the_server_says() -> None:
    curl = r"^\$ curl -\w+ localhost:8000(\S+) [^']*'[^']*' -d '([^']*)'[^\n]*\n(.*?)(?=^\$|^```)"
    found = re.findall(curl, TEXT, flags=re.MULTILINE | re.DOTALL)
    with TestClient(create_app(Scheduler(jakiro.load("pico")), Settings("pico"))) as client:
        whole, stream, call = (client.post(path, json=json.loads(body)) for path, body, _ in found)
    (choice,), (made,) = (answer.json()["choices"] for answer in (whole, call))
    count = whole.json()["usage"]["completion_tokens"]
    events = [json.loads(line[6:]) for line in stream.text.split("\n\n") if '"text"' in line]
    said = [
        json.dumps(
            [choice["message"]["content"], choice["finish_reason"], count],
            separators=(",", ":"),
            ensure_ascii=False,
        ),
        "\n".join(f'"text": {json.dumps(event["choices"][0]["text"])}' for event in events),
        json.dumps(made["message"]["tool_calls"][0]["function"], separators=(",", ":")),
    ]
    assert [told.strip() for _, _, told in found] == said


def test_every_command_and_option_of_the_readme_exists() -> None:
    lines = re.findall(r"^ {4}jakiro (\w+)(.*)$|^\| `jakiro (\w+)`", TEXT, flags=re.MULTILINE)
    assert len(lines) >= 6
    for example, options, listed in lines:
        shown = CliRunner().invoke(app, [example or listed, "--help"])
        assert shown.exit_code == 0, example or listed
        for option in re.findall(r"--[a-z-]+", options):
            assert option in shown.output, f"jakiro {example} has no {option}"


def test_every_file_and_make_target_of_the_readme_exists() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / link).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^ {4}make (\w+)", TEXT, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile, target
    assert len(TEXT.splitlines()) < 150
