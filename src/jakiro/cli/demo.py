"""``jakiro demo``: the bundled pair, plain and drafted side by side."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from jakiro.cli import options

if TYPE_CHECKING:
    from jakiro.bench.runner import Request, Sample
    from jakiro.bench.summary import Summary
    from jakiro.engine.engine import Engine

TASKS = {"demo": 4, "humaneval": 2, "gsm8k": 2}
"""How many prompts of each shipped set are shown."""


def demo(
    target: options.TargetOption = "pico",
    drafter: options.DrafterOption = None,
    tree: options.TreeOption = None,
    alternations: Annotated[
        int, typer.Option(min=5, help="How often both answer every prompt.")
    ] = 5,
    max_new_tokens: options.MaxNewTokensOption = 64,
    temperature: options.TemperatureOption = 0.0,
    seed: options.FixedSeedOption = 0,
    threads: options.ThreadsOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show equal text in less time, side by side.

    Real prompts are answered plainly and drafted, in alternation. Exit code 1 if any text differs.
    """
    from jakiro.bench.runner import PLAIN, EngineMethod, Request, measure
    from jakiro.bench.summary import summarise
    from jakiro.bench.workloads import load_tasks
    from jakiro.cli import session
    from jakiro.cli.requests import encode_tasks
    from jakiro.sampling.params import SamplingParams

    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature)
    drafted = session.open_engine(target, drafter, tree=tree, threads=threads)
    plain = session.plain(drafted)
    tasks = [task for name, count in TASKS.items() for task in load_tasks([name], count)]
    encoded, _ = encode_tasks(drafted, tasks, max_new_tokens, None)
    requests = [
        Request(ids, replace(params, seed=seed + index)) for index, (_, ids) in enumerate(encoded)
    ]
    methods = [EngineMethod(PLAIN, plain), EngineMethod(drafted.drafter.name, drafted)]
    with session.NOTES.status(f"{len(requests)} prompts, {alternations} alternations"):
        samples = measure(methods, requests, repetitions=alternations)
    summary = summarise(methods, requests, samples)[1]
    different = differing(samples)
    if as_json:
        record = asdict(summary) | {"differing_prompts": different}
        typer.echo(json.dumps(record, ensure_ascii=False))
    else:
        _print_texts(drafted, requests, samples)
        _print_summary(summary, alternations, different)
    if different:
        raise typer.Exit(1)


def differing(samples: list[Sample]) -> list[int]:
    """Indices of the requests that were not answered by one and the same text every time."""
    texts: dict[int, set[tuple[int, ...]]] = {}
    for sample in samples:
        texts.setdefault(sample.requests[0], set()).add(tuple(sample.answers[0].token_ids))
    return [request for request, distinct in texts.items() if len(distinct) > 1]


def _print_texts(engine: Engine, requests: list[Request], samples: list[Sample]) -> None:
    """The first alternation: prompt above, both answers with their times next to each other."""
    from jakiro.cli.session import OUT

    first = [sample for sample in samples if sample.repetition == 0]
    for index, request in enumerate(requests):
        pair = sorted(
            (sample for sample in first if sample.requests == (index,)),
            key=lambda sample: sample.method != "plain",
        )
        asked = shorten(_decoded(engine, request.prompt_ids), width=160, placeholder=" ...")
        table = Table(expand=True, title=asked, title_justify="left")
        for sample in pair:
            table.add_column(f"{sample.method}  {sample.wall_ms:.0f} ms", ratio=1)
        table.add_row(*(_decoded(engine, sample.answers[0].token_ids) for sample in pair))
        OUT.print(table)


def _decoded(engine: Engine, token_ids: list[int]) -> str:
    assert engine.tokenizer is not None
    return engine.tokenizer.decode(token_ids, skip_special_tokens=True).strip()


def _print_summary(summary: Summary, alternations: int, different: list[int]) -> None:
    from jakiro.cli.session import OUT

    spread = summary.speedup
    if different:
        OUT.print(f"DIFFERENT texts for prompts {different}: run jakiro check to see why.")
    else:
        OUT.print(f"All {summary.num_prompts} texts are equal, in {alternations} alternations.")
    if spread is not None:
        OUT.print(
            f"Speedup of {summary.method} over plain decoding: median {spread.median:.2f}, "
            f"quartiles {spread.quartile_low:.2f} to {spread.quartile_high:.2f}, "
            f"95% interval {spread.interval_low:.2f} to {spread.interval_high:.2f}."
        )
    if summary.tau is not None:
        OUT.print(f"τ {summary.tau.value:.2f} tokens per forward of the target.")
