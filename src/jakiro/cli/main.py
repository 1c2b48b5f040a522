"""The command ``jakiro``. A command's module is imported when it is asked for, and none of them
imports ``torch`` before it runs, so help is instant."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

import jakiro
from jakiro.errors import ConfigError, JakiroError

USAGE, FAILURE = 2, 1

COMMANDS = {
    "demo": "jakiro.cli.demo:demo",
    "generate": "jakiro.cli.generate:generate",
    "suggest": "jakiro.cli.suggest:suggest",
    "chat": "jakiro.cli.chat:chat",
    "serve": "jakiro.cli.serve:serve",
    "train": "jakiro.cli.train:train",
    "restrict": "jakiro.cli.restrict:restrict",
    "sharpen": "jakiro.cli.sharpen:sharpen",
    "import": "jakiro.cli.import_:import_head",
    "export": "jakiro.cli.export:export",
    "bench": "jakiro.cli.bench:bench",
    "reproduce": "jakiro.cli.reproduce:reproduce",
    "recommend": "jakiro.cli.recommend:recommend",
    "check": "jakiro.cli.check:check",
    "list": "jakiro.cli.list:list_names",
}
"""Where each command lives, in the order of the help."""


class Commands(TyperGroup):
    """Finds commands by name and turns the package's errors into one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].partition(":")
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name)(getattr(import_module(module), function))
        return get_command(single)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except JakiroError as error:
            typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
            code = USAGE if isinstance(error, ConfigError) else FAILURE
            raise typer.Exit(code) from error


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"jakiro {jakiro.__version__}")
        raise typer.Exit


@app.callback()
def group(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Make a causal language model answer faster without changing what it says."""


def run() -> None:
    """Entry point of the console script."""
    # Read by the libraries when they are imported; what a user has set stays.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # of reading weights; downloads still show theirs
    # Optional libraries report kernels they could not load; that is no news to a user of this.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    app(prog_name="jakiro")
