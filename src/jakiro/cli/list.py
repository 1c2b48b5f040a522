"""``jakiro list``: what there is to choose from."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.table import Table

from jakiro.cli import options


def list_names(as_json: options.JsonOption = False) -> None:
    """List drafters, rules and target definitions, what each needs and what it promises."""
    from jakiro.cli.session import OUT

    record = names()
    if as_json:
        typer.echo(json.dumps(record, ensure_ascii=False))
        return
    for kind, entries in record.items():
        table = Table(title=kind, title_justify="left", box=None, pad_edge=False)
        for column in entries[0]:
            table.add_column(column)
        for entry in entries:
            table.add_row(*(str(value) for value in entry.values()))
        OUT.print(table)
        OUT.print()


def names() -> dict[str, list[dict[str, Any]]]:
    """Drafters, rules and definitions as plain data."""
    from jakiro.drafters.registry import ENTRIES
    from jakiro.target.definitions import registry as definitions
    from jakiro.verify import RULES

    made_of = {
        "nothing": "nothing",
        "head": "a checkpoint trained for its target (some are bundled for pico)",
        "model": "the directory of a language model",
        "model_head": "a checkpoint trained for a language model and its target",
        "target": "nothing but the target",
    }
    drafters = [
        {
            "name": entry.name,
            "summary": entry.summary,
            "needs": made_of[entry.made_of],
        }
        for entry in ENTRIES.values()
    ]
    promises = {
        "exact": "the tokens of plain decoding with the same seed",
        "in_law": "greedy: the same tokens; sampled: the same distribution",
        "lossy": "none when sampling; greedy: the same tokens",
    }
    rules = [
        {
            "name": rule.name,
            "promise": rule.promise,
            "meaning": promises[rule.promise],
            "trees": f"{', '.join(rule.trees)}; {rule.nodes}",
        }
        for rule in RULES.values()
    ]
    laws = [
        {
            "name": entry.name,
            "summary": entry.summary,
            "needs": "an amateur" if entry.load().needs_amateur else "nothing",
            "promise": entry.load().promise,
            "cost": entry.cost,
        }
        for entry in definitions.ENTRIES.values()
    ]
    return {"drafters": drafters, "rules": rules, "definitions": laws}
