"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from statistics import mean

from jakiro.bench.foreign import Foreign
from jakiro.bench.report import Cell, Report
from jakiro.bench.rivals import rivalries
from jakiro.bench.statistics import Ratio, Spread
from jakiro.bench.suites import TRANSFORMERS, Row
from jakiro.bench.summary import Summary

HEADINGS = (
    "method",
    "tokens/s",
    "speedup (95%)",
    "quartiles",
    "τ (95%)",
    "τ no loops",
    "α by depth",
    "draft / verify / other",
    "outside",
    "of bound",
    "equal",
)


def to_markdown(report: Report) -> str:
    """All there is: what ``brief`` says, then every cell."""
    lines = brief(report)
    for cell in report.cells:
        lines += ["", f"### {cell.place}", "", *table(HEADINGS, map(cells, cell.methods))]
        lines += ["", "α by depth, with 95% intervals over prompts:", "", *_alpha(cell.methods)]
        lines += against(cell, report.foreign)
        if cell.num_skipped:
            lines += ["", f"{cell.num_skipped} prompts are too long for the context."]
        lines += ["", f"Commit {cell.commit}, {cell.date}. SHA-256 of the texts:", ""]
        lines += _digests(cell.methods)
    return "\n".join(lines) + "\n"


def brief(report: Report) -> list[str]:
    """Lines: command and machine, then the ``overview``."""
    where = report.environment
    return [
        f"`{report.command}`",
        "",
        f"{where.cpu}, {where.num_threads} threads, torch {where.versions.get('torch')}, "
        f"commit {where.commit}, {where.date}",
        *overview(report),
    ]


def overview(report: Report) -> list[str]:
    """Lines: per temperature and batch size one table of speedup / τ, methods x tasks."""
    lines = []
    # Cells are finished in the order of the settings: those of one table follow each other.
    for condition, group in groupby(report.cells, lambda cell: cell.place.condition):
        beside = list(group)
        headings = ["speedup / τ", *(cell.task for cell in beside), "mean"]
        rows = zip(*(cell.methods for cell in beside), strict=True)
        lines += ["", f"### {condition}", "", *table(headings, map(_overview_row, rows))]
        lines += controlled(beside, report.settings.rows)
    if report.not_measured:
        lines += ["", "Not measured:", ""]
        lines += [f"- {name}: {reason}" for name, reason in report.not_measured.items()]
    return lines


def controlled(beside: Sequence[Cell], rows: Sequence[Row]) -> list[str]:
    """Lines on those of ``rows`` that choose their tree as they go: speedups with their intervals,
    and the time of the best fixed tree as a multiple of theirs, by task and of all tasks."""
    tasks = [cell.task for cell in beside]
    names = {row.name for row in rows if row.is_auto}
    paired = [
        [each[0].method, *(_speedup(one) for one in each)]
        for each in zip(*(cell.methods for cell in beside), strict=True)
        if each[0].method in names
    ]
    lines = ["", *table(["speedup (95%)", *tasks], paired)] if paired else []
    groups = [
        {one.method: one for one in rivalries(rows, cells)} for cells in _each_and_all(beside)
    ]
    rivals = [
        [
            name,
            *(
                f"{_interval(group[name].ratio.value, group[name].ratio)} of {group[name].best}"
                for group in groups
            ),
        ]
        for name in groups[-1]
        if all(name in group for group in groups)
    ]
    if rivals:
        lines += ["", *table(["of the best fixed tree (95%)", *tasks, "all tasks"], rivals)]
    return lines


def _each_and_all(cells: Sequence[Cell]) -> list[Sequence[Cell]]:
    return [*([cell] for cell in cells), cells]


def _speedup(summary: Summary) -> str:
    spread = summary.speedup
    return _interval(spread.median, spread) if spread else ""


def against(cell: Cell, foreign: Sequence[Foreign]) -> list[str]:
    """Lines: all methods in tokens per second and as multiples of plain decoding, here and in
    ``transformers``; nothing where ``transformers`` was not measured."""
    rates = {one.method: one.tokens_per_s for one in cell.methods}
    if TRANSFORMERS not in rates:
        return []
    here, there = cell.methods[0].tokens_per_s, rates[TRANSFORMERS]
    if cell.temperature == 0 and cell.batch_size == 1:
        rates |= {f"{one.name} *": one.tokens_per_s for one in foreign if one.task == cell.task}
    rows = [
        [name, f"{rate:.1f}", f"{rate / here:.2f}", f"{rate / there:.2f}"]
        for name, rate in sorted(rates.items(), key=lambda item: -item[1])
    ]
    note = ["", "* measured in a run of its own."] if len(rates) > len(cell.methods) else []
    headings = ["method", "tokens/s", "x plain", f"x {TRANSFORMERS}"]
    return ["", "Against `model.generate`:", "", *table(headings, rows), *note]


def cells(summary: Summary) -> list[str]:
    """The entries of one row, in the order of ``HEADINGS``."""
    spread, shares = summary.speedup, summary.shares
    return [
        summary.method,
        f"{summary.tokens_per_s:.1f}",
        _speedup(summary),
        f"{spread.quartile_low:.2f} - {spread.quartile_high:.2f}" if spread else "",
        _interval(summary.tau.value, summary.tau) if summary.tau else "",
        _number(summary.tau_without_loops)
        + (f" ({summary.num_loops})" if summary.num_loops else ""),
        " ".join(_number(rate) or "-" for rate in summary.alpha),
        f"{shares.draft:.0%} / {shares.verify:.0%} / {shares.other:.0%}" if shares else "",
        f"{shares.outside:.1%}" if shares else "",
        _of_bound(summary),
        _equal(summary),
    ]


def _overview_row(methods: Sequence[Summary]) -> list[str]:
    """One method in every task, and the mean over the tasks where all have a figure."""
    speedups = [one.speedup.median if one.speedup else None for one in methods]
    taus = [one.tau.value if one.tau else None for one in methods]
    pairs = [*zip(speedups, taus, strict=True), (_mean(speedups), _mean(taus))]
    return [methods[0].method, *(" / ".join(_figure(value) for value in pair) for pair in pairs)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _alpha(methods: Sequence[Summary]) -> Iterator[str]:
    deepest = max(len(one.alpha) for one in methods)
    headings = ["method", *(str(depth) for depth in range(1, deepest + 1))]
    rows = []
    for one in methods:
        rates = [_interval(rate.value, rate) if rate else "" for rate in one.alpha]
        rows.append([one.method, *rates, *[""] * (deepest - len(rates))])
    return table(headings, rows)


def _digests(methods: Sequence[Summary]) -> list[str]:
    """One line per distinct set of texts."""
    names: dict[str, list[str]] = {}
    for one in methods:
        names.setdefault(one.output_sha256, []).append(one.method)
    return [f"- `{digest}`: {', '.join(same)}" for digest, same in names.items()]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table of Markdown."""
    for entries in (headings, ["---"] * len(headings), *rows):
        yield "| " + " | ".join(entries) + " |"


def _number(ratio: Ratio | None) -> str:
    return f"{ratio.value:.2f}" if ratio else ""


def _interval(value: float, bounds: Spread | Ratio) -> str:
    return f"{value:.2f} ({bounds.interval_low:.2f} - {bounds.interval_high:.2f})"


def _of_bound(summary: Summary) -> str:
    """What was reached of the bound, and the bound."""
    if summary.bound is None or summary.total_speedup is None:
        return ""
    return f"{summary.total_speedup / summary.bound:.0%} of {summary.bound:.2f}"


def _equal(summary: Summary) -> str:
    equality = summary.equality
    if equality is None:
        return ""
    text = f"{equality.num_equal}/{summary.num_prompts}"
    if equality.num_near_ties:
        text += f", {equality.num_near_ties} near-ties"
    if equality.num_bugs:
        text += f", {equality.num_bugs} BUGS"
    return text
