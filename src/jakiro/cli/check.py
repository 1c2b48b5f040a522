"""``jakiro check``: is a pair lossless on this machine?"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from jakiro.cli import options

if TYPE_CHECKING:
    from jakiro.bench.losslessness import Cell


def check(
    target: options.TargetOption = "pico",
    drafter: options.DrafterOption = None,
    tree: options.TreeOption = None,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    threads: options.ThreadsOption = None,
    compile: options.CompileOption = False,
    task: options.TaskOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts of each task.")] = 2,
    max_new_tokens: options.MaxNewTokensOption = 48,
    seed: options.FixedSeedOption = 0,
    as_json: options.JsonOption = False,
) -> None:
    """Check that a drafter changes no token, greedy and sampled.

    Drafted texts, alone and in a batch, are compared with plain decoding, and plain decoding with
    an uncached recomputation by the model itself. A first difference that rounding explains is a
    near-tie; any other is a bug, and the exit code is 1.
    """
    from jakiro.api import eos_ids
    from jakiro.bench.equality import Judge
    from jakiro.bench.losslessness import check_pair
    from jakiro.bench.workloads import load_tasks
    from jakiro.cli import session
    from jakiro.cli.requests import encode_tasks

    tasks = load_tasks(task or ["demo"], limit)
    drafted = session.open_engine(
        target,
        drafter,
        tree=tree,
        dtype=dtype,
        device=device,
        threads=threads,
        compile=compile,
    )
    plain = session.plain(drafted)
    model = drafted.target.model
    encoded, _ = encode_tasks(drafted, tasks, max_new_tokens, None)
    with session.NOTES.status("checking") as status:
        cells = check_pair(
            drafted,
            plain,
            Judge(model, eos_ids(model, drafted.tokenizer)),
            [prompt_ids for _, prompt_ids in encoded],
            max_new_tokens=max_new_tokens,
            seed=seed,
            progress=lambda name: status.update(f"checking {name}"),
        )
    bugs = [cell for cell in cells if cell.outcome == "bug"]
    if as_json:
        records = [asdict(cell) | {"outcome": cell.outcome} for cell in cells]
        typer.echo(json.dumps({"num_bugs": len(bugs), "dtype": str(model.dtype), "cells": records}))
    else:
        _print(cells, str(model.dtype))
    if bugs:
        raise typer.Exit(1)


def _print(cells: list[Cell], dtype: str) -> None:
    """A table of counts, then the first difference if there is one."""
    from jakiro.cli.session import OUT

    table = Table(box=None, pad_edge=False)
    for column in ("setting", "comparison", "equal", "near-tie", "bug"):
        table.add_column(column)
    groups: dict[tuple[str, str], Counter[str]] = {}
    for cell in cells:
        groups.setdefault((cell.setting, cell.comparison), Counter())[cell.outcome] += 1
    for (setting, comparison), counts in groups.items():
        entries = (str(counts[outcome]) for outcome in ("equal", "near-tie", "bug"))
        table.add_row(setting, comparison, *entries)
    OUT.print(table)
    ranked = sorted(cells, key=lambda cell: cell.outcome != "bug")
    first = next((cell for cell in ranked if cell.divergence is not None), None)
    num_tokens = sum(cell.num_tokens for cell in cells)
    if first is None:
        OUT.print(f"All {len(cells)} texts are equal ({num_tokens} tokens, {dtype}).")
        return
    found = first.divergence
    assert found is not None
    margin = "excluded by a filter or ended" if found.margin is None else f"{found.margin:.3g}"
    OUT.print(
        f"First difference ({first.outcome}): {first.setting}, {first.comparison}, "
        f"prompt {first.prompt}, token {found.position}: expected {found.expected}, "
        f"found {found.found}, margin {margin} ({dtype})."
    )
