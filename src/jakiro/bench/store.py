"""Reports on disk: written as a whole after every cell, so that a run goes on where it stopped."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from jakiro.bench.chart import chart
from jakiro.bench.records import read_record
from jakiro.bench.report import SCHEMA, Report
from jakiro.bench.tables import to_markdown
from jakiro.errors import CheckpointError, ConfigError, DataError, JakiroError
from jakiro.hub.files import Writer, replace_files

REPORT_FILE, TABLE_FILE, CHART_FILE = "report.json", "report.md", "speedup.png"


def save(report: Report, directory: Path) -> list[Path]:
    """Write JSON, tables and chart of a ``report`` with at least one cell; returns their paths.
    Raises ``JakiroError`` if they cannot be written."""
    text = json.dumps(report.to_json(), ensure_ascii=False, indent=2) + "\n"
    writers: dict[Path, Writer] = {
        directory / REPORT_FILE: lambda path: path.write_text(text, "utf-8"),
        directory / TABLE_FILE: lambda path: path.write_text(to_markdown(report), "utf-8"),
        directory / CHART_FILE: lambda path: chart(report, path),
    }
    try:
        replace_files(writers)
    except CheckpointError as error:
        raise JakiroError(f"cannot write the report to {str(directory)!r}: {error}") from error
    return list(writers)


def read_report(path: Path) -> Report:
    """The report in a JSON file.

    Raises:
        DataError: it cannot be read, or is not a report of this schema.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the report {str(path)!r}: {error}") from error
    schema = record.pop("schema", None) if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"{str(path)!r} is not a report of schema {SCHEMA} (its schema is {schema}); "
            "measure again with jakiro bench --out"
        )
    return read_record(Report, record, str(path))


def resume(fresh: Report, directory: Path) -> Report:
    """The unfinished or finished report of the same run in ``directory``, or ``fresh`` where there
    is none.

    Raises:
        ConfigError: the report there is of another run or of another machine.
        DataError: it cannot be read.
    """
    path = directory / REPORT_FILE
    if not path.is_file():
        return fresh
    stored = read_report(path)
    difference = stored.settings.difference(fresh.settings) or stored.environment.difference(
        fresh.environment
    )
    if difference is not None:
        raise ConfigError(
            f"{str(directory)!r} holds another run: {difference}; measure with the same settings "
            "to go on there, or give another directory"
        )
    return stored


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
