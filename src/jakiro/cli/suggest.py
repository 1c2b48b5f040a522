"""``jakiro suggest``: several short continuations of one prompt, for the price of one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jakiro.cli import options
from jakiro.errors import PromptError


def suggest(
    prompt: Annotated[str, typer.Argument(help="The text to go on with, as it is.")],
    target: options.TargetOption = "pico",
    k: Annotated[int, typer.Option("-k", help="Suggestions, 100 at most.")] = 3,
    max_new_tokens: options.MaxNewTokensOption = 10,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="UTF-8 text to take n-grams from. May be repeated."),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Weight of the n-grams; 0 is off.")] = 0.54,
    temperature: Annotated[float, typer.Option(help="Of the model's law, which is mixed.")] = 0.06,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    threads: options.ThreadsOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Suggest continuations of a text from one superposed pass (not what the target would say)."""
    from jakiro.cli import session
    from jakiro.engine.superposed import Superposed

    texts = [_read(path) for path in corpus or []]
    engine = session.open_engine(target, "none", dtype=dtype, device=device, threads=threads)
    superposed = Superposed(engine, texts, alpha=alpha, temperature=temperature)
    found = superposed.suggest(prompt, k, max_new_tokens)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], ensure_ascii=False))
        return
    for each in found:
        typer.echo(f"{each.log_score:9.2f}  {' '.join(each.text.split())}")


def _read(path: Path) -> str:
    """Raises ``PromptError`` unless it is a file of UTF-8 text."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise PromptError(f"cannot read the corpus {path}: {error}; give a UTF-8 text") from error
    if not text:
        raise PromptError(f"the corpus {path} is empty; give a text or leave it out")
    return text
