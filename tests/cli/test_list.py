from __future__ import annotations

import json

from jakiro.drafters import registry
from jakiro.target.definitions.registry import ENTRIES as DEFINITIONS
from jakiro.verify import RULES
from tests.cli.conftest import Run


def test_every_drafter_rule_and_definition_is_listed(run: Run) -> None:
    record = json.loads(run("list", "--json").stdout)
    assert [entry["name"] for entry in record["drafters"]] == registry.names()
    assert [entry["name"] for entry in record["rules"]] == list(RULES)
    assert [entry["name"] for entry in record["definitions"]] == list(DEFINITIONS)


def test_needs_follow_the_registry(run: Run) -> None:
    needs = {
        entry["name"]: entry["needs"]
        for entry in json.loads(run("list", "--json").stdout)["drafters"]
    }
    assert needs["none"] == "nothing"
    assert "checkpoint" in needs["jakiro"]
    assert "language model" in needs["draft_model"]


def test_the_table_says_the_same(run: Run) -> None:
    output = run("list").stdout
    assert all(name in output for name in (*registry.names(), *RULES, *DEFINITIONS))
