from __future__ import annotations

from dataclasses import replace

from jakiro.bench.suites import Row
from jakiro.bench.summary import Equality
from jakiro.bench.tables import HEADINGS, cells, controlled, overview, to_markdown
from tests.bench.support import DRAFTED, UNDRAFTED, cell, report, whole_report


def test_a_row_has_an_entry_per_heading() -> None:
    assert dict(zip(HEADINGS, cells(DRAFTED), strict=True)) == {
        "method": "drafted",
        "tokens/s": "123.5",
        "speedup (95%)": "1.75 (1.60 - 1.90)",
        "quartiles": "1.50 - 2.00",
        "τ (95%)": "3.25 (3.00 - 3.50)",
        "τ no loops": "3.00 (1)",
        "α by depth": "0.80 0.50 -",
        "draft / verify / other": "25% / 60% / 15%",
        "outside": "12.5%",
        "of bound": "90% of 2.00",
        "equal": "2/3, 1 near-ties",
    }


def test_bugs_are_loud() -> None:
    assert cells(replace(DRAFTED, equality=Equality(1, 0, 2)))[-1] == "1/3, 2 BUGS"


def test_what_was_not_measured_is_empty() -> None:
    bare = replace(UNDRAFTED, speedup=None, tau=None, tau_without_loops=None, equality=None)
    assert cells(bare)[2:] == [""] * 9


def test_the_overview_has_a_table_per_temperature_and_a_column_per_task() -> None:
    lines = overview(whole_report())
    assert [line for line in lines if line.startswith("#")] == ["### T = 0", "### T = 1"]
    assert lines.count("| speedup / τ | gsm8k | mine | mean |") == 2
    assert lines.count("| drafted | 1.75 / 3.25 | 1.75 / 3.25 | 1.75 / 3.25 |") == 2
    assert "- other: no head of that name" in lines


def test_a_mean_over_tasks_needs_all_of_them() -> None:
    slow = cell("mine", 0.0)
    slow.methods[1] = replace(DRAFTED, speedup=None)
    lines = overview(report([cell("gsm8k", 0.0), slow]))
    assert "| drafted | 1.75 / 3.25 | - / 3.25 | - / 3.25 |" in lines


def test_the_page_names_command_cells_digests_and_skipped_prompts() -> None:
    text = to_markdown(whole_report())
    assert text.startswith("`jakiro bench --suite paper`\n")
    assert "### gsm8k, T = 0" in text
    assert "### mine, T = 1" in text
    assert text.count("2 prompts are too long") == 2
    assert f"- `{'b' * 64}`: drafted" in text
    assert "| drafted | 0.80 (0.70 - 0.90) | 0.50 (0.25 - 0.75) |  |" in text


def test_every_row_of_a_table_has_the_same_columns() -> None:
    for table in to_markdown(whole_report()).split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1


def test_what_chooses_its_tree_is_compared_with_the_best_fixed_one() -> None:
    """Over both tasks the small tree is the faster one, though not on each of them."""
    times = {"auto": [[10.0, 20.0], [30.0]], "small": [[9.0, 18.0], [36.0]]}
    times |= {"large": [[20.0, 20.0], [30.0]], "other": [[1.0, 1.0], [1.0]]}
    rows = [
        Row("auto", "jakiro", "auto"),
        Row("small", "jakiro", "chain:2"),
        Row("large", "jakiro"),
    ]
    rows += [Row("other", "eagle2"), Row("lossy", "jakiro", "chain:2", rule="typical_lossy")]
    cells = []
    for place, task in enumerate(("gsm8k", "mine")):
        own = [replace(DRAFTED, method=name, wall_ms=each[place]) for name, each in times.items()]
        cells.append(replace(cell(task, 0.0), methods=[UNDRAFTED, *own]))
    lines = controlled(cells, rows)
    assert "| auto | 1.75 (1.60 - 1.90) | 1.75 (1.60 - 1.90) |" in lines
    (ratios,) = [line for line in lines if " of small" in line]
    found = [entry.strip() for entry in ratios.strip("|").split("|")]
    assert found[0] == "auto"
    assert found[1] == "0.90 (0.90 - 0.90) of small"
    assert found[2] == "1.00 (1.00 - 1.00) of large"
    assert found[3].startswith("1.05 (0.90 - 1.20) of small")
    # Nothing is said where nothing chooses, or where times were not kept.
    assert controlled(cells, rows[1:]) == []
    assert len(controlled(whole_report().cells[:1], [Row("drafted", "jakiro", "auto")])) == 4
