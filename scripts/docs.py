"""Writes what the documentation takes from the program: ``docs/commands.md``, the help of every
command as it is printed, and the tables in ``docs/benchmarks.md``.

A table stands between ``<!-- table: FILE.json -->`` and ``<!-- end -->``; ``FILE.json`` is the
report of ``jakiro bench --out``, copied to ``docs/benchmarks``; everything around it is written by
hand and stays. All cells of the report go to ``FILE.md`` and its chart to ``FILE.png``, beside it.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "commands.md"
BENCHMARKS, REPORTS = DOCS / "benchmarks.md", DOCS / "benchmarks"
WIDTH = 90

INTRODUCTION = """# Commands

Made by `make docs` from the program's own help.
"""
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


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
    text = BENCHMARKS.read_text("utf-8")
    write_cells(text, REPORTS)
    BENCHMARKS.write_text(fill(text, REPORTS), "utf-8")
