"""From names and directories to drafters: their options, and what a checkpoint's digest covers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jakiro.api import load
from jakiro.drafters.prompt_lookup import PromptLookup
from jakiro.engine.engine import Engine
from jakiro.errors import CheckpointError, ConfigError
from jakiro.hub import checkpoint
from jakiro.hub.bundled import bundled_drafter
from jakiro.hub.drafters import Source

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def plain() -> Engine:
    return load(drafter="none")


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A copy of the bundled head."""
    return Path(shutil.copytree(bundled_drafter("jakiro"), tmp_path / "head"))


def edit(directory: Path, change: Change) -> None:
    path = directory / checkpoint.CONFIG_FILE
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["jakiro", "suffix_automaton+jakiro"])
def test_options_go_before_what_the_checkpoint_recommends(plain: Engine, name: str) -> None:
    source = Source.find(name, is_bundled=True)
    heads = []
    for options in ({}, {"window": 7, "contrast_levels": 0}):
        made = source.load(plain.target, None, options)
        heads.append(vars(made.inner or made))
    assert [head["_window"] for head in heads] == [128, 7]
    assert [head["free_levels"] for head in heads] == [1, 0]
    assert heads[1]["_sinks"] == heads[0]["_sinks"]


def test_options_reach_every_kind_that_is_made_here(plain: Engine) -> None:
    model = plain.target.model
    assert vars(load(model, "lookahead", drafter_options={"window": 3}).drafter)["_window"] == 3
    for drafter, options, named in [
        ("jakiro", {"widow": 7}, r"FeatureDrafter.*widow.*contrast_levels, window, sinks"),
        ("jakiro", {"window": 0}, "window must be at least 1"),
        ("sparse_kv", {"sinks": -1}, "sinks must be at least 0"),
        (model, {"window": 0}, "DraftModel.*window"),
        ("jakiro", {"window": 2.5}, r"window of a FeatureDrafter .* int \| None, got 2.5"),
        ("aded", {"simulations": True}, "simulations .* int, got True"),
        ("swift", {"confidence": "0.5"}, "confidence .* float, got '0.5'"),
        ("suffix_automaton", {"growth": math.inf}, "growth .* float, got inf"),
        ("layer_skip", {"speedup": math.nan}, "speedup .* float, got nan"),
        ("copy", {"source_of": 3}, "source_of .* got 3"),
        ("token_recycling", {"matrix": {}}, r"matrix .* Adjacency \| None"),
        ("duo_attention", {"scores": "heads.tsv"}, r"scores .* Path \| Tensor \| None"),
        (PromptLookup(), {"window": 0}, "to the drafter itself"),
    ]:
        with pytest.raises(ConfigError, match=named):
            load(model, drafter, drafter_options=options)


@pytest.mark.parametrize(
    ("notes", "named"),
    [
        ({"options": {"widow": 1}}, r"config\.json recommends.*widow"),
        ({"tree": "bush:2"}, r"config\.json recommends.*bush"),
    ],
)
def test_what_a_checkpoint_recommends_may_be_wrong(
    plain: Engine, head: Path, notes: dict[str, Any], named: str
) -> None:
    edit(head, lambda config: config.update(notes=notes))
    with pytest.raises(CheckpointError, match=named):
        load(plain.target.model, head)


def test_the_digest_covers_what_the_drafter_depends_on_and_nothing_else(head: Path) -> None:
    known = checkpoint.digest(head)
    assert known == checkpoint.digest(bundled_drafter("jakiro"))

    edit(head, lambda config: config["notes"].update(step=1))
    (head / "history.jsonl").write_text("")
    assert checkpoint.digest(head) == known

    changes: list[Change] = [
        lambda config: config["notes"].update(tree="dynamic:2,2,4"),
        lambda config: config["notes"]["options"].update(window=64),
        lambda config: config["head"].update(contrast_strength=0.5),
    ]
    seen = {known}
    for change in changes:
        edit(head, change)
        seen.add(checkpoint.digest(head))
    weights = head / checkpoint.WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    seen.add(checkpoint.digest(head))
    assert len(seen) == 2 + len(changes)
