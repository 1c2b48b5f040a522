"""Rows that choose their tree as they go, against the best fixed tree of the same drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jakiro.bench.report import Cell
from jakiro.bench.statistics import Ratio
from jakiro.bench.suites import Row


@dataclass(frozen=True, slots=True)
class Rivalry:
    """How a row did against ``best``, the fixed one that took the least time on these very
    prompts, which favours it."""

    method: str
    best: str
    ratio: Ratio
    """Wall time of the best / own wall time, of all batches together; its interval is over
    them."""


def rivalries(rows: Sequence[Row], cells: Sequence[Cell]) -> list[Rivalry]:
    """One for each of ``rows`` that has any rival, over the prompts of all ``cells``. Rows under
    the rule ``match`` only: they write the same texts."""
    times = [{one.method: one.wall_ms for one in cell.methods} for cell in cells]
    taken = {row.name: [ms for cell in times for ms in cell.get(row.name, ())] for row in rows}
    found = []
    for row in rows:
        fixed = [
            other.name
            for other in rows
            if other.drafter == row.drafter
            and other.rule == row.rule == "match"
            and not other.is_auto
            and taken[other.name]
        ]
        if row.is_auto and fixed and taken[row.name]:
            best = min(fixed, key=lambda name: sum(taken[name]))
            ratio = Ratio.of(taken[best], taken[row.name])
            if ratio is not None:
                found.append(Rivalry(row.name, best, ratio))
    return found
