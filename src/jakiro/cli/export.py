"""``jakiro export``: draft heads for other programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jakiro.cli import options


class Format(StrEnum):
    """Layouts that can be written."""

    original = "original"
    eagle_vllm = "eagle-vllm"


def export(
    directory: Annotated[Path, typer.Argument(help="Checkpoint directory of the head.")],
    out: Annotated[Path, typer.Option(help="New directory for the exported head.")],
    form: Annotated[Format, typer.Option("--format", help="Who is to read it.")],
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            help="Its target, a directory or a hub name, for context length and special tokens. "
            "Default: those the head was imported with.",
        ),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Write a draft head in the layout of another program.

    original: what the authors' code of the method loads. eagle-vllm: what vLLM loads with
    method "eagle", where this package is installed beside it.
    """
    from jakiro.cli import session
    from jakiro.hub.bundled import target_location
    from jakiro.hub.convert.exporting import export_head

    location = None if target is None else target_location(target)
    done = export_head(directory, out, form.value, location)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **asdict(done)}))
        return
    session.NOTES.print(f"{done.method} head as {done.format}, {done.dtype}")
    typer.echo(out)
