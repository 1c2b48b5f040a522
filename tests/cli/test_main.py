"""The group: what it costs to look at it, and how commands end."""

from __future__ import annotations

import subprocess
import sys

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
