"""What ``bench`` and ``reproduce`` share: a run from its settings to what is printed of it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from jakiro.bench.equality import Judge
    from jakiro.bench.foreign import Foreign
    from jakiro.bench.grid import Prompts
    from jakiro.bench.methods import Workshop
    from jakiro.bench.report import Cell, Report
    from jakiro.bench.runner import Method
    from jakiro.bench.settings import Settings
    from jakiro.bench.suites import Row
    from jakiro.bench.workloads import Task
    from jakiro.engine.engine import Engine


ABSENT = "its prompts are not at hand; see --task"


def target_digest(plain: Engine) -> str:
    return str(plain.target.fingerprint()["embedding_sha256"])


def open_judge(plain: Engine) -> Judge:
    from jakiro.api import eos_ids
    from jakiro.bench.equality import Judge

    return Judge(plain.target.model, eos_ids(plain.target.model, plain.tokenizer))


def open_rows(
    workshop: Workshop, explicit: Sequence[Row], optional: Sequence[Row], transformers: bool
) -> tuple[tuple[Row, ...], list[Method], dict[str, str]]:
    """Rows and methods that are at hand, plain decoding first, and why ``optional`` rows are not.
    Those asked for by hand have to be there: what is wrong with one is raised."""
    from jakiro.api import eos_ids
    from jakiro.bench.runner import PLAIN, EngineMethod
    from jakiro.bench.suites import Row
    from jakiro.cli.session import NOTES

    with NOTES.status("loading the drafters"):
        opened, missing = workshop.open_found(optional)
        opened += [workshop.open(row) for row in explicit]
        _, plain = workshop.open(Row("none", "none"))
    methods: list[Method] = [EngineMethod(PLAIN, plain.engine), *(each for _, each in opened)]
    if transformers:
        model = plain.engine.target.model
        methods += workshop.transformers(eos_ids(model, plain.engine.tokenizer))
    return tuple(row for row, _ in opened), methods, missing


def encode(
    plain: Engine, tasks: Sequence[Task], max_new_tokens: int, chat: bool | None
) -> tuple[dict[str, Prompts], dict[str, str]]:
    """The prompts of every task that has any which fits, and why other tasks have none. Raises
    ``ConfigError`` where there is no task."""
    from jakiro.bench.grid import Prompts
    from jakiro.bench.suites import reject_doubles
    from jakiro.cli.requests import encode_tasks
    from jakiro.errors import ConfigError

    if not tasks:
        raise ConfigError("none of the tasks is at hand; give their prompts with --task")
    reject_doubles("task", [task.name for task in tasks])
    encoded, num_skipped = encode_tasks(plain, tasks, max_new_tokens, chat)
    by_task: dict[str, list[list[int]]] = {}
    for name, token_ids in encoded:
        by_task.setdefault(name, []).append(token_ids)
    prompts = {name: Prompts(ids, num_skipped.get(name, 0)) for name, ids in by_task.items()}
    empty = {task.name for task in tasks} - prompts.keys()
    return prompts, dict.fromkeys(sorted(empty), "no prompt leaves room in the context")


def measure(
    settings: Settings,
    methods: Sequence[Method],
    prompts: Mapping[str, Prompts],
    judge: Judge,
    not_measured: dict[str, str],
    out: Path | None,
    foreign: Sequence[Foreign] = (),
) -> Report:
    """Run what is not yet in ``out``, writing there after every cell."""
    from jakiro.bench import grid, store
    from jakiro.bench.environment import environment
    from jakiro.bench.report import Report
    from jakiro.cli.session import NOTES

    command = shlex.join(["jakiro", *sys.argv[1:]])
    report = Report(command, environment(), settings, not_measured, [], list(foreign))
    if out is not None:
        report = replace(store.resume(report, out), foreign=report.foreign)
        if report.cells:
            measured = f"{len(report.cells)} cells in {out} were measured before"
            NOTES.print(measured, soft_wrap=True)
    pending = list(report.pending())
    rounds = len(methods) * settings.repetitions
    batches = (-(-len(prompts[at.task].token_ids) // at.batch_size) for at in pending)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=NOTES, transient=True) as progress:
        bar = progress.add_task("measuring", total=rounds * sum(batches))
        cells = grid.run(
            report,
            methods,
            prompts,
            judge,
            lambda place, _: progress.update(bar, advance=1, description=str(place)),
        )
        for _ in cells:
            if out is not None:
                store.save(report, out)
    if out is not None:
        left = f"{out}: {store.REPORT_FILE}, {store.TABLE_FILE}, {store.CHART_FILE}"
        NOTES.print(left, soft_wrap=True)
    return report


def print_report(report: Report) -> None:
    """One table per cell, a column per method: that fits any terminal."""
    from jakiro.cli.session import OUT

    for cell in report.cells:
        OUT.print(_table(cell))
        if cell.num_skipped:
            OUT.print(f"{cell.num_skipped} prompts are too long for the context.")
        OUT.print()
    for name, reason in report.not_measured.items():
        OUT.print(f"Not measured: {name}: {reason}")


def _table(cell: Cell) -> Table:
    from jakiro.bench.tables import HEADINGS, cells

    table = Table(title=str(cell.place), title_justify="left", box=None, pad_edge=False)
    columns = [HEADINGS, *(cells(summary) for summary in cell.methods)]
    for first, *_ in columns:
        table.add_column(first)
    for row in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*row)
    return table


def num_bugs(report: Report) -> int:
    """Texts that differ from those of plain decoding by more than a near-tie."""
    equalities = [one.equality for cell in report.cells for one in cell.methods]
    return sum(equality.num_bugs for equality in equalities if equality is not None)
