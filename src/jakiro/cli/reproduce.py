"""``jakiro reproduce``: does this machine give the figures of a report?"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jakiro.cli import options
from jakiro.errors import ConfigError

if TYPE_CHECKING:
    from jakiro.bench.compare import Finding
    from jakiro.bench.report import Report


def reproduce(
    report: Annotated[Path, typer.Argument(help="JSON file of an earlier run.")],
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Where the target is here. Default: as in the file."),
    ] = None,
    heads: options.HeadsOption = None,
    task: options.TaskOption = None,
    device: options.DeviceOption = None,
    threads: options.ThreadsOption = None,
    out: options.OutOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Run a report again and compare texts, acceptance and speed.

    Methods and tasks that are not at hand are left out and listed. Exit code 1 if a text differs
    by more than a near-tie, or τ or α by more than their spread over prompts; speeds are shown
    and do not fail.
    """
    from jakiro.bench.compare import compare
    from jakiro.bench.methods import Workshop
    from jakiro.bench.store import prepare, read_report
    from jakiro.bench.workloads import load_tasks, select, sources_of
    from jakiro.cli import measuring, session

    before = read_report(report)
    asked = before.settings
    if out is not None:
        if out.resolve() == report.resolve().parent:
            raise ConfigError(f"{out} holds the report itself; give another --out, or none")
        prepare(out)
    found = load_tasks(task or sources_of(asked.tasks), asked.limit)
    tasks = select(found, asked.tasks)
    dtype = asked.dtype.removeprefix("torch.")
    plain = session.open_engine(
        target or asked.target, "none", dtype=dtype, device=device, threads=threads
    )
    workshop = Workshop(plain, heads, max(asked.batch_sizes))
    rows, methods, missing = measuring.open_rows(workshop, [], asked.rows, asked.transformers)
    prompts, _ = measuring.encode(plain, tasks, asked.max_new_tokens, asked.chat)
    missing |= dict.fromkeys(set(asked.tasks) - prompts.keys(), measuring.ABSENT)
    settings = replace(
        asked, target_sha256=measuring.target_digest(plain), rows=rows, tasks=tuple(prompts)
    )
    _check_weights(before, settings.target_sha256, {row.name: row.weights for row in rows})
    judge = measuring.open_judge(plain)
    after = measuring.measure(settings, methods, prompts, judge, missing, out)
    findings = list(compare(before, after, prompts, judge))
    if as_json:
        record = {"not_compared": missing, "findings": [asdict(each) for each in findings]}
        typer.echo(json.dumps(record, ensure_ascii=False))
    else:
        _print(findings, missing)
    if any(finding.is_failure for finding in findings):
        raise typer.Exit(1)


def _check_weights(before: Report, target_sha256: str, found: dict[str, str | None]) -> None:
    """Raise ``PairMismatch`` where a model is another than the one measured."""
    from jakiro.errors import PairMismatch

    if target_sha256 != before.settings.target_sha256:
        raise PairMismatch(
            f"the target is not the one that was measured: its embedding is {target_sha256[:12]} "
            f"and was {before.settings.target_sha256[:12]}; give --target"
        )
    for row in before.settings.rows:
        if row.name in found and found[row.name] != row.weights:
            raise PairMismatch(
                f"the weights of {row.name!r} are {str(found[row.name])[:12]} and were "
                f"{str(row.weights)[:12]}; give --heads with the checkpoint that was measured"
            )


def _print(findings: list[Finding], missing: dict[str, str]) -> None:
    """What differs, line by line, then the sum of it."""
    from jakiro.cli.session import OUT

    for finding in findings:
        if not finding.is_equal:
            word = "FAIL" if finding.is_failure else "differs"
            OUT.print(
                f"{word}: {finding.place}, {finding.method}, {finding.quantity}: {finding.detail}",
                soft_wrap=True,
            )
    for name, reason in missing.items():
        OUT.print(f"Not compared: {name}: {reason}")
    num_equal = sum(finding.is_equal for finding in findings)
    num_failures = sum(finding.is_failure for finding in findings)
    OUT.print(f"{num_equal} of {len(findings)} comparisons are equal, {num_failures} fail.")
