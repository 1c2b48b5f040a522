"""``jakiro chat``: a conversation in the terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from jakiro.cli import options
from jakiro.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from jakiro.engine.engine import Engine
    from jakiro.sampling.params import SamplingParams

HELP = "/reset starts anew, /stats shows the last answer's statistics, /exit or Ctrl-D leaves."


def chat(
    target: options.TargetOption = "pico",
    drafter: options.DrafterOption = None,
    tree: options.TreeOption = None,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    threads: options.ThreadsOption = None,
    compile: options.CompileOption = False,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: options.MaxNewTokensOption = 256,
    temperature: options.TemperatureOption = 0.7,
    top_k: options.TopKOption = 0,
    top_p: options.TopPOption = 0.95,
    min_p: options.MinPOption = 0.0,
    repetition_penalty: options.RepetitionPenaltyOption = 1.0,
    seed: options.SeedOption = None,
) -> None:
    """Talk with a model, answers streaming. /reset, /stats and /exit are commands."""
    from jakiro.cli import session
    from jakiro.sampling.params import SamplingParams

    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    engine = session.open_engine(
        target,
        drafter,
        tree=tree,
        dtype=dtype,
        device=device,
        threads=threads,
        compile=compile,
    )
    if not session.has_chat_template(engine):
        raise ConfigError(
            f"the tokenizer of {target!r} has no chat template; use jakiro generate --raw"
        )
    session.NOTES.print(HELP)
    _converse(engine, params, [{"role": "system", "content": system}] if system else [])


def _converse(engine: Engine, params: SamplingParams, opening: list[dict[str, str]]) -> None:
    """Read, answer, repeat, until the end of the input."""
    from jakiro.cli import session

    messages = list(opening)
    while True:
        try:
            line = session.NOTES.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == "/exit":
            return
        if line == "/reset":
            messages = list(opening)
        elif line == "/stats":
            session.print_stats(engine.stats, engine)
        elif line:
            asked = {"role": "user", "content": line}
            try:
                messages = _fitting(engine, [*messages, asked], len(opening))
            except PromptError as error:
                session.NOTES.print(str(error))
                continue
            engine.reset_stats()
            # Another draw for every turn, and the same conversation for the same seed.
            own = None if params.seed is None else params.seed + len(messages)
            messages.append(
                {"role": "assistant", "content": _answer(engine, messages, own, params)}
            )


def _answer(
    engine: Engine, messages: list[dict[str, str]], seed: int | None, params: SamplingParams
) -> str:
    """Stream one answer; Ctrl-C keeps what is there."""
    text = ""
    try:
        for chunk in engine.stream(messages, replace(params, seed=seed)):
            typer.echo(chunk.text, nl=False)
            text += chunk.text
    except KeyboardInterrupt:
        pass
    typer.echo()
    return text


def _fitting(
    engine: Engine, messages: list[dict[str, str]], num_fixed: int
) -> list[dict[str, str]]:
    """The conversation without its oldest exchanges where it outgrows half of the context. Raises
    ``PromptError`` where its last message alone does."""
    limit = engine.target.context_length // 2
    while (length := len(engine.encode(messages))) > limit:
        if len(messages) <= num_fixed + 2:
            raise PromptError(
                f"the message is too long: with it the prompt has {length} tokens, and a chat "
                f"reads {limit} at most, half of the context; shorten it"
            )
        del messages[num_fixed : num_fixed + 2]
    return messages
