"""Rows become engines on one target; what is not at hand is named, what is wrong is raised."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jakiro.api import load
from jakiro.bench.methods import Workshop, usable_rows
from jakiro.bench.suites import Row
from jakiro.engine.engine import Engine
from jakiro.errors import ConfigError, UnknownName
from jakiro.hub.bundled import bundled_drafter


@pytest.fixture(scope="module")
def plain() -> Engine:
    return load(drafter="none")


def test_rows_share_the_target_and_keep_their_tree(plain: Engine) -> None:
    row = Row("short", "prompt_lookup", tree="chain:2")
    found, method = Workshop(plain, max_batch_size=3).open(row)
    assert found == row, "a drafter without a checkpoint has no weights"
    assert method.name == "short"
    assert method.engine.target.model is plain.target.model
    assert method.engine.plan.depth == 2


def test_given_heads_go_before_bundled_ones(plain: Engine, tmp_path: Path) -> None:
    """The head called eagle2 here is the bundled Jakiro head."""
    shutil.copytree(bundled_drafter("jakiro"), tmp_path / "eagle2")
    rows = [Row("eagle2", "eagle2"), Row("jakiro", "jakiro")]
    bundled, _ = Workshop(plain).open_found(rows)
    given, _ = Workshop(plain, tmp_path).open_found(rows)
    assert [method.engine.drafter.name for _, method in bundled] == ["eagle2", "jakiro"]
    assert [method.engine.drafter.name for _, method in given] == ["jakiro", "jakiro"]
    assert given[0][0].weights == given[1][0].weights == bundled[1][0].weights
    assert bundled[0][0].weights not in (None, bundled[1][0].weights)


def test_given_heads_go_below_an_arbiter(plain: Engine, tmp_path: Path) -> None:
    heads = tmp_path / "first+second"
    shutil.copytree(bundled_drafter("jakiro"), heads / "eagle2")
    rows = [Row("arbiter", "suffix_automaton+eagle2"), Row("eagle2", "eagle2")]
    given, missing = Workshop(plain, heads).open_found(rows)
    assert missing == {}
    bundled, _ = Workshop(plain).open(Row("jakiro", "jakiro"))
    assert [row.weights for row, _ in given] == [bundled.weights] * 2


def test_what_is_not_at_hand_is_named(plain: Engine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    rows = [Row("a", "empty"), Row("b", "absent"), Row("c", "suffix_automaton+absent")]
    opened, missing = Workshop(plain, tmp_path).open_found(rows)
    assert opened == []
    assert set(missing) == {"a", "b", "c"}
    assert "no checkpoint" in missing["a"]
    assert "no checkpoint 'absent'; see --heads" in missing["b"]


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (Row("a", "prompt_lookup", tree="bush:3"), ConfigError),
        (Row("a", "prompt_lookup", rule="wishful"), UnknownName),
        (Row("a", "prompt_lookup", options={"max_ngram": 0}), ConfigError),
    ],
)
def test_what_is_wrong_is_raised(row: Row, error: type[Exception], plain: Engine) -> None:
    with pytest.raises(error):
        Workshop(plain).open_found([row])


def test_the_usable_rows_are_those_of_the_target() -> None:
    names = {row.name for row in usable_rows("pico")}
    assert {"jakiro", "eagle2", "prompt_lookup"} <= names
    assert "none" not in names
    assert {row.name for row in usable_rows("elsewhere")} < names


def test_an_untrained_head_has_the_sizes_of_the_trained_one(plain: Engine) -> None:
    row, method = Workshop(plain).open(Row("fresh", "untrained:jakiro", tree="chain:2"))
    _, trained = Workshop(plain).open(Row("jakiro", "jakiro"))
    fresh, known = method.engine.drafter, trained.engine.drafter
    assert row.weights is None
    assert (fresh.name, fresh.num_parameters) == (known.name, known.num_parameters)
    prompts = [[5, 6, 7]]
    answers = [each.engine.generate(prompts)[0].token_ids for each in (method, trained)]
    assert answers[0] == answers[1]
    _, missing = Workshop(plain).open_found([Row("a", "untrained:absent")])
    assert "no checkpoint" in missing["a"]
