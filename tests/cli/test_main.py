"""The group: what it costs to look at it, and how commands end."""

from __future__ import annotations

import subprocess
import sys

import pytest

import jakiro
from jakiro.cli.main import COMMANDS
from tests.cli.conftest import Run

PROBE = """
import sys
from typer.testing import CliRunner
from jakiro.cli.main import COMMANDS, app
for command in ("", *COMMANDS):
    assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0, command
print([name for name in ("torch", "transformers", "numpy") if name in sys.modules])
"""


def test_no_help_imports_a_heavy_library() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_console_script_runs() -> None:
    script = "import jakiro.cli.main as m, sys; sys.argv = ['jakiro', 'frobnicate']; m.run()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "No such command 'frobnicate'" in done.stderr
    assert "Traceback" not in done.stderr


def test_version(run: Run) -> None:
    assert run("--version").output == f"jakiro {jakiro.__version__}\n"


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    output = run().output
    assert all(command in output for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", "w1", "--temperature", "-1"], 2, "temperature must be"),
        (["generate", "w1", "--top-p", "2"], 2, "top_p must be a number, in 0.0..1.0, got 2.0"),
        (["generate", "w1", "--max-new-tokens", "0"], 2, "max_new_tokens must be"),
        (["generate", "w1", "--max-new-tokens", "many"], 2, "valid integer"),
        (["generate", "w1", "--logit-bias", "7:1"], 2, "write TOKEN_ID=VALUE"),
        (["generate", "w1", "--drafter", "oracle"], 2, "unknown drafter 'oracle'"),
        (["generate", "w1", "--tree", "bush:3"], 2, "cannot read the tree 'bush:3'"),
        (["generate", "w1", "--dtype", "int3"], 2, "unknown dtype 'int3'"),
        (["generate", ""], 1, "the prompt is empty"),
        (["generate", "w1 " * 200, "--raw"], 1, "128"),
        (["check", "--task", "nowhere.jsonl"], 2, "unknown task 'nowhere.jsonl'"),
        (["bench", "--method", "oracle"], 2, "unknown drafter 'oracle'"),
        (["demo", "--alternations", "2"], 2, "alternations"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_input_ends_with_one_clear_line(
    run: Run, target: str, arguments: list[str], code: int, message: str
) -> None:
    result = run(*arguments, "--target", target)
    assert result.exit_code == code
    assert message in result.stderr.replace("\n", " ")
    assert result.stdout == ""


def test_an_unknown_target_is_a_failure(run: Run) -> None:
    result = run("generate", "w1", "--target", "no/such/model")
    assert result.exit_code == 1
    assert "no/such/model" in result.stderr
