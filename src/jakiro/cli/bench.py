"""``jakiro bench``: what drafting brings, measured in alternation."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jakiro.cli import options

if TYPE_CHECKING:
    from jakiro.bench.report import Report
    from jakiro.bench.runner import Method, Request, Sample
    from jakiro.engine.engine import Engine
    from jakiro.sampling.params import SamplingParams


def bench(
    target: options.TargetOption = "pico",
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            help="DRAFTER or DRAFTER@TREE. May be repeated. Default: every drafter the target has.",
        ),
    ] = None,
    task: options.TaskOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts of each task.")] = None,
    max_new_tokens: options.MaxNewTokensOption = 128,
    repetitions: Annotated[int, typer.Option(min=1, help="Rounds over all prompts.")] = 1,
    temperature: options.TemperatureOption = 0.0,
    top_k: options.TopKOption = 0,
    top_p: options.TopPOption = 1.0,
    min_p: options.MinPOption = 0.0,
    seed: options.FixedSeedOption = 0,
    ignore_eos: Annotated[bool, typer.Option(help="Go on after the end token.")] = False,
    transformers: Annotated[
        bool, typer.Option("--transformers", help="Measure model.generate as well.")
    ] = False,
    chat: options.ChatOption = None,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    threads: options.ThreadsOption = None,
    out: Annotated[Path | None, typer.Option(help="Directory for JSON, table and chart.")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Measure drafters against plain decoding, in alternation.

    All methods share one target in one process. Exit code 1 if a text differs from that of plain
    decoding by more than a near-tie.
    """
    from jakiro.bench.report import prepare
    from jakiro.bench.workloads import load_tasks
    from jakiro.cli import session
    from jakiro.cli.requests import encode_tasks
    from jakiro.sampling.params import SamplingParams

    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        ignore_eos=ignore_eos,
        seed=seed,
    )
    if out is not None:
        prepare(out)
    tasks = load_tasks(task or ["humaneval", "gsm8k"], limit)
    plain = session.open_engine(target, "none", dtype=dtype, device=device, threads=threads)
    methods = _methods(plain, target, method, transformers)
    encoded, num_skipped = encode_tasks(plain, tasks, max_new_tokens, chat)
    requests = _requests(encoded, params)
    samples = _measure(methods, requests, repetitions)
    settings = {
        "target": target,
        "dtype": str(plain.target.dtype),
        "repetitions": repetitions,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
        "ignore_eos": ignore_eos,
    }
    report = _report(plain, requests, samples, settings, num_skipped)
    if out is not None:
        for path in report.save(out):
            session.NOTES.print(f"wrote {path}")
    if as_json:
        typer.echo(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        _print(report)
    equalities = [each.equality for rows in report.tasks.values() for each in rows]
    if any(equality is not None and equality.num_bugs for equality in equalities):
        raise typer.Exit(1)


def _methods(
    plain: Engine, target: str, names: list[str] | None, with_transformers: bool
) -> list[Method]:
    """Plain decoding, the drafters asked for, and ``model.generate`` if wanted."""
    from jakiro.api import eos_ids, usable_drafters
    from jakiro.bench.runner import PLAIN, EngineMethod, TransformersMethod
    from jakiro.cli.session import sibling

    if not names:
        names = [name for name in usable_drafters(target) if name != "none"]
    methods: list[Method] = [EngineMethod(PLAIN, plain)]
    for name in names:
        drafter, _, tree = name.partition("@")
        methods.append(EngineMethod(name, sibling(plain, drafter, tree or None)))
    if with_transformers:
        model = plain.target.model
        ends = eos_ids(model, plain.tokenizer)
        methods.append(TransformersMethod("transformers", model, ends))
    return methods


def _requests(encoded: list[tuple[str, list[int]]], params: SamplingParams) -> list[Request]:
    """One seed per prompt, the same for every method."""
    from dataclasses import replace

    from jakiro.bench.runner import Request

    first = params.seed or 0
    return [
        Request(task, ids, replace(params, seed=first + index))
        for index, (task, ids) in enumerate(encoded)
    ]


def _measure(methods: list[Method], requests: list[Request], repetitions: int) -> list[Sample]:
    from jakiro.bench.runner import measure
    from jakiro.cli.session import NOTES

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=NOTES, transient=True) as progress:
        bar = progress.add_task("measuring", total=len(methods) * len(requests) * repetitions)
        return measure(
            methods,
            requests,
            repetitions=repetitions,
            progress=lambda _: progress.advance(bar),
        )


def _report(
    plain: Engine,
    requests: list[Request],
    samples: list[Sample],
    settings: dict[str, Any],
    num_skipped: dict[str, int],
) -> Report:
    from jakiro.api import eos_ids
    from jakiro.bench.environment import environment
    from jakiro.bench.equality import Judge
    from jakiro.bench.report import Report
    from jakiro.bench.summary import summarise

    judge = Judge(plain.target.model, eos_ids(plain.target.model, plain.tokenizer))
    tasks = list(dict.fromkeys(request.task for request in requests))
    return Report(
        command=shlex.join(["jakiro", *sys.argv[1:]]),
        environment=environment(),
        settings=settings,
        tasks={task: summarise(task, requests, samples, judge) for task in tasks},
        num_skipped=num_skipped,
    )


def _print(report: Report) -> None:
    """One table per task, a column per method: that fits any terminal."""
    from jakiro.bench.report import HEADINGS, cells
    from jakiro.cli.session import OUT

    for task, summaries in report.tasks.items():
        table = Table(title=task, title_justify="left", box=None, pad_edge=False)
        columns = [HEADINGS, *(cells(summary) for summary in summaries)]
        for first, *_ in columns:
            table.add_column(first)
        for row in zip(*(column[1:] for column in columns), strict=True):
            table.add_row(*row)
        OUT.print(table)
        if report.num_skipped.get(task):
            OUT.print(f"{report.num_skipped[task]} prompts are too long for the context.")
        OUT.print()
