from __future__ import annotations

import json

import pytest

from jakiro.bench import recommend as room
from jakiro.bench.suites import Row
from tests.cli.conftest import Run


def test_the_command_measures_and_prints_how_to_use_the_best(
    run: Run, target: str, prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row(name, name) for name in ("prompt_lookup", "fewer_experts", "layer_skip")]
    monkeypatch.setattr(room, "candidates", lambda *_: rows)
    asked = ("recommend", "-t", target, "-p", prompts, "-n", "4", "--limit", "1")
    record = json.loads(run(*asked, "--json").stdout)
    assert {one["method"] for one in record["finals"]} == {"prompt_lookup", "layer_skip"}
    assert "no routers" in record["refused"]["fewer_experts"]
    assert record["command"] == f"jakiro generate -t {target} -d {record['drafter']} PROMPT"
    output = run(*asked).stdout
    assert "Recommended: " in output and "Not possible: fewer_experts" in output
