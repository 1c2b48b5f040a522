from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jakiro.bench.environment import environment
from jakiro.bench.report import HEADINGS, Report, cells
from jakiro.bench.statistics import Spread
from jakiro.bench.summary import Equality, Shares, Summary
from jakiro.errors import JakiroError

SUMMARY = Summary(
    method="drafted",
    num_prompts=3,
    num_tokens=384,
    tokens_per_s=123.456,
    speedup=Spread(1.75, 1.5, 2.0, 1.6, 1.9, 3),
    total_speedup=1.8,
    tau=3.25,
    tau_without_loops=3.0,
    num_loops=1,
    alpha=[0.8, 0.5],
    shares=Shares(0.25, 0.6, 0.15, 0.125),
    equality=Equality(2, 1, 0),
)
PLAIN = replace(
    SUMMARY, method="plain", tau=None, tau_without_loops=None, alpha=[], shares=None, equality=None
)


@pytest.fixture
def report() -> Report:
    return Report(
        command="jakiro bench --task gsm8k",
        environment=environment(),
        settings={"max_new_tokens": 128},
        tasks={"gsm8k": [PLAIN, SUMMARY], "mine": [PLAIN, replace(SUMMARY, speedup=None)]},
        num_skipped={"mine": 2},
    )


def test_a_row_has_an_entry_per_heading() -> None:
    assert dict(zip(HEADINGS, cells(SUMMARY), strict=True)) == {
        "method": "drafted",
        "tokens/s": "123.5",
        "speedup (95%)": "1.75 (1.60 - 1.90)",
        "quartiles": "1.50 - 2.00",
        "τ": "3.25",
        "τ no loops": "3.00 (1)",
        "α by depth": "0.80 0.50",
        "draft / verify / other": "25% / 60% / 15%",
        "outside": "12.5%",
        "equal": "2/3, 1 near-ties",
    }


def test_bugs_are_loud() -> None:
    assert cells(replace(SUMMARY, equality=Equality(1, 0, 2)))[-1] == "1/3, 2 BUGS"


def test_what_was_not_measured_is_empty() -> None:
    assert cells(replace(PLAIN, speedup=None, num_loops=0))[2:] == [""] * 8


def test_json_schema(report: Report) -> None:
    record = json.loads(json.dumps(report.to_json()))
    assert set(record) == {"schema", "command", "environment", "settings", "tasks", "num_skipped"}
    assert record["schema"] == 1
    assert set(record["environment"]) == {
        "cpu", "num_cores", "num_threads", "accelerator", "system", "python", "versions", "commit",
        "date",
    }  # fmt: skip
    assert {"jakiro", "torch", "transformers"} <= set(record["environment"]["versions"])
    row = record["tasks"]["gsm8k"][1]
    assert row["speedup"] == {
        "median": 1.75, "quartile_low": 1.5, "quartile_high": 2.0, "interval_low": 1.6,
        "interval_high": 1.9, "count": 3,
    }  # fmt: skip
    assert row["shares"] == {"draft": 0.25, "verify": 0.6, "other": 0.15, "outside": 0.125}
    assert row["equality"] == {"num_equal": 2, "num_near_ties": 1, "num_bugs": 0}


def test_markdown_names_command_and_skipped_prompts(report: Report) -> None:
    text = report.to_markdown()
    assert text.startswith("`jakiro bench --task gsm8k`\n")
    assert "### gsm8k" in text
    assert "2 prompts are too long" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1, "every row has the same columns"


def test_saving_writes_three_files(report: Report, tmp_path: Path) -> None:
    written = report.save(tmp_path / "new" / "place")
    assert [path.name for path in written] == ["report.json", "report.md", "speedup.png"]
    assert json.loads(written[0].read_text("utf-8")) == json.loads(json.dumps(report.to_json()))
    assert written[1].read_text("utf-8") == report.to_markdown()
    assert written[2].read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in written[0].parent.iterdir()) == sorted(
        path.name for path in written
    ), "no draft files are left behind"


def test_an_unwritable_place_is_named(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JakiroError, match="cannot write the report to"):
        report.save(tmp_path / "file")
