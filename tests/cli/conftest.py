"""A target directory small enough to load in every test, and a way to run commands."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from jakiro.cli.main import app
from tests.train.support import tiny_target, word_tokenizer

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a random model with a word tokenizer and a chat template."""
    directory = tmp_path_factory.mktemp("target")
    tiny_target().model.save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A JSONL file of two prompts in words of that tokenizer."""
    path = tmp_path_factory.mktemp("prompts") / "words.jsonl"
    lines = [{"prompt": "w1 w2 w3 w1 w2"}, {"turns": ["w5 w6 w5 w6", "w7"]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def run() -> Run:
    """``run("list", "--json")``: the command in this process, as a user would see it end."""

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, list(arguments), input=stdin, prog_name="jakiro")
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output
        return result

    return invoke
