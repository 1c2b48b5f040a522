"""``jakiro import``: draft heads of others."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jakiro.cli import options


def import_head(
    directory: Annotated[Path, typer.Argument(help="Directory of the published checkpoint.")],
    out: Annotated[Path, typer.Option(help="New directory for the converted head.")],
    target: Annotated[
        str, typer.Option("--target", "-t", help="Its target: a directory or a hub name.")
    ],
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Convert a published draft head to a checkpoint of this package.

    The layout is recognised by the tensors. Values are kept bit by bit. Anything missing, unknown
    or contradictory is an error, and so is another target than the head was made for.
    """
    from jakiro.cli import session
    from jakiro.hub.convert.importing import FILES, check_free, import_head, recognise
    from jakiro.hub.convert.source import read_source

    # What can be told without the target is told before it is loaded.
    check_free(out)
    source = read_source(directory, FILES)
    layout = recognise(source)
    # In its own type: a rounded embedding would have another fingerprint.
    engine = session.open_engine(target, "none", device=device)
    done = import_head(source, layout, engine.target, out)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **asdict(done)}))
        return
    for name in done.left_out:
        session.NOTES.print(f"left out: {name} (the target has it, or it is a constant)")
    size = f"{done.num_parameters / 1e6:.1f}M parameters, {done.dtype}"
    session.NOTES.print(f"{done.layout} head ({size}), method {done.method}")
    typer.echo(out)
