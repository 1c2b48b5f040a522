"""``jakiro sharpen``: measure how sure the branches of a trained head are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from jakiro.cli import options


def sharpen(
    directory: Annotated[Path, typer.Argument(help="Checkpoint directory of the head.")],
    data: options.DataOption,
    out: Annotated[Path, typer.Option(help="New directory for the head.")],
    target: Annotated[
        str, typer.Option("--target", "-t", help="Its target: a directory or a hub name.")
    ],
    samples: Annotated[
        int, typer.Option(min=1, help="Samples to measure on, of every file as many.")
    ] = 256,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Measure how sure a head is of the target's choices, and note it in the head.

    For a head that was imported, or is used on other texts than it was trained on: trees are then
    grown by the chance that a node is accepted. Nothing is trained, no weight and no text changes.
    """
    from jakiro.cli import session
    from jakiro.hub.checkpoint import read_config
    from jakiro.hub.convert.importing import check_free
    from jakiro.train.sharpness import sharpen

    # What can be told without the target is told before it is loaded.
    check_free(out)
    read_config(directory)
    engine = session.open_engine(target, "none", device=device)
    found = sharpen(directory, engine, data, out, samples)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "sharpness": found}))
        return
    listed = ", ".join(f"{logits:g} for logits and {noise:g} for noise" for logits, noise in found)
    session.NOTES.print(f"sharpness, branch by branch: {listed}")
    typer.echo(out)
