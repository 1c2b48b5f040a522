"""``jakiro bench``: what drafting brings, measured in alternation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jakiro.cli import options

if TYPE_CHECKING:
    from jakiro.bench.suites import Suite
    from jakiro.bench.workloads import Task


def bench(
    target: options.TargetOption = "pico",
    suite: Annotated[
        str | None,
        typer.Option(
            help="Methods, tasks and temperatures by name (paper, others, auto, adversarial, "
            "ablation, heads, methods) or from a TOML file."
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            help="[NAME=]DRAFTER[@TREE][,rule=RULE][,noise_aware=false][,compile=true], beside "
            "those of the suite. May be repeated. Default: every drafter the target has.",
        ),
    ] = None,
    heads: options.HeadsOption = None,
    task: options.TaskOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts of each task.")] = None,
    max_new_tokens: options.MaxNewTokensOption = 128,
    repetitions: Annotated[int, typer.Option(min=1, help="Rounds over all prompts.")] = 1,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Prompts decoded together. May be repeated. Default: the suite's, or 1."
        ),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            "--temperature", "-T", help="0 is greedy. May be repeated. Default: the suite's, or 0."
        ),
    ] = None,
    top_k: options.TopKOption = 0,
    top_p: options.TopPOption = 1.0,
    min_p: options.MinPOption = 0.0,
    seed: options.FixedSeedOption = 0,
    ignore_eos: Annotated[bool, typer.Option(help="Go on after the end token.")] = False,
    transformers: Annotated[
        bool,
        typer.Option(
            "--transformers", help="Measure model.generate as well, also with its own drafts."
        ),
    ] = False,
    foreign: Annotated[
        list[Path] | None,
        typer.Option(
            help="JSON of scripts/engines/vllm_bench.py, for the tables. May be repeated."
        ),
    ] = None,
    chat: options.ChatOption = None,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    threads: options.ThreadsOption = None,
    out: options.OutOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Measure drafters against plain decoding, in alternation.

    All methods share one target in one process. A row or task of a suite that is not at hand is
    listed as not measured. Exit code 1 if a text differs from that of plain decoding by more than
    a near-tie.
    """
    from jakiro.bench.foreign import read_foreign
    from jakiro.bench.methods import Workshop, usable_rows
    from jakiro.bench.settings import Settings
    from jakiro.bench.store import prepare
    from jakiro.bench.suites import Row, Suite, load_suite
    from jakiro.bench.workloads import load_tasks, sources_of
    from jakiro.cli import measuring, session

    chosen = Suite() if suite is None else load_suite(suite)
    explicit = [Row.parse(text) for text in method or []]
    tasks, absent = _tasks(chosen, load_tasks(task or sources_of(chosen.tasks), limit))
    if out is not None:
        prepare(out)
    plain = session.open_engine(target, "none", dtype=dtype, device=device, threads=threads)
    wanted = chosen.rows or (() if explicit else usable_rows(target))
    sizes = tuple(batch) if batch else chosen.batch_sizes
    transformers = transformers or chosen.transformers
    workshop = Workshop(plain, heads, max(sizes))
    rows, methods, missing = measuring.open_rows(workshop, explicit, wanted, transformers)
    prompts, unfit = measuring.encode(plain, tasks, max_new_tokens, chat)
    settings = Settings(
        target=target,
        target_sha256=measuring.target_digest(plain),
        dtype=str(plain.target.dtype),
        rows=rows,
        tasks=tuple(prompts),
        temperatures=tuple(temperature) if temperature else chosen.temperatures,
        batch_sizes=sizes,
        limit=limit,
        chat=chat,
        transformers=transformers,
        repetitions=repetitions,
        max_new_tokens=max_new_tokens,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        ignore_eos=ignore_eos,
    )
    judge = measuring.open_judge(plain)
    others = [row for path in foreign or [] for row in read_foreign(path)]
    not_measured = missing | absent | unfit
    report = measuring.measure(settings, methods, prompts, judge, not_measured, out, others)
    if as_json:
        typer.echo(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        measuring.print_report(report)
    if measuring.num_bugs(report):
        raise typer.Exit(1)


def _tasks(suite: Suite, found: list[Task]) -> tuple[list[Task], dict[str, str]]:
    """The tasks of the suite in its order, or all, and which of them are not at hand."""
    from jakiro.bench.workloads import select
    from jakiro.cli.measuring import ABSENT

    if not suite.tasks:
        return found, {}
    names = {task.name for task in found}
    absent = [name for name in suite.tasks if name not in names]
    return select(found, suite.tasks), dict.fromkeys(absent, ABSENT)
