"""``jakiro generate``: answer one prompt."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from jakiro.cli import options
from jakiro.errors import ConfigError, PromptError


def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text; without it standard input.")] = None,
    target: options.TargetOption = "pico",
    drafter: options.DrafterOption = None,
    tree: options.TreeOption = None,
    rule: options.RuleOption = "match",
    definition: options.DefinitionOption = None,
    amateur: options.AmateurOption = None,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    threads: options.ThreadsOption = None,
    compile: options.CompileOption = False,
    chat: options.ChatOption = None,
    max_new_tokens: options.MaxNewTokensOption = 128,
    min_new_tokens: Annotated[int, typer.Option(help="Shortest answer.")] = 0,
    temperature: options.TemperatureOption = 0.0,
    top_k: options.TopKOption = 0,
    top_p: options.TopPOption = 1.0,
    min_p: options.MinPOption = 0.0,
    repetition_penalty: options.RepetitionPenaltyOption = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="0 is off.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="0 is off.")] = 0.0,
    logit_bias: Annotated[
        list[str] | None, typer.Option(help="TOKEN_ID=VALUE. May be repeated.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop text. May be repeated.")] = None,
    stop_token_id: Annotated[
        list[int] | None, typer.Option(help="Stop token. May be repeated.")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Go on after the end token.")] = False,
    logprobs: Annotated[
        int | None, typer.Option(help="Alternatives to report per token, with --json.")
    ] = None,
    seed: options.SeedOption = None,
    stats: Annotated[bool, typer.Option("--stats", help="Statistics on standard error.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Answer one prompt, streaming to standard output."""
    from jakiro.cli import session
    from jakiro.engine.stats import Stats
    from jakiro.sampling.params import SamplingParams

    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=parse_bias(logit_bias or []),
        stop=tuple(stop or ()),
        stop_token_ids=tuple(stop_token_id or ()),
        ignore_eos=ignore_eos,
        logprobs=logprobs,
        seed=seed,
    )
    text = _prompt(prompt)
    engine = session.open_engine(
        target,
        drafter,
        tree=tree,
        rule=rule,
        dtype=dtype,
        device=device,
        threads=threads,
        compile=compile,
        definition=definition,
        amateur=amateur,
    )
    asked = session.as_prompt(engine, [{"role": "user", "content": text}], chat)
    done = Stats()
    for chunk in engine.stream(asked, params):
        if not as_json:
            typer.echo(chunk.text, nl=False)
        if chunk.completion is not None:
            done = chunk.completion.stats
            record = session.completion_record(chunk.completion)
    typer.echo(json.dumps(record, ensure_ascii=False) if as_json else "")
    if stats:
        session.print_stats(done, engine)


def _prompt(given: str | None) -> str:
    """The prompt, from standard input unless it is given.

    Raises:
        PromptError: it is empty or no UTF-8.
    """
    try:
        text = sys.stdin.read().rstrip("\n") if given in (None, "-") else given
        # Bytes of an argument that are no UTF-8 arrive as lone surrogates.
        (text or "").encode()
    except UnicodeError as error:
        raise PromptError(f"the prompt is not UTF-8 text ({error}); convert it first") from error
    if not text:
        raise PromptError("the prompt is empty; give a text or pipe one in")
    return text


def parse_bias(entries: list[str]) -> dict[int, float]:
    """``TOKEN_ID=VALUE`` entries as a mapping."""
    bias = {}
    for entry in entries:
        token, _, value = entry.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError as error:
            raise ConfigError(f"cannot read the bias {entry!r}; write TOKEN_ID=VALUE") from error
    return bias
