"""``jakiro restrict``: a trained head that scores frequent tokens only."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jakiro.cli import options


def restrict(
    directory: Annotated[Path, typer.Argument(help="Checkpoint directory of the head.")],
    data: options.DataOption,
    draft_vocab: Annotated[
        int, typer.Option(help="Score only so many tokens, the most frequent of the data.")
    ],
    out: Annotated[Path, typer.Option(help="New directory for the restricted head.")],
    target: Annotated[
        str, typer.Option("--target", "-t", help="Its target: a directory or a hub name.")
    ],
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Restrict a trained draft head to the most frequent tokens (FR-Spec).

    Nothing is trained and no weight changes. A draft scores fewer tokens and costs less; others
    are never drafted, but the target still chooses among all, so the text stays.
    """
    from jakiro.cli import session
    from jakiro.hub.checkpoint import read_config
    from jakiro.hub.convert.importing import check_free
    from jakiro.train.vocabulary import restrict

    # What can be told without the target is told before it is loaded.
    check_free(out)
    read_config(directory)
    engine = session.open_engine(target, "none", device=device)
    done = restrict(directory, engine, data, draft_vocab, out)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **asdict(done)}))
        return
    session.NOTES.print(
        f"{done.num_tokens} of {done.vocab_size} tokens, {done.share:.1%} of those in the data"
    )
    typer.echo(out)
