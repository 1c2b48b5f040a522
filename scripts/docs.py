"""Writes what the documentation takes from the program: ``docs/commands.md``, the help of every
command as it is printed, ``docs/methods.md``, what the registries say of every method, and the
tables in ``docs/rules.md``, ``docs/targets.md`` and ``docs/benchmarks.md``.

A table stands between ``<!-- table: FILE.json -->`` and ``<!-- end -->``; ``FILE.json`` is the
report of ``jakiro bench --out``, copied to ``docs/benchmarks``; everything around it is written by
hand and stays. All cells of the report go to ``FILE.md`` and its chart to ``FILE.png``, beside it.
That of ``docs/serving.md`` stands after ``<!-- load: FILE.json -->``, a report of ``scripts.load``.
With ``views``, ``memory`` or ``replay`` in place of ``table`` it is the report of that script.
"""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jakiro.tree.shapes import TreePlan

Row = dict[str, Any]
DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "commands.md"
METHODS, RULES_PAGE = DOCS / "methods.md", DOCS / "rules.md"
BENCHMARKS, REPORTS = DOCS / "benchmarks.md", DOCS / "benchmarks"
SERVING, TARGETS = DOCS / "serving.md", DOCS / "targets.md"
WIDTH = 90

INTRODUCTION = """# Commands

Made by `make docs` from the program's own help.
"""
METHODS_INTRODUCTION = """# Methods

Made by `make docs` from the registries of drafters, rules and target definitions.

Under the rule `match` every drafter is *exact*: the tokens of plain decoding with the same seed,
greedy and sampled, whatever it drafts. What another rule promises is in the second table and in
[rules](rules.md); a drafter whose drafts can be sampled works with all of them, others with `match`
and `typical_lossy`. A drafter fills whatever tree it is asked for, chain, static, beam or dynamic;
the one named is what it takes by itself. `jakiro recommend` measures which of them pay on a
machine.
"""
DEFINITIONS_INTRODUCTION = """## Target definitions

`jakiro.load(..., definition="NAME:SETTING=VALUE,..")` and `jakiro generate --definition` change
what the target *is*: the law of its next token is made from more than one view of the text.
Speculation is lossless with respect to the redefined target: every drafter and rule above keeps its
promise, and plain decoding (`none`) with the definition is the text that it is compared with. A
definition that is itself `lossy` means to serve a target by something cheaper: drafts change
nothing of what it says, but it does not say what the target would.
"""
VIEWED = {
    "pico": "The bundled target: cost of a drafted token; speedup, T = 0; τ, T = 0 and T = 1",
    "random": "Random weights: cost of a drafted token, nothing else",
}
NEEDS = {
    "nothing": "nothing",
    "head": "training: a head for its target",
    "model": "a language model of the same tokenizer",
    "model_head": "such a model, and training: a head for it and its target",
    "target": "nothing: a view of the target",
}
MATRIX = re.compile(r"(<!-- rules -->\n).*?(<!-- end -->)", flags=re.DOTALL)
CLASSES = re.compile(r"(<!-- targets -->\n).*?(<!-- end -->)", flags=re.DOTALL)
LOAD = re.compile(r"(<!-- load: (\S+)\.json -->\n).*?(<!-- end -->)", flags=re.DOTALL)
SCRIPTS = re.compile(
    r"(<!-- (views|memory|replay): (\S+)\.json -->\n).*?(<!-- end -->)", flags=re.DOTALL
)
TABLE = re.compile(r"(<!-- table: (\S+)\.json -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def render() -> str:
    """The page of commands as it should be."""
    from typer.testing import CliRunner

    from jakiro.cli.main import COMMANDS, app

    runner = CliRunner()
    parts = [INTRODUCTION]
    for name in ("", *COMMANDS):
        arguments = [*name.split(), "--help"]
        done = runner.invoke(app, arguments, prog_name="jakiro", env={"COLUMNS": str(WIDTH)})
        assert done.exit_code == 0, done.output
        title = f"jakiro {name}".strip()
        parts.append(f"## {title}\n\n```\n{done.output.strip()}\n```\n")
    return "\n".join(parts)


def methods() -> str:
    """The page of methods as it should be."""
    lines = [METHODS_INTRODUCTION, "## Drafters", "", *_drafters(), "", "## Rules", "", *matrix()]
    return "\n".join([*lines, "", DEFINITIONS_INTRODUCTION, *_definitions()]) + "\n"


def _drafters() -> Iterator[str]:
    """The registry of drafters, as a table."""
    from jakiro.bench.tables import table
    from jakiro.drafters.registry import ENTRIES

    rows = []
    for entry in ENTRIES.values():
        kind = entry.load()
        rows.append(
            (
                f"[`{entry.name}`]({entry.page or f'drafters/{entry.name}.md'})",
                entry.summary,
                NEEDS[entry.made_of],
                _shape(kind.plan),
                "yes" if kind.can_sample else "no",
                entry.memory,
                _file(kind),
            )
        )
    own = ("drafter", "idea", "needs", "its own tree", "sampled drafts")
    return table([*own, "keeps, besides the target", "file, lines"], rows)


def _file(kind: Callable[..., Any]) -> str:
    """The file a method is in, and how long it is."""
    file = Path(inspect.getfile(kind))
    return f"`{file.name}`, {len(file.read_text(encoding='utf-8').splitlines())}"


def _definitions() -> Iterator[str]:
    """The registry of target definitions, as a table."""
    from jakiro.bench.tables import table
    from jakiro.target.definitions.registry import ENTRIES

    rows = []
    for entry in ENTRIES.values():
        kind = entry.load()
        rows.append(
            (
                f"[`{entry.name}`](definitions/{entry.name}.md)",
                entry.summary,
                ", ".join(f"`{field.name}={field.default}`" for field in fields(kind)),
                "a second model" if kind.needs_amateur else "nothing",
                entry.cost,
                f"`{kind.promise}`",
                _file(kind),
            )
        )
    own = ("definition", "the law", "settings", "needs", "adds to a forward of the target")
    return table([*own, "promise", "file, lines"], rows)


def matrix() -> Iterator[str]:
    """Which drafts every rule takes, as a table."""
    from jakiro.bench.tables import table
    from jakiro.tree.shapes import KINDS
    from jakiro.verify import RULES

    rows = []
    for rule in RULES.values():
        taken = ("yes" if kind in rule.trees else "no" for kind in KINDS)
        own = (f"`{rule.name}`", f"`{rule.promise}`")
        rows.append((*own, *taken, rule.nodes, _file(rule.function)))
    return table(["rule", "promise", *KINDS, "nodes", "file, lines"], rows)


def fill_rules(page: str) -> str:
    """``page`` with the table of rules as their contracts say."""
    lines = "\n".join(matrix())
    return MATRIX.sub(lambda found: f"{found[1]}\n{lines}\n\n{found[2]}", page)


def fill_targets(page: str, reports: Path) -> str:
    """``page`` with what ``tests.architectures`` found of every class."""
    from jakiro.bench.tables import table

    report = json.loads((reports / "targets.json").read_text("utf-8"))
    of = _grouped(report["rows"], lambda row: row["outcome"])
    exact, refused, unmade = (of.pop(name, []) for name in ("exact", "refused", "not made"))
    assert not of, f"what is wrong must be mended first: {list(of)}"
    cells = (
        (
            f"`{row['model_type']}`",
            row["name"],
            row["route"],
            "yes" if row["reads"] else "no",
            str(len(row["views"])),
        )
        for row in exact
    )
    lines = [
        f"{_origin(report)}, transformers {report['environment']['versions']['transformers']}.",
        *("", f"## Exact: {len(exact)} classes", ""),
        *table(("model type", "class", "way in", "heads", "views"), cells),
        *("", f"## Refused: {len(refused)} classes", ""),
        *(f"- {why}: {_types(rows)}" for why, rows in _grouped(refused, _refusal).items()),
        *("", f"Not tried, as no small one could be made: {_types(unmade)}."),
        *("", f"[JSON]({reports.name}/targets.json), with every reason in full."),
    ]
    return CLASSES.sub(lambda found: "\n".join([found[1], *lines, "", found[2]]), page)


def _grouped(rows: list[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _refusal(row: Row) -> str:
    """The reason of a refusal, without name and details."""
    _, _, why = row["reason"].partition(") ")
    return re.split(r"[(,;]| that ", why)[0].strip()


def _types(rows: list[Row]) -> str:
    return ", ".join(f"`{row['model_type']}`" for row in rows)


def _shape(plan: TreePlan) -> str:
    """The text form of a plan, a static one by its size."""
    return f"static, {plan.budget} nodes" if plan.kind == "static" else f"`{plan}`"


def fill(page: str, reports: Path) -> str:
    """``page`` with every table as the report of its name in ``reports`` says."""

    def table(found: re.Match[str]) -> str:
        before, name, after = found.groups()
        return f"{before}\n{_table(reports, name)}\n{after}"

    return TABLE.sub(table, page)


def _table(reports: Path, name: str) -> str:
    from jakiro.bench.store import read_report
    from jakiro.bench.tables import brief

    path = reports / f"{name}.json"
    if not path.is_file():
        return "Not measured yet.\n"
    here = f"{reports.name}/{name}"
    lines = [
        *brief(read_report(path)),
        "",
        f"[Every cell]({here}.md), [JSON]({here}.json).",
        "",
        f"![speedup]({here}.png)",
    ]
    return "\n".join(lines) + "\n"


def fill_scripts(page: str, reports: Path) -> str:
    """``page`` with the tables of scripts as the reports of their names in ``reports`` say."""
    of = {"views": _views, "memory": _memory, "replay": _replay}

    def tables(found: re.Match[str]) -> str:
        before, kind, name, after = found.groups()
        path = reports / f"{name}.json"
        if not path.is_file():
            return f"{before}\nNot measured yet.\n\n{after}"
        report = json.loads(path.read_text("utf-8"))
        lines = [f"{_origin(report)}."]
        lines += of[kind](report["rows"])
        lines += ["", f"[JSON]({reports.name}/{name}.json)."]
        return "\n".join([before, *lines, "", after])

    return SCRIPTS.sub(tables, page)


def _views(rows: list[dict[str, Any]]) -> list[str]:
    """Per target a table of contexts by views."""
    from jakiro.bench.tables import table

    lines = []
    for target in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == target]
        names = list(dict.fromkeys(row["view"] for row in own))
        cells = []
        for context in dict.fromkeys(row["context"] for row in own):
            here = {row["view"]: row for row in own if row["context"] == context}
            whole = median(row["target_ms"] for row in here.values())
            cells.append((str(context), f"{whole:.1f}", *(_view(here[name]) for name in names)))
        lines += ["", f"### {VIEWED[target]}", ""]
        lines += table(["context", "target forward, ms", *names], cells)
    return lines


def _memory(rows: list[dict[str, Any]]) -> list[str]:
    """What a process holds more than one that decodes plainly, and what the registry says of it."""
    from jakiro.bench.tables import table
    from jakiro.drafters.registry import find
    from jakiro.verify import find as find_rule

    (plain,) = (row["peak"] for row in rows if row["drafter"] == "none")
    cells = []
    for row in rows:
        kept = ", and ".join(find(name).memory for name in row["drafter"].split("+"))
        more = f"{row['peak'] - plain:+.0f}"
        cells.append((row["drafter"], find_rule("match").promise, kept, more))
    headings = ("drafter", "promise", "keeps, besides the target", "more than plain, MiB")
    return ["", *table(headings, cells)]


def _replay(rows: list[dict[str, Any]]) -> list[str]:
    """Per number of rows what the best fixed tree and the controller bring, plain decoding being
    among what is fixed."""
    from jakiro.bench.tables import table

    lines = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        cells = []
        for row in (row for row in rows if row["batch"] == batch):
            plain, fixed = row["plain_ms"], {"plain": row["plain_ms"], **row["fixed_ms"]}
            best = min(fixed, key=fixed.__getitem__)
            least, *_, most = sorted(fixed[best] / ms for ms in row["controller_ms"])
            middle = median(row["controller_ms"])
            share = f"{fixed[best] / middle:.3f} ({least:.3f} - {most:.3f})"
            name = best if best == "plain" else f"`{best}`"
            task = f"{row['task']}, T = {row['temperature']:g}"
            speeds = (f"{plain / ms:.2f}" for ms in (fixed[best], middle))
            cells.append((task, name, *speeds, share))
        title = "one row" if batch == 1 else f"{batch} rows"
        lines += ["", f"#### A made-up clock, {title}", ""]
        headings = ("", "best fixed tree", "its speedup", "the controller's", "share of the best")
        lines += table(headings, cells)
    return lines


def _view(row: dict[str, Any]) -> str:
    """Cost, and where tokens were drawn speedup and both acceptance lengths."""
    if "speedup" not in row:
        return f"{row['ratio']:.2f}"
    return f"{row['ratio']:.2f}; {row['speedup']:.2f}; {row['tau_0']:.2f}, {row['tau_1']:.2f}"


def write_cells(page: str, reports: Path) -> None:
    """The full tables and the chart of every report that ``page`` shows."""
    from jakiro.bench.chart import chart
    from jakiro.bench.store import read_report
    from jakiro.bench.tables import to_markdown

    for _, name, _ in TABLE.findall(page):
        path = reports / f"{name}.json"
        if path.is_file():
            report = read_report(path)
            path.with_suffix(".md").write_text(to_markdown(report), "utf-8")
            chart(report, path.with_suffix(".png"))


def fill_load(page: str, reports: Path) -> str:
    """``page`` with every table as the report of its name in ``reports`` says."""

    def table(found: re.Match[str]) -> str:
        before, name, after = found.groups()
        path = reports / f"{name}.json"
        lines = ["Not measured yet."]
        if path.is_file():
            report = json.loads(path.read_text("utf-8"))
            here = f"[JSON]({reports.name}/{name}.json)"
            shared = "clients and server share the cores"
            lines = [*_load_lines(report), "", f"{_origin(report)}; {shared}. {here}."]
        return "\n".join([before, *lines, "", after])

    return LOAD.sub(table, page)


def _origin(report: dict[str, Any]) -> str:
    """How the report of a script came to be."""
    place = report["environment"]
    return (
        f"`{shlex.join(report['command'])}`, {place['num_cores']} cores of {place['cpu']}, torch "
        f"{place['versions']['torch']}, commit {place['commit']}"
    )


def _load_lines(report: dict[str, Any]) -> list[str]:
    from jakiro.bench.tables import table

    cells: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("answers read whole, left, refused, lost", _ends),
        ("tokens/s of the answers read whole", lambda own: f"{own['tokens_per_s']:.0f}"),
        ("τ, mean over answers", lambda own: f"{own['tau']:.2f}"),
        ("first text, ms (p50, p90, p99)", lambda own: _quantiles(own["first_ms"], 0)),
        ("per token after it, ms", lambda own: _quantiles(own["per_token_ms"], 1)),
        ("whole answer, ms", lambda own: _quantiles(own["whole_ms"], 0)),
        ("memory by quarter of the load, MiB", _memory_by_quarter),
        ("descriptors, before and after", lambda own: _held(own, "descriptors")),
        ("threads, before and after", lambda own: _held(own, "threads")),
        ("afterwards running, waiting, share of the cache", _left),
        ("SIGTERM: streams finished, told of it, lost; exit code", _ending),
    ]
    rows = ((name, cell(report["drafted"]), cell(report["plain"])) for name, cell in cells)
    return [
        *table(["", "drafting", "without"], rows),
        "",
        f"Throughput {report['speedup']:.2f} times that without drafting; of "
        f"{report['texts_compared']} answers that both gave, {report['texts_different']} differ.",
    ]


def _ends(own: dict[str, Any]) -> str:
    return f"{own['finished']}, {own['left']}, {own['refused']}, {len(own['problems'])}"


def _quantiles(values: dict[str, float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values.values())


def _memory_by_quarter(own: dict[str, Any]) -> str:
    return ", ".join(f"{value:.0f}" for value in own["memory_mib_by_quarter"])


def _held(own: dict[str, Any], name: str) -> str:
    return f"{own['held']['before'][name]}, {own['held']['after'][name]}"


def _left(own: dict[str, Any]) -> str:
    return ", ".join(f"{value:g}" for value in own["left_in_flight"].values())


def _ending(own: dict[str, Any]) -> str:
    ending = own["sigterm"]
    counts = (ending[name] for name in ("finished", "told_of_the_end", "lost"))
    return f"{', '.join(map(str, counts))}; {ending['exit_code']}"


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
    METHODS.write_text(methods(), "utf-8")
    RULES_PAGE.write_text(fill_rules(RULES_PAGE.read_text("utf-8")), "utf-8")
    TARGETS.write_text(fill_targets(TARGETS.read_text("utf-8"), REPORTS), "utf-8")
    text = BENCHMARKS.read_text("utf-8")
    write_cells(text, REPORTS)
    BENCHMARKS.write_text(fill_scripts(fill(text, REPORTS), REPORTS), "utf-8")
    SERVING.write_text(fill_load(SERVING.read_text("utf-8"), REPORTS), "utf-8")
