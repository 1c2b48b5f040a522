"""What cycles with the parts of a plan cost, on a made-up machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jakiro.engine.costs import Costs
from jakiro.engine.pace import Pace, Progress, Size
from jakiro.engine.prices import Prices
from jakiro.tree.shapes import TreePlan

PLAN = TreePlan("dynamic", depth=4, width=4, budget=8)
COSTS = Costs(
    batches=(1, 5),
    nodes=(1, 9),
    verify_ms=((10.0, 18.0), (18.0, 58.0)),
    context=100,
    slope_ms=(0.01, 0.09),
    depths=(1, 4),
    widths=(1, 4),
    draft_ms=(((2.0, 3.0), (8.0, 12.0)),) * 2,
)
BUDGETS = (1, 2, 4, 8)


def test_prices_are_those_of_the_table_at_the_pace() -> None:
    """At the first eight nodes need another level; levels are 2 to 3 ms by width, which a budget
    bounds; a node 1 ms, and 0.01 ms for each token of the text above 100."""
    prices, size = Prices(PLAN, COSTS), Size(Pace(1.5, 1), drafted=Pace(2.0, 1))
    prices.context = 200.0
    draft = np.outer([1, 2, 3, 4], [2.0, 2 + 1 / 3, 3.0, 3.0])
    nodes = np.array([[1, 2, 4, 4], *[[1, 2, 4, 8]] * 3])
    assert prices.plain_ms(size) == pytest.approx(1.5 * 11)
    assert prices.made_ms(3, 4, 2) == pytest.approx(9.0)
    assert np.array(prices.draft_ms(size)) == pytest.approx(1.5 * draft)
    assert prices.cycle_ms(size) == pytest.approx(1.5 * draft + 2 * (11 + 2 * nodes))
    assert prices.rest_ms(10**6) == prices.rest_ms(10**5)


def test_rows_share_what_is_the_same_for_all() -> None:
    """A row more costs 2 ms at one node and 10 ms at nine; 8 of the 18 ms of five are shared."""
    prices = Prices(PLAN, COSTS)
    assert (prices.shared, prices.rest_ms(9)) == (1.0, 18.0)
    prices.enter(5)
    assert (prices.shared, prices.rest_ms(9)) == (pytest.approx(8 / 18), 58.0)
    prices.enter(3)
    assert prices.rest_ms(9) == pytest.approx(38.0)


def test_the_step_from_one_row_to_several_is_shared() -> None:
    """16 rows take 27 ms, 8 of them 23: half a millisecond a row. One takes 10, two take 20."""
    table = replace(
        COSTS,
        batches=(1, 2, 16),
        verify_ms=((10.0, 18.0), (20.0, 28.0), (27.0, 58.0)),
        draft_ms=COSTS.draft_ms[:1] * 3,
    )
    prices = Prices(PLAN, table)
    prices.enter(16)
    assert prices.shared == pytest.approx(1 - 16 * 0.5 / 27)
    prices.enter(2)
    assert prices.shared == pytest.approx(0.0)
    uneven = Prices(PLAN, replace(COSTS, verify_ms=((10.0, 18.0), (9.0, 58.0))))
    uneven.enter(5)
    assert uneven.shared == 1.0, "a table that was disturbed says no more than that rows are free"


@pytest.mark.parametrize(
    ("num_free", "whole", "early"),
    [
        (0, [3.0, 1.0, 5.0, 7.0], 4.0),
        (1, [3.0, 5.0, 7.0, 1.0], 8.0),
        (2, [3.0, 7.0, 1.0, 5.0], 10.0),
    ],
)
def test_a_draft_that_ends_early_had_none_of_its_free_levels(
    num_free: int, whole: list[float], early: float
) -> None:
    """Drafts of one to four levels take 3, 4, 9 and 16 ms. What is free stands at their ends: of a
    draft of two levels that might have had four, both took a forward."""
    each = tuple((ms, ms) for ms in (3.0, 4.0, 9.0, 16.0))
    table = replace(COSTS, depths=(1, 2, 3, 4), draft_ms=(each,) * 2, free_levels=num_free)
    prices, size = Prices(PLAN, table), Size(Pace())
    assert [prices.made_ms(made, 4, 3) for made in (1, 2, 3, 4)] == pytest.approx(
        np.cumsum(whole).tolist()
    )
    assert [prices.made_ms(most, most, 3) for most in (1, 2, 3, 4)] == [3.0, 4.0, 9.0, 16.0]
    assert prices.draft_ms(size)[:, 3] == pytest.approx([3.0, 4.0, 9.0, 16.0])
    for _ in range(300):
        prices.count((3, 3), most=4, made=2, num_nodes=9)
    assert prices.made_ms(2, 4, 3) == early
    assert prices.draft_ms(size).item(3, 3) == pytest.approx(early, abs=0.2)


def test_what_drafts_do_not_have_is_not_paid_for() -> None:
    """Drafts of the whole that have one level of four, and half of their nodes."""
    prices, size = Prices(PLAN, COSTS), Size(Pace())
    before = prices.cycle_ms(size)
    for _ in range(200):
        prices.count((3, 3), most=4, made=1, num_nodes=5)
    assert np.array(prices.draft_ms(size))[:, 3] == pytest.approx([3.0] * 4, abs=0.1)
    rest = prices.cycle_ms(size) - prices.draft_ms(size)
    assert rest[3] == pytest.approx([11.0, 11.0, 12.0, 14.0])
    assert before[3, 3] == pytest.approx(12 + 18)


def test_no_more_than_all_tokens_count() -> None:
    """Near the end of a batch fast rows have room for little, and the slowest one catches up."""
    progress = Progress()
    for _ in range(100):
        progress.learn(average=0.5, whole=1.0)
    assert progress.share == 1.0
    progress.learn(average=40.0, whole=10.0)
    assert 0.5 < progress.share < 0.7


def test_a_draft_that_is_cut_is_measured_by_what_it_might_have_had() -> None:
    """Near the end of an answer the whole has one level, of four nodes, and is full with them."""
    prices, size = Prices(PLAN, COSTS), Size(Pace())
    before = prices.cycle_ms(size)
    for _ in range(200):
        prices.count((3, 3), most=1, made=1, num_nodes=5)
    assert prices.cycle_ms(size) == pytest.approx(before)
