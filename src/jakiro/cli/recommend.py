"""``jakiro recommend``: what pays on this machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from jakiro.cli import options

if TYPE_CHECKING:
    from jakiro.bench.recommend import Recommendation, Trial
    from jakiro.bench.runner import Request
    from jakiro.engine.engine import Engine


def recommend(
    target: options.TargetOption = "pico",
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            "-p",
            help="What it is asked: a JSONL file, a directory or a shipped set. May be repeated. "
            "Default: the shipped sets.",
        ),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            help="Directory of a trained head or of a draft model, to be measured as well. May be "
            "repeated."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts of each task.")] = 4,
    max_new_tokens: options.MaxNewTokensOption = 64,
    temperature: options.TemperatureOption = 0.0,
    seed: options.FixedSeedOption = 0,
    chat: options.ChatOption = None,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    threads: options.ThreadsOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Find the drafter that pays for a target and its prompts on this machine.

    Measures every drafter that needs no training, bundled heads and those given, in alternation
    with plain decoding, and says why and how to use the best.
    """
    from jakiro.bench.recommend import candidates
    from jakiro.bench.recommend import recommend as choose
    from jakiro.bench.runner import Request
    from jakiro.bench.workloads import load_tasks
    from jakiro.cli import session
    from jakiro.cli.requests import encode_tasks
    from jakiro.sampling.params import SamplingParams

    rows = candidates(target, head or [])
    tasks = load_tasks(prompts or ["humaneval", "gsm8k"], limit)
    plain = session.open_engine(target, "none", dtype=dtype, device=device, threads=threads)
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature)
    encoded, _ = encode_tasks(plain, tasks, max_new_tokens, chat)
    requests = [Request(ids, replace(params, seed=seed + i)) for i, (_, ids) in enumerate(encoded)]
    with session.NOTES.status(f"{len(rows)} candidates") as status:
        found = choose(rows, _trial(plain, requests, status.update))
    command = shlex.join(["jakiro", "generate", "-t", target, "-d", found.drafter, "PROMPT"])
    if as_json:
        record = asdict(found) | {
            "drafter": found.drafter,
            "reason": found.reason,
            "command": command,
        }
        typer.echo(json.dumps(record, ensure_ascii=False))
        return
    _print(found)
    session.OUT.print(f"\nRecommended: {found.drafter}")
    session.OUT.print(found.reason)
    session.OUT.print(command, soft_wrap=True)


def _trial(plain: Engine, requests: list[Request], note: Callable[[Text], None]) -> Trial:
    """Trials beside ``plain``. The engine of a row is opened for its trial only: one more target's
    worth of memory at a time."""
    from jakiro.bench.methods import Workshop
    from jakiro.bench.runner import PLAIN, EngineMethod, measure
    from jakiro.bench.suites import Row
    from jakiro.bench.summary import Summary, summarise
    from jakiro.cli.measuring import open_judge

    workshop, judge = Workshop(plain), open_judge(plain)

    def trial(row: Row, count: int | None, rounds: int) -> Summary:
        note(Text(f"{row.name}: {'all' if count is None else count} prompts"))
        methods = [EngineMethod(PLAIN, plain), workshop.open(row)[1]]
        asked = requests[:count]
        return summarise(methods, asked, measure(methods, asked, repetitions=rounds), judge)[1]

    return trial


def _print(found: Recommendation) -> None:
    from jakiro.cli.session import OUT

    table = Table(box=None, pad_edge=False)
    for column in ("drafter", "speedup", "95% interval", "τ", "prompts"):
        table.add_column(column)
    finals = {summary.method for summary in found.finals}
    rest = [summary for summary in found.screened if summary.method not in finals]
    for summary in (*found.finals, *rest):
        speedup, tau = summary.speedup, summary.tau
        table.add_row(
            summary.method,
            "-" if speedup is None else f"{speedup.median:.2f}",
            "-"
            if speedup is None
            else f"{speedup.interval_low:.2f} to {speedup.interval_high:.2f}",
            "-" if tau is None else f"{tau.value:.2f}",
            str(summary.num_prompts),
        )
    OUT.print(table)
    for name, reason in found.refused.items():
        OUT.print(f"Not possible: {name}: {reason}")
