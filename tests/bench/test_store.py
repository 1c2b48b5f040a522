"""Reports on disk: nothing is lost, nothing is mixed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jakiro.bench.report import Report
from jakiro.bench.settings import Place
from jakiro.bench.store import read_report, resume, save
from jakiro.bench.tables import to_markdown
from jakiro.errors import ConfigError, DataError, JakiroError
from tests.bench.support import cell, report, whole_report


def test_a_report_reads_as_it_was_written(tmp_path: Path) -> None:
    whole = whole_report()
    written = save(whole, tmp_path / "new" / "place")
    assert [path.name for path in written] == ["report.json", "report.md", "speedup.png"]
    assert read_report(written[0]) == whole
    assert written[1].read_text("utf-8") == to_markdown(whole)
    assert written[2].read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in written[0].parent.iterdir()} == {path.name for path in written}, (
        "no draft files are left behind"
    )


def test_the_json_has_a_schema(tmp_path: Path) -> None:
    record = json.loads(save(whole_report(), tmp_path)[0].read_text("utf-8"))
    assert set(record) == {
        "schema", "command", "environment", "settings", "not_measured", "cells", "foreign",
    }  # fmt: skip
    assert record["schema"] == 2
    assert set(record["cells"][0]) == {
        "task", "temperature", "batch_size", "prompts_sha256", "num_skipped", "commit", "date",
        "texts", "methods",
    }  # fmt: skip
    drafted = record["cells"][0]["methods"][1]
    assert drafted["tau"] == {"value": 3.25, "interval_low": 3.0, "interval_high": 3.5}
    assert drafted["alpha"][2] is None
    assert drafted["output_sha256"] == "b" * 64


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JakiroError, match="cannot write the report to"):
        save(whole_report(), tmp_path / "file")


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    half = report([cell("gsm8k", 0.0), cell("mine", 0.0)])
    save(half, tmp_path)
    found = resume(report([]), tmp_path)
    assert found == half
    assert list(found.pending()) == [Place("gsm8k", 1.0, 1), Place("mine", 1.0, 1)]
    assert resume(report([]), tmp_path / "elsewhere").cells == []


def test_commits_and_dates_may_change_between_cells(tmp_path: Path) -> None:
    whole = whole_report()
    save(whole, tmp_path)
    later = replace(whole.environment, commit="later", date="2027-01-01T00:00:00+00:00")
    assert resume(replace(whole, environment=later, cells=[]), tmp_path) == whole


def other_settings(whole: Report) -> Report:
    return replace(whole, settings=replace(whole.settings, max_new_tokens=5))


def other_weights(whole: Report) -> Report:
    rows = tuple(replace(row, weights="other") for row in whole.settings.rows)
    return replace(whole, settings=replace(whole.settings, rows=rows))


def other_machine(whole: Report) -> Report:
    return replace(whole, environment=replace(whole.environment, num_threads=99))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_settings, "max_new_tokens is 5 and was 4"),
        (other_weights, "rows is"),
        (other_machine, "num_threads is 99"),
    ],
)
def test_another_run_is_not_continued(change: object, named: str, tmp_path: Path) -> None:
    whole = whole_report()
    save(whole, tmp_path)
    assert callable(change)
    with pytest.raises(ConfigError, match=named):
        resume(change(whole), tmp_path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "cannot read the report"),
        ("[]", "its schema is None"),
        ('{"schema": 1, "tasks": {}}', "its schema is 1"),
        ('{"schema": 2, "tasks": {}}', "unknown entries tasks"),
        ('{"schema": 2}', "lacks the entries command, environment"),
    ],
)
def test_a_damaged_report_is_refused(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError, match=named):
        resume(report([]), tmp_path)
