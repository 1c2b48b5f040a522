"""A report as bars: a panel per temperature, a group per task, a bar per method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jakiro.bench.runner import PLAIN

if TYPE_CHECKING:
    from jakiro.bench.report import Cell, Report

GROUP_WIDTH = 0.84
"""Of the distance between two groups."""


def chart(report: Report, path: Path) -> None:
    """Draw the median speedups with their 95% intervals to a PNG file; plain decoding is the line
    at 1."""
    from matplotlib.figure import Figure

    panels: dict[str, list[Cell]] = {}
    for cell in report.cells:
        panels.setdefault(cell.place.condition, []).append(cell)
    names = [one.method for one in report.cells[0].methods if one.method != PLAIN]
    num_groups = max(len(cells) for cells in panels.values())
    width = 2.2 + num_groups * max(1.2, 0.28 * len(names))
    figure = Figure(figsize=(width, 0.6 + 2.8 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), squeeze=False, sharey=True)[:, 0]
    for axes, (title, cells) in zip(rows, panels.items(), strict=True):
        for place, name in enumerate(names):
            _bars(axes, cells, name, place, len(names))
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set_xticks(range(len(cells)), [cell.task for cell in cells])
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_ylabel("speedup")
    figure.legend(*rows[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, format="png", dpi=150)


def _bars(axes: Any, cells: list[Cell], name: str, place: int, num_methods: int) -> None:
    """The bars of one method in every group."""
    width = GROUP_WIDTH / num_methods
    found = [
        (group + (place - (num_methods - 1) / 2) * width, one.speedup)
        for group, cell in enumerate(cells)
        for one in cell.methods
        if one.method == name and one.speedup is not None
    ]
    lengths = [spread.median for _, spread in found]
    errors = [
        [spread.median - spread.interval_low for _, spread in found],
        [spread.interval_high - spread.median for _, spread in found],
    ]
    middles = [x for x, _ in found]
    axes.bar(middles, lengths, width, label=name, color=f"C{place % 10}")
    axes.errorbar(middles, lengths, yerr=errors, fmt="none", ecolor="black", capsize=2)
