"""A run as plain data, as a Markdown table and as a chart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jakiro.bench.environment import Environment
from jakiro.bench.statistics import Spread
from jakiro.bench.summary import Summary
from jakiro.errors import CheckpointError, ConfigError, JakiroError
from jakiro.hub.files import Writer, replace_files

SCHEMA = 1
"""Rises when a field of the JSON changes its meaning or goes."""

HEADINGS = (
    "method",
    "tokens/s",
    "speedup (95%)",
    "quartiles",
    "τ",
    "τ no loops",
    "α by depth",
    "draft / verify / other",
    "outside",
    "equal",
)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a reader needs to judge a figure or to take it again."""

    command: str
    environment: Environment
    settings: dict[str, Any]
    tasks: dict[str, list[Summary]]
    """Per task, plain decoding first."""
    num_skipped: dict[str, int]
    """Per task the prompts that do not fit into the target's context."""

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    def to_markdown(self) -> str:
        """One table per task, preceded by the command and the machine."""
        where = self.environment
        lines = [
            f"`{self.command}`",
            "",
            f"{where.cpu}, {where.num_threads} threads, torch {where.versions.get('torch')}, "
            f"commit {where.commit}, {where.date}",
        ]
        for task, summaries in self.tasks.items():
            lines += ["", f"### {task}", "", _line(HEADINGS), _line(["---"] * len(HEADINGS))]
            lines += [_line(cells(summary)) for summary in summaries]
            if self.num_skipped.get(task):
                lines += ["", f"{self.num_skipped[task]} prompts are too long for the context."]
        return "\n".join(lines) + "\n"

    def save(self, directory: Path) -> list[Path]:
        """Write ``report.json``, ``report.md`` and ``speedup.png``; returns their paths. Raises
        ``JakiroError`` if they cannot be written."""
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=2) + "\n"
        writers: dict[Path, Writer] = {
            directory / "report.json": lambda path: path.write_text(text, "utf-8"),
            directory / "report.md": lambda path: path.write_text(self.to_markdown(), "utf-8"),
            directory / "speedup.png": lambda path: chart(self, path),
        }
        try:
            replace_files(writers)
        except CheckpointError as error:
            raise JakiroError(f"cannot write the report to {str(directory)!r}: {error}") from error
        return list(writers)


def cells(summary: Summary) -> list[str]:
    """The entries of one row, in the order of ``HEADINGS``."""
    spread, shares, equality = summary.speedup, summary.shares, summary.equality
    return [
        summary.method,
        f"{summary.tokens_per_s:.1f}",
        _interval(spread),
        f"{spread.quartile_low:.2f} - {spread.quartile_high:.2f}" if spread else "",
        _number(summary.tau),
        _number(summary.tau_without_loops)
        + (f" ({summary.num_loops})" if summary.num_loops else ""),
        " ".join(f"{rate:.2f}" for rate in summary.alpha),
        f"{shares.draft:.0%} / {shares.verify:.0%} / {shares.other:.0%}" if shares else "",
        f"{shares.outside:.1%}" if shares else "",
        _equal(summary) if equality else "",
    ]


def prepare(directory: Path) -> None:
    """Make the ``directory`` of a report; what ``save`` would say is cheaper to know before a run.

    Raises:
        ConfigError: charts cannot be drawn.
        JakiroError: the directory cannot be made.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("the chart needs matplotlib; run pip install 'jakiro[bench]'")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JakiroError(f"cannot write the report to {str(directory)!r}: {error}") from error


def chart(report: Report, path: Path) -> None:
    """Bars of the median speedup per task and method, with its 95% interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 + 1.6 * len(report.tasks), 3.6), layout="constrained")
    axes = figure.subplots()
    methods = _methods(report)
    width = 0.8 / max(len(methods), 1)
    for index, method in enumerate(methods):
        bars = [
            (place + (index - (len(methods) - 1) / 2) * width, summary.speedup)
            for place, summaries in enumerate(report.tasks.values())
            for summary in summaries
            if summary.method == method and summary.speedup is not None
        ]
        medians = [spread.median for _, spread in bars]
        axes.bar([x for x, _ in bars], medians, width, label=method)
        axes.errorbar(
            [x for x, _ in bars],
            medians,
            yerr=[
                [spread.median - spread.interval_low for _, spread in bars],
                [spread.interval_high - spread.median for _, spread in bars],
            ],
            fmt="none",
            ecolor="black",
            capsize=2,
        )
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(report.tasks)), list(report.tasks))
    axes.set_ylabel("speedup over plain decoding")
    axes.legend(fontsize="small")
    figure.savefig(path, format="png", dpi=150)


def _methods(report: Report) -> list[str]:
    """All methods but plain decoding, which is 1 by definition."""
    names = (summary.method for each in report.tasks.values() for summary in each[1:])
    return list(dict.fromkeys(names))


def _line(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entries) + " |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.median:.2f} ({spread.interval_low:.2f} - {spread.interval_high:.2f})"


def _equal(summary: Summary) -> str:
    equality = summary.equality
    assert equality is not None
    text = f"{equality.num_equal}/{summary.num_prompts}"
    if equality.num_near_ties:
        text += f", {equality.num_near_ties} near-ties"
    if equality.num_bugs:
        text += f", {equality.num_bugs} BUGS"
    return text
