"""The tables of the documentation are what the reports beside them say."""

from __future__ import annotations

import json
import re
from pathlib import Path

from jakiro.bench.store import REPORT_FILE, save
from jakiro.verify import RULES
from scripts.docs import (
    BENCHMARKS,
    DOCS,
    METHODS,
    REPORTS,
    RULES_PAGE,
    SERVING,
    fill,
    fill_load,
    fill_rules,
    fill_scripts,
    methods,
    write_cells,
)
from tests.bench.support import whole_report

PAGE = """Before.

<!-- table: mine.json -->
an old table
<!-- end -->

Between.

<!-- table: other.json -->
<!-- end -->

After.
"""


def test_the_committed_page_is_filled() -> None:
    page = BENCHMARKS.read_text("utf-8")
    filled = fill_scripts(fill(page, REPORTS), REPORTS)
    assert filled == page, "a report changed: run make docs and look at the diff"


def test_the_committed_page_of_methods_is_that_of_the_registries() -> None:
    page = METHODS.read_text("utf-8")
    assert methods() == page, "a registry changed: run make docs and look at the diff"
    linked = re.findall(r"\]\((\S+\.md)\)", page)
    assert linked and all((DOCS / path).is_file() for path in linked)


def test_the_committed_page_of_rules_has_their_contracts() -> None:
    page = RULES_PAGE.read_text("utf-8")
    assert fill_rules(page) == page, "a contract changed: run make docs and look at the diff"
    assert page.count("\n- Contract:") == len(RULES)
    assert all(f"\n**`{name}`**" in page for name in RULES)


def test_the_committed_page_of_the_server_has_its_load() -> None:
    page = SERVING.read_text("utf-8")
    assert fill_load(page, REPORTS) == page, "the report changed: run make docs"
    assert ("Not measured yet." in page) != (REPORTS / "load.json").is_file()


def test_filling_replaces_tables_and_keeps_the_prose(tmp_path: Path) -> None:
    save(whole_report(), tmp_path)
    (tmp_path / REPORT_FILE).rename(tmp_path / "mine.json")
    filled = fill(PAGE, tmp_path)
    assert "an old table" not in filled
    assert "| drafted | 1.75 / 3.25 |" in filled
    assert f"({tmp_path.name}/mine.png)" in filled
    assert "Not measured yet." in filled
    for prose in ("Before.\n", "\nBetween.\n", "\nAfter.\n"):
        assert prose in filled
    assert fill(filled, tmp_path) == filled


def test_every_cell_and_the_chart_lie_beside_the_report(tmp_path: Path) -> None:
    save(whole_report(), tmp_path)
    (tmp_path / REPORT_FILE).rename(tmp_path / "mine.json")
    write_cells(PAGE, tmp_path)
    assert "### mine, T = 1" in (tmp_path / "mine.md").read_text("utf-8")
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_reports_of_scripts_become_tables(tmp_path: Path) -> None:
    place = {"cpu": "A CPU", "num_cores": 2, "versions": {"torch": "2"}, "commit": "abc"}
    about = {"environment": place, "command": ["python", "scripts/some.py", "a b"]}
    costs = {"target_ms": 9.96, "ratio": 0.5}
    rows = [
        {"target": "pico", "context": 128, "view": "a", **costs}
        | {"tau_0": 4.0, "tau_1": 3.0, "speedup": 1.25},
        *({"target": "random", "context": 9, "view": view, **costs} for view in "ab"),
    ]
    (tmp_path / "v.json").write_text(json.dumps(about | {"rows": rows}))
    held = [("none", 100.0), ("suffix_automaton+token_recycling", 112.4)]
    peaks = [{"drafter": name, "peak": peak, "growth": 0.0} for name, peak in held]
    (tmp_path / "m.json").write_text(json.dumps(about | {"rows": peaks}))
    cell = {"task": "gsm8k", "temperature": 0.0, "batch": 1, "plain_ms": 30.0}
    times = {"fixed_ms": {"chain:2": 20.0, "chain:1": 24.0}, "controller_ms": [25.0, 20.0, 16.0]}
    slow = {"batch": 16, "plain_ms": 15.0}
    played = [cell | times, cell | times | slow]
    (tmp_path / "r.json").write_text(json.dumps(about | {"rows": played}))
    kinds = (("views", "v"), ("memory", "m"), ("views", "none"), ("replay", "r"))
    page = "".join(
        f"<!-- {kind}: {name}.json -->\nold\n<!-- end -->\n\nText.\n" for kind, name in kinds
    )
    filled = fill_scripts(page, tmp_path)
    assert "old" not in filled and filled.count("\nText.\n") == 4
    assert "| gsm8k, T = 0 | `chain:2` | 1.50 | 1.50 | 1.000 (0.800 - 1.250) |" in filled
    assert "| gsm8k, T = 0 | plain | 1.00 | 0.75 | 0.750 (0.600 - 0.938) |" in filled
    assert "| 128 | 10.0 | 0.50; 1.25; 4.00, 3.00 |" in filled
    assert "`python scripts/some.py 'a b'`, 2 cores of A CPU, torch 2, commit abc.\n" in filled
    assert "| context | target forward, ms | a | b |" in filled
    assert "| 9 | 10.0 | 0.50 | 0.50 |" in filled
    assert re.search(r"\| suffix_automaton\+token_recycling \| exact \| [^|]* \| \+12 \|", filled)
    assert "Not measured yet." in filled
    assert fill_scripts(filled, tmp_path) == filled
