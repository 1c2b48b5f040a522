"""Writes ``docs/commands.md``: the help of every command, as the program prints it."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
WIDTH = 90

INTRODUCTION = """# Commands

Made by `make docs` from the program's own help.
"""


def render() -> str:
    """The page as it should be."""
    from typer.testing import CliRunner

    from jakiro.cli.main import COMMANDS, app

    runner = CliRunner()
    parts = [INTRODUCTION]
    for name in ("", *COMMANDS):
        arguments = [*name.split(), "--help"]
        done = runner.invoke(app, arguments, prog_name="jakiro", env={"COLUMNS": str(WIDTH)})
        assert done.exit_code == 0, done.output
        title = f"jakiro {name}".strip()
        parts.append(f"## {title}\n\n```\n{done.output.strip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
