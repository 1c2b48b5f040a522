"""What is recommended follows from what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jakiro.bench import recommend as room
from jakiro.bench.recommend import FINAL_ROUNDS, FINALISTS, candidates, recommend
from jakiro.bench.statistics import Spread
from jakiro.bench.suites import Row
from jakiro.bench.summary import Equality, Summary
from jakiro.drafters.registry import ENTRIES, arbiters
from jakiro.errors import RowFailed, TargetRefused
from tests.bench.support import DRAFTED


def measured(name: str, median: float, spread: float = 0.05) -> Summary:
    bounds = (median - spread, median + spread)
    return replace(DRAFTED, method=name, speedup=Spread(median, *bounds, *bounds, 4))


def run_with(screening: dict[str, float], finals: dict[str, float]) -> room.Recommendation:
    asked: list[tuple[str, int | None]] = []

    def trial(row: Row, count: int | None, rounds: int) -> Summary:
        asked.append((row.name, count))
        if row.name == "refusing":
            raise TargetRefused("it has no experts")
        return measured(row.name, (screening if count else finals)[row.name])

    rows = [Row(name, name) for name in [*screening, "refusing"]]
    found = recommend(rows, trial)
    assert [name for name, count in asked if count is None] == [s.method for s in found.screened][
        :FINALISTS
    ]
    assert FINAL_ROUNDS > 1
    assert found.refused == {"refusing": "it has no experts"}
    return found


def test_the_best_of_the_best_is_recommended_for_its_final_figure() -> None:
    found = run_with(
        {"a": 1.1, "b": 1.6, "c": 1.4, "d": 1.5, "e": 0.5}, {"b": 1.2, "c": 1.3, "d": 1.7}
    )
    assert found.drafter == "d"
    assert [one.method for one in found.finals] == ["d", "c", "b"]
    assert "speedup 1.70, 95% interval 1.65 to 1.75" in found.reason


def test_what_cannot_be_told_from_plain_decoding_is_not_recommended() -> None:
    found = run_with({"a": 1.04, "b": 0.9}, {"a": 1.04, "b": 0.9})
    assert (found.best, found.drafter) == (None, "none")
    assert found.reason.startswith("Nothing surely pays. The best, a takes 0.96 of the time")


def test_a_finalist_that_fails_on_a_later_prompt_is_left_out() -> None:
    def trial(row: Row, count: int | None, rounds: int) -> Summary:
        if row.name == "a" and count is None:
            raise RowFailed("a failed on a prompt: out of memory")
        return measured(row.name, 1.5)

    found = recommend([Row("a", "a"), Row("b", "b")], trial)
    assert found.drafter == "b"
    assert found.refused == {"a": "a failed on a prompt: out of memory"}


@pytest.mark.parametrize(("num_prompts", "drafter"), [(2, "none"), (3, "a")])
def test_of_two_prompts_nothing_is_sure(num_prompts: int, drafter: str) -> None:
    spread = Spread.of([1.5] * num_prompts)
    found = recommend([Row("a", "a")], lambda *_: replace(DRAFTED, method="a", speedup=spread))
    assert found.drafter == drafter
    assert ("give more" in found.reason) == (drafter == "none")


def test_what_writes_other_texts_is_left_out() -> None:
    def trial(row: Row, count: int | None, rounds: int) -> Summary:
        return replace(measured(row.name, 1.5), equality=Equality(3, 0, row.name == "a"))

    found = recommend([Row("a", "a"), Row("b", "b")], trial)
    assert (found.drafter, [*found.refused]) == ("b", ["a"])
    assert "other texts than plain decoding" in found.refused["a"]


def test_without_texts_of_equal_lengths_nothing_is_recommended() -> None:
    found = recommend([Row("a", "a")], lambda *_: replace(DRAFTED, method="a", speedup=None))
    assert found.drafter == "none"
    assert "no times to compare" in found.reason


def test_without_any_candidate_there_is_plain_decoding() -> None:
    found = run_with({}, {})
    assert found.drafter == "none"
    assert "None of the candidates" in found.reason


def test_candidates_are_all_that_need_no_training_and_the_heads_at_hand() -> None:
    free = {e.name for e in ENTRIES.values() if not e.is_trained} - {"none"}
    others = {row.drafter for row in candidates("elsewhere", ["heads/mine"])} - free
    assert others == {"heads/mine", *(f"{arbiter}+heads/mine" for arbiter in arbiters())}
    assert free | {"jakiro", "eagle2"} <= {row.drafter for row in candidates("pico")}
