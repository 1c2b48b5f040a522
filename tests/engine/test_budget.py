"""The controller on machines and texts that are made up: every time and every verdict is a number
of the test."""

from __future__ import annotations

import itertools
import random
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from jakiro.drafters.base import DraftRequest
from jakiro.drafters.prompt_lookup import PromptLookup
from jakiro.drafters.suffix_automaton import SuffixAutomaton
from jakiro.engine.acceptance import Acceptance, Grid, needed
from jakiro.engine.account import SHARE
from jakiro.engine.budget import DECIDE_EVERY, Controller
from jakiro.engine.calibrate import _curve, measure
from jakiro.engine.costs import Costs
from jakiro.engine.limits import Limits
from jakiro.engine.policy import Times
from jakiro.engine.prices import Prices
from jakiro.engine.trials import PLAIN_FIRST, WAITS, Outlook
from jakiro.sampling.params import SamplingParams
from jakiro.target.toy import ToyTarget
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from tests.conformance import world

CHAIN, FAN = TreePlan.chain(8), TreePlan("dynamic", depth=1, width=8, budget=8)


def costs(node_ms: float, level_ms: float, batches: tuple[int, ...] = (1, 16)) -> Costs:
    """10 ms a step, so much per node and row, and per level."""
    return Costs(
        batches=batches,
        nodes=(1, 9),
        verify_ms=tuple((10.0 + node_ms * b, 10.0 + 9 * node_ms * b) for b in batches),
        context=1,
        slope_ms=(0.0, 0.0),
        depths=(1, 8),
        widths=(1, 8),
        draft_ms=tuple(((level_ms,) * 2, (8 * level_ms,) * 2) for _ in batches),
    )


class Machine:
    """Cycles of a controller in a world where times are those of ``costs``, times ``pace``, those
    with a draft times ``dear``. A draft ends after one level unless the text ``goes_on``, by that
    chance, and after a plain cycle takes ``catch_up`` ms more. The first ``plain_rows`` are not to
    be drafted."""

    goes_on, catch_up = 1.0, 0.0

    def __init__(
        self,
        plan: TreePlan,
        table: Costs,
        num_rows: int = 1,
        pace: float = 1.0,
        last: float | None = None,
        dear: float = 1.0,
        plain_rows: int = 0,
    ) -> None:
        self.controller, self.costs, self.pace = Controller(plan, table), table, pace
        self.last, self.dear = last, dear
        self.num_rows, self.plain_rows, self.chance = num_rows, plain_rows, random.Random(0)
        self.num_tokens, self.ms = 0, 0.0
        self.plans: list[TreePlan | None] = []
        self.paths: list[list[int]] = []
        for row in range(num_rows):
            self.controller.begin(row >= plain_rows)

    def run(
        self, num_cycles: int, accepts: Callable[[int], float], rows: list[float] | None = None
    ) -> None:
        """``accepts``: the chance of depth d (a chain) or rank d (a fan), from 0 on; ``rows``: of
        every row the chance at any depth, instead."""
        for _ in range(num_cycles):
            caps = [0] * self.plain_rows + [99] * (self.num_rows - self.plain_rows)
            limits = self.controller.limits([5] * self.num_rows, caps)
            plan = None if limits.is_off else limits.plan
            self.plans.append(plan)
            size = 0 if plan is None else plan.budget
            is_fan = self.controller.plan.kind == "dynamic"
            if self.goes_on < 1 and self.chance.random() >= self.goes_on:
                size = min(size, 1)
            chances = [accepts if rows is None else _always(rows[i]) for i in range(self.num_rows)]
            drafts = zip(caps, chances, strict=True)
            self.paths = paths = [self._path(min(cap, size), is_fan, of) for cap, of in drafts]
            parents = torch.tensor([[-1, *([0] * size if is_fan else range(size))]])
            parents = parents.expand(self.num_rows, -1)
            tree = TokenTree(parents, parents, torch.ones_like(parents, dtype=torch.bool))
            times = self._times(plan, size)
            self.controller.learn(tree, _verdict(paths), times)
            self.num_tokens += sum(map(len, paths))
            self.ms += times.draft_ms + times.rest_ms

    def answer(self, num_tokens: int, accepts: list[float]) -> float:
        """All rows write so many tokens, and leave then. Returns what that takes plainly."""
        plain = num_tokens * self.cost_of(None)
        left = dict.fromkeys(range(self.num_rows), num_tokens)
        while left:
            self.run(1, lambda _: 0.0, [accepts[row] for row in left])
            stay = [i for i, row in enumerate(left) if left[row] > len(self.paths[i])]
            done = dict(zip(left, self.paths, strict=True))
            left = {row: n - len(done[row]) for row, n in left.items() if n > len(done[row])}
            self.controller.keep(stay)
            self.num_rows = len(left)
        self.num_rows = len(accepts)
        for _ in accepts:
            self.controller.begin()
        return plain

    def cost_of(self, plan: TreePlan | None) -> float:
        times = self._times(plan, 0 if plan is None else plan.budget)
        return times.draft_ms + times.rest_ms

    def _path(self, size: int, is_fan: bool, accepts: Callable[[int], float]) -> list[int]:
        if is_fan:
            drawn = self.chance.random()
            ends = np.cumsum([accepts(rank) for rank in range(size)])
            hits = [rank for rank, end in enumerate(ends) if drawn < end]
            return [0, hits[0] + 1] if hits else [0]
        path = [0]
        while len(path) <= size:
            is_last = self.last is not None and len(path) == size > 1
            if self.chance.random() >= (self.last if is_last else accepts(len(path) - 1)):
                break
            path.append(len(path))
        return path

    def _times(self, plan: TreePlan | None, size: int) -> Times:
        verify, _ = self.costs.verify(self.num_rows, np.array([1.0 + size]))
        if plan is None:
            return Times(0.0, self.pace * float(verify[0]))
        depth = float(plan.depth if plan.kind == "dynamic" else size)
        sheet = self.costs.draft(self.num_rows, np.array([depth]), np.array([1.0]))
        pace = self.pace * self.dear
        more = self.catch_up if None in self.plans[-2:-1] else 0.0
        return Times(pace * float(sheet[0, 0]) + more, pace * float(verify[0]))


def _always(chance: float) -> Callable[[int], float]:
    return lambda _: chance


def _verdict(paths: list[list[int]]) -> Verdict:
    return Verdict(paths, [0] * len(paths))


def best_depth(alpha: float, table: Costs, num_rows: int) -> tuple[int, float]:
    """By the formula: the depth with the most tokens per millisecond, and how many."""
    rates = []
    for depth in range(9):
        gain = sum(alpha**level for level in range(depth + 1))
        verify, _ = table.verify(num_rows, np.array([1.0 + depth]))
        draft = table.draft(num_rows, np.array([float(depth)]), np.array([1.0])) if depth else [[0]]
        rates.append(num_rows * gain / (float(verify[0]) + float(draft[0][0])))
    return int(np.argmax(rates)), max(rates)


@pytest.mark.parametrize(
    ("alpha", "num_rows", "pace"),
    [(0.0, 1, 1.0), (0.35, 1, 1.0), (0.6, 1, 3.0), (0.9, 1, 1.0), (0.35, 16, 3.0), (0.9, 16, 1.0)],
)
def test_it_drafts_as_deep_as_pays(alpha: float, num_rows: int, pace: float) -> None:
    """The whole run, start and probes included, comes near the best fixed depth, three runs of
    chance together; ``pace``: today everything is slower than it was when the costs were taken."""
    table = costs(node_ms=0.4, level_ms=1.5)
    machines = [Machine(CHAIN, table, num_rows, pace) for _ in range(3)]
    for seed, machine in enumerate(machines):
        machine.chance = random.Random(seed)
        machine.run(1000 if num_rows == 1 else 400, lambda _: alpha)
    depth, rate = best_depth(alpha, table, num_rows)
    num_tokens, ms = sum(m.num_tokens for m in machines), sum(m.ms for m in machines)
    assert num_tokens / ms * pace > 0.93 * rate
    late = machine.plans[250:]
    if depth == 0:
        assert late.count(None) > 0.9 * len(late)
        assert "no drafting" in machine.controller.explain()
    else:
        assert late.count(None) < 0.2 * len(late)


def test_a_node_is_there_while_its_gain_exceeds_its_cost() -> None:
    """Ranks of 0.4, 0.2, 0.1 .. of two rows at 1 ms a node: at about 3.2 tokens per 12 ms a node
    must bring 0.13 a row, which the third does not."""
    machine = Machine(FAN, costs(node_ms=0.5, level_ms=0.1), num_rows=2)
    machine.run(1200, lambda rank: 0.4 / 2**rank)
    late = [0 if plan is None else plan.budget for plan in machine.plans[400:]]
    assert 2 <= np.median(late) <= 4
    assert "budget" in machine.controller.explain()


def test_levels_that_are_seldom_made_are_seldom_paid_for() -> None:
    """Three drafts in four end at the first level; the others have all eight, at 3 ms each, and
    nearly all are accepted. Eight that are always made would be slower than one."""
    machine = Machine(CHAIN, costs(node_ms=0.2, level_ms=3.0))
    machine.goes_on = 0.25
    machine.run(800, lambda depth: 0.9 if depth == 0 else 0.97)
    late = [0 if plan is None else plan.depth for plan in machine.plans[200:]]
    assert np.median(late) >= 3


def test_a_draft_is_compared_with_others_that_might_have_had_as_many_levels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each ends at its first level, whatever it might have had."""
    asked = []
    made_ms = Prices.made_ms

    def noted(prices: Prices, made: int, most: int, budget: int) -> float:
        asked.append((made, most))
        return made_ms(prices, made, most, budget)

    monkeypatch.setattr(Prices, "made_ms", noted)
    machine = Machine(CHAIN, costs(node_ms=0.2, level_ms=0.1))
    machine.goes_on = 0.0
    machine.run(20, _always(1.0))
    assert asked == [(1, plan.depth) for plan in machine.plans if plan is not None]
    assert max(most for _, most in asked) == CHAIN.depth


def test_catching_up_is_not_what_a_draft_costs() -> None:
    """The first draft after plain cycles feeds what came meanwhile: further ones are expected to
    take no longer. The account pays it."""
    said, left = [], []
    for catch_up in (0.0, 2.0):
        machine = Machine(CHAIN, table := costs(node_ms=0.4, level_ms=1.5))
        machine.catch_up = catch_up
        machine.run(PLAIN_FIRST + 1, lambda _: 0.6)
        said.append(machine.controller.explain())
        left.append(machine.controller._size.account.balance)
    assert said[0] == said[1]
    assert left[0] - left[1] == pytest.approx(2.0 / table.verify_ms[0][0])


def test_the_smallest_draft_that_pays_is_the_one_to_be_afforded() -> None:
    """The first level takes 12 ms and the others nothing: one alone never pays, and two may lose
    more than a third of what there is at first."""
    table = replace(costs(node_ms=0.4, level_ms=0.0), draft_ms=(((12.0,) * 2, (12.1,) * 2),) * 2)
    machine = Machine(CHAIN, table)
    machine.run(60, lambda _: 0.9)
    assert machine.plans[PLAIN_FIRST:].count(None) <= 5


def test_a_batch_does_not_begin_with_the_whole() -> None:
    """Rich from texts in which two levels paid, eight rows go on with few."""
    machine = Machine(CHAIN, costs(node_ms=0.2, level_ms=1.5), num_rows=8)
    machine.run(400, lambda _: 0.6)
    before = [plan.depth for plan in machine.plans[-100:] if plan]
    assert np.median(before) <= 4
    machine.controller.keep([])
    for _ in range(8):
        machine.controller.begin()
    machine.run(4, lambda _: 0.6)
    assert [plan.depth for plan in machine.plans[-4:] if plan].count(CHAIN.depth) <= 1


def test_it_decides_less_often_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts between two decisions: few at first, after the choice has changed and after a row has
    come or gone; alone twice as many each time that the choice stays."""
    machine = Machine(CHAIN, costs(node_ms=0.1, level_ms=0.2))
    controller, few, many = machine.controller, *DECIDE_EVERY
    decided: list[tuple[int, bool]] = []
    decide = controller._decide

    def noted() -> Outlook:
        before, drafts = controller._choice, sum(plan is not None for plan in machine.plans)
        outlook = decide()
        decided.append((drafts, outlook.choice != before))
        return outlook

    monkeypatch.setattr(controller, "_decide", noted)
    for rows, change, alpha in (
        (1, None, 0.95),
        (1, None, 0.4),
        (2, controller.begin, 0.4),
        (1, lambda: controller.keep([1]), 0.4),
    ):
        start = len(decided)
        if change is not None:
            change()
            machine.num_rows = rows
        machine.run(80, _always(alpha))
        gaps = np.diff([drafts for drafts, _ in decided[start:]]).tolist()
        expected = few if change is not None or start == 0 else gaps[0]
        for gap, (_, has_changed) in zip(gaps, decided[start + 1 :], strict=True):
            assert gap == expected, decided
            expected = few if has_changed or rows > 1 else min(2 * gap, many)
        assert max(gaps) == (many if rows == 1 else few)
    assert sum(has_changed for _, has_changed in decided) >= 2


def test_of_drafts_only_what_is_counted_is_kept() -> None:
    """Their trees hold a law for every expanded node, as wide as the vocabulary."""
    machine = Machine(CHAIN, costs(node_ms=0.1, level_ms=0.2))
    machine.run(PLAIN_FIRST + 1, _always(0.9))
    tree = TokenTree.root_only(torch.tensor([3]))
    seen = weakref.ref(tree)
    machine.controller.limits([5], [99])
    machine.controller.learn(tree, _verdict([[0]]), Times(1.0, 10.0))
    del tree
    assert machine.controller._news
    assert seen() is None


def test_nothing_is_tried_that_cannot_pay() -> None:
    """Of a level one node at most is accepted, so at 2 ms a node four of them would be slower than
    the one that is drafted, whatever their chances."""
    machine = Machine(FAN, costs(node_ms=2.0, level_ms=0.1))
    machine.run(800, lambda rank: 0.6 if rank == 0 else 0.0)
    late = [0 if plan is None else plan.budget for plan in machine.plans[100:]]
    assert np.median(late) == 1
    assert max(late) == 2


def test_levels_above_a_poor_last_one_are_judged_by_themselves() -> None:
    """Whatever the depth, its last level is accepted in 0.2 of cases and every other in 0.9, as
    where a branch makes the last one without a forward: drafting deep still pays."""
    table = costs(node_ms=0.4, level_ms=1.5)
    machine = Machine(CHAIN, table, last=0.2)
    machine.run(600, lambda _: 0.9)
    late = [0 if plan is None else plan.depth for plan in machine.plans[200:]]
    assert np.median(late) >= 6


def test_a_request_unlike_the_others_is_soon_known() -> None:
    """All before were hard; of this one nearly every node is accepted, so what is known of deep
    levels and large trees is scaled to it."""
    machine = Machine(CHAIN, costs(node_ms=0.4, level_ms=1.5))
    machine.run(400, lambda _: 0.5)
    before = np.median([plan.depth for plan in machine.plans[200:] if plan])
    machine.controller.keep([])
    machine.controller.begin()
    machine.run(30, lambda _: 0.97)
    after = [plan.depth for plan in machine.plans[-10:] if plan]
    assert before <= 3
    assert np.median(after) >= 6


@pytest.mark.parametrize(("alpha", "dear"), [(0.0, 1.0), (0.7, 3.0)])
@pytest.mark.parametrize("num_rows", [1, 16])
def test_no_guess_can_lose_more_than_the_account_has(
    alpha: float, num_rows: int, dear: float
) -> None:
    """Drafts that are never accepted: the time lost is at most the start of the account and its
    share of plain cycles. Good ones whose cycles take three times what the costs say: the first
    two drafts besides, as less of their time is believed."""
    table = costs(node_ms=0.3, level_ms=2.0)
    machine = Machine(CHAIN, table, num_rows, dear=dear)
    plain = float(table.verify(num_rows, np.array([1.0]))[0][0])
    for num_cycles in (20, 100, 600):
        machine.run(num_cycles, lambda _: alpha)
        lost = machine.ms / plain - machine.num_tokens / num_rows
        drafts = [machine.cost_of(plan) / plain for plan in machine.plans if plan]
        most = (3.0 if num_rows == 1 else 1.5) + SHARE * len(machine.plans)
        assert lost <= most if dear == 1 else lost < most + sum(drafts[:2])
    assert machine.plans.count(None) > 0.95 * len(machine.plans)


def test_an_unlucky_start_is_soon_made_good() -> None:
    """Nothing of the first drafts is accepted, and later 0.7 of every level: they become smaller
    at once, and there are none during one wait at most."""
    machine = Machine(CHAIN, costs(node_ms=0.4, level_ms=1.5))
    machine.run(PLAIN_FIRST + 4, lambda _: 0.0)
    depths = [plan.depth for plan in machine.plans if plan]
    assert len(depths) == 4
    assert depths == sorted(depths, reverse=True)
    assert depths[0] > depths[-1]
    machine.run(40, lambda _: 0.7)
    assert machine.plans[PLAIN_FIRST:].count(None) <= WAITS[0]


def test_a_batch_is_done_when_its_slowest_row_is() -> None:
    """Of 16 rows one accepts nothing, and a cycle of one row takes nearly as long as one of all: on
    average drafts pay, but each makes the batch as a whole slower."""
    machine = Machine(CHAIN, costs(node_ms=0.01, level_ms=2.0), 16)
    plain = 0.0
    for _ in range(6):
        machine.ms = 0.0
        plain = machine.answer(100, [0.0] + [0.5] * 15)
    assert machine.ms < 1.04 * plain
    machine.run(1, lambda _: 0.0)
    assert "no drafting" in machine.controller.explain()


def test_where_others_wait_no_row_is_the_last() -> None:
    """The same, but whoever is done makes room for another: what counts is the average, also after
    batches that told how little reaches the slowest row."""
    machine = Machine(CHAIN, costs(node_ms=0.01, level_ms=2.0), 16)
    for _ in range(6):
        machine.answer(100, [0.0] + [0.5] * 15)
    machine.controller.is_queued = True
    machine.run(300, lambda _: 0.0, [0.0] + [0.5] * 15)
    machine.ms = machine.num_tokens = 0
    machine.run(600, lambda _: 0.0, [0.0] + [0.5] * 15)
    plain = machine.num_tokens / 16 * machine.cost_of(None)
    assert machine.ms < 0.87 * plain, "one level more for a fifth of a cycle brings 0.82"
    assert "no drafting" not in machine.controller.explain()


def test_the_engine_says_whether_requests_wait() -> None:
    """Three requests for two rows: nobody waits any more once the third has one."""
    target = world.target("llama")
    engine = world.make_engine(target, world.make_drafter("prompt_lookup", target), CHAIN)
    engine.limits, said = Limits(2), []
    for count in (4, 12, 12):
        engine.submit([5, 6, 7], SamplingParams(max_new_tokens=count, ignore_eos=True))
    while engine.step():
        said.append((engine.num_rows, engine._batch.policy.is_queued))
    flags = [is_queued for _, is_queued in said]
    assert {(2, True), (2, False)} <= {*said}
    assert flags == sorted(flags, reverse=True), "nobody comes later"


@pytest.mark.parametrize("num_plain", [1, 4])
def test_rows_that_are_not_drafted_end_no_drafts_beside_them(num_plain: int) -> None:
    """The others bring as much per millisecond as in a batch that is drafted whole."""
    found = []
    for plain_rows in (num_plain, 0):
        machine = Machine(CHAIN, costs(node_ms=0.1, level_ms=0.5), 8, plain_rows=plain_rows)
        machine.run(300, lambda _: 0.8)
        found.append((machine.num_tokens - plain_rows * 300) / (8 - plain_rows) / machine.ms)
    assert found[0] > 0.95 * found[1]


def test_requests_say_whether_they_are_drafted() -> None:
    target = world.target("llama")
    engine = world.make_engine(
        target,
        world.make_drafter("prompt_lookup", target),
        CHAIN,
        policy=lambda whole: Controller(whole, costs(node_ms=0.1, level_ms=0.5)),
    )
    for draft in (False, True):
        engine.submit([3, 4, 5], SamplingParams(max_new_tokens=9, draft=draft))
    engine.step()
    assert isinstance(engine.policy, Controller)
    assert engine.policy._drafted == [False, True]


def test_gains_are_those_of_the_rows_that_are_drafted() -> None:
    """The first row is not, of the second a few nodes are accepted and of the third nearly all."""
    gains = []
    for stay in ([0, 1], [0, 2], [0]):
        machine = Machine(CHAIN, costs(node_ms=0.1, level_ms=0.1), 3, plain_rows=1)
        machine.run(60, lambda _: 0.0, [0.0, 0.3, 0.95])
        machine.controller.keep(stay)
        gains.append(machine.controller._acceptance.gains().item(-1))
        machine.num_rows = len(stay)
        machine.run(20, lambda _: 0.0, [0.0, 0.95])
        assert (machine.plans[-1] is None) == (stay == [0])
    assert gains[0] < 1.5 < 4 < gains[1]


def test_it_comes_back_when_acceptance_does() -> None:
    machine = Machine(CHAIN, costs(node_ms=0.4, level_ms=1.5))
    machine.run(600, lambda _: 0.0)
    assert machine.plans[-100:].count(None) > 95
    machine.run(220, lambda _: 0.95)
    assert machine.plans[-30:].count(None) <= 1
    # A new request does not wait for the longest interval.
    machine.run(600, lambda _: 0.0)
    machine.controller.keep([])
    machine.controller.begin()
    machine.run(80, lambda _: 0.95)
    assert machine.plans[-20:].count(None) <= 2


def test_rows_that_leave_take_their_rates_along() -> None:
    machine = Machine(CHAIN, costs(node_ms=0.4, level_ms=1.5), num_rows=2)
    machine.run(200, lambda _: 0.9)
    machine.controller.keep([1])
    machine.num_rows = 1
    machine.run(PLAIN_FIRST + 1, lambda _: 0.9)
    first = machine.plans[-1]
    assert first is not None
    assert first.depth >= 3


def test_the_rates_that_stay_are_those_of_the_rows_that_stay() -> None:
    """The first row fails always, the second never; each is judged alone after the other left."""
    gains = []
    for stays in (0, 1):
        acceptance = Acceptance(Grid.of(CHAIN))
        acceptance.begin()
        acceptance.begin()
        found = [[], list(range(1, CHAIN.depth + 1))]
        for _ in range(10):
            acceptance.count(found, (CHAIN.depth - 1, 0), [CHAIN.depth] * 2, CHAIN.depth)
            both = acceptance.gains()[-1, 0]
        acceptance.keep([stays])
        gains.append(acceptance.gains()[-1, 0])
    assert gains[0] < 2 < 4 < gains[1]
    assert sum(gains) == pytest.approx(both)


def test_no_tree_brings_more_tokens_than_it_has_nodes() -> None:
    """Not even in a text of which every draft is accepted whole, so that it fails far less than
    others do."""
    grid = Grid.of(TreePlan("dynamic", depth=8, width=4, budget=20))
    acceptance = Acceptance(grid)
    acceptance.begin()
    for needs, part in ((range(1, 9), (7, 4)), (range(1, 3), (7, 1))):
        for _ in range(60):
            acceptance.count([[*needs]], part, [8], 8)
        gains = acceptance.gains()
        most = np.minimum(np.arange(1, 9)[:, None], grid.budgets)
        assert (gains <= most).all()
        assert gains[-1, -1] > 6 and gains[-1, 1] > 1.8


def test_levels_without_room_say_nothing_of_the_others() -> None:
    """A tree of two nodes has two levels: that there is no third is no failure of a larger one."""
    gains = []
    for depth in (2, 8):
        acceptance = Acceptance(Grid.of(TreePlan("dynamic", depth=8, width=4, budget=20)))
        acceptance.begin()
        for _ in range(60):
            acceptance.count([[1, 2]], (depth - 1, 1), [depth], 9)
        gains.append(acceptance.gains())
    assert np.allclose(*gains)


def test_levels_without_room_make_no_larger_tree_look_worse() -> None:
    """Trees of five nodes never fail. That their levels are too many for one or two nodes says
    nothing of trees of twenty, which were not drafted."""
    acceptance = Acceptance(Grid.of(TreePlan("dynamic", depth=8, width=4, budget=20)))
    acceptance.begin()
    for _ in range(60):
        acceptance.count([[1, 2, 3, 4, 5]], (7, 2), [8], 9)
    gains = acceptance.gains()
    assert gains[4, -1] == pytest.approx(gains[4, 2], rel=0.02) and gains[4, 2] > 4.5


@pytest.mark.parametrize(
    ("path", "is_accepted", "is_better"),
    [([0, 1, 2], True, True), ([0, 1], False, False)],
)
def test_a_part_has_as_many_levels_as_its_nodes_allow(
    path: list[int], is_accepted: bool, is_better: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of eight levels: where both are accepted, all are that there may be. They promise
    more than two tokens in 12 ms, and less than three."""
    plan = TreePlan("dynamic", depth=8, width=2, budget=8)
    controller, seen = Controller(plan, costs(node_ms=0.1, level_ms=0.1)), []
    controller.begin()
    controller.limits([5], [99])
    controller._running = controller._choice = (7, 1)
    monkeypatch.setattr(controller._trials, "see", lambda *told: seen.append(told))
    parents = torch.tensor([[-1, 0, 1]])
    tree = TokenTree(parents, parents, torch.ones_like(parents, dtype=torch.bool))
    controller.learn(tree, _verdict([path]), Times(1.0, 11.0))
    assert seen == [((7, 1), is_accepted, is_better)]


def test_what_accepted_nodes_need() -> None:
    """Nodes 1-3 below the root, 4 and 5 below 2, 6 below 5, 7 no node. By score 2 is the second of
    all, 5 the third, 3 the fourth, as it was made before 4."""
    valid = [[1] * 7 + [0]] * 3
    scores = torch.tensor([[0.0, -1.0, -2.0, -4.0, -4.0, -3.0, -6.0, -0.5]] * 3)
    paths = [[0, 2, 5, 6], [0, 3], [0]]
    assert needed(scores, valid, paths) == [[2, 3, 6], [4], []]
    # Without scores nodes come in their order.
    assert needed(None, valid, paths) == [[2, 5, 6], [3], []]


def test_few_sizes_are_chosen_among() -> None:
    assert Grid.of(TreePlan("dynamic", depth=6, width=6, budget=20)) == Grid(6, (1, 2, 5, 10, 20))
    assert Grid.of(CHAIN) == Grid(8, (8,))


def test_costs_between_and_beyond_the_measured_places() -> None:
    table = costs(node_ms=0.5, level_ms=2.0)
    verify, slope = table.verify(4, np.array([1.0, 5.0, 17.0]))
    assert verify.tolist() == pytest.approx([12.0, 20.0, 44.0])
    assert slope.tolist() == [0, 0, 0]
    assert table.draft(1, np.array([4.0]), np.array([3.0])).tolist() == [[8.0]]
    assert Costs.from_json(table.to_json()) == table
    with pytest.raises(ValueError, match="no table"):
        Costs.from_json(table.to_json() | {"nodes": [9, 1]})


def test_times_of_levels_that_no_draft_had() -> None:
    """Of drafts of at most 8 levels none had more than 3: the least time of those that had as many
    counts, and further levels cost what those before did."""
    depths = (1, 2, 4, 8)
    found = _curve([(3, 5.5), (1, 2.0), (2, 3.0), (3, 5.0)], depths)
    assert found == pytest.approx([2.0, 3.0, 6.5, 12.5])
    # Where nothing is drafted, every depth costs the same.
    assert _curve([(0, 0.3), (0, 0.2), (0, 0.4), (0, 0.3)], depths) == [0.2] * 4


def test_a_draft_that_ends_early_says_nothing_of_the_levels_it_had_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every third draft ends at the first level. A level takes a millisecond."""
    target = world.target("llama")
    cycles = itertools.count()

    def cycle(bench: Any) -> tuple[float, float]:
        levels = bench.policy.now.depth if next(cycles) % 3 else 1
        bench.policy.num_levels = levels
        return float(levels), 1.0

    monkeypatch.setattr("jakiro.engine.calibrate._Bench.cycle", cycle)
    plan = TreePlan("dynamic", depth=8, width=3, budget=9)
    found = measure(target, world.make_drafter("eagle2/wide", target), plan, seconds=0.0)
    assert found.depths == (1, 2, 3, 4, 6, 8)
    (table,) = found.draft_ms
    assert table == tuple((float(depth),) * 2 for depth in found.depths)


@pytest.mark.parametrize("case", ["jakiro/wide", "eagle2/wide"])
def test_what_ended_early_is_measured_with_the_forwards_it_had(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts of more than three levels end at the third, and a forward takes a millisecond. A last
    level that takes none is one that is not there any more."""
    target = world.target("llama")
    drafter = world.make_drafter(case, target)
    num_free = drafter.free_levels
    assert num_free == (case == "jakiro/wide")
    assert SuffixAutomaton(drafter).free_levels == num_free

    def cycle(bench: Any) -> tuple[float, float]:
        most = bench.policy.now.depth
        bench.policy.num_levels = min(3, most)
        return float(3 if most > 3 else max(1, most - num_free)), 1.0

    monkeypatch.setattr("jakiro.engine.calibrate._Bench.cycle", cycle)
    plan = TreePlan("dynamic", depth=8, width=3, budget=9)
    found = measure(target, drafter, plan, seconds=0.0)
    forwards = [max(1.0, depth - num_free) for depth in (1, 2, 3, 4)]
    assert (found.depths[:4], found.free_levels) == ((1, 2, 3, 4), num_free)
    assert [ms for ms, _ in found.draft_ms[0][:4]] == forwards


def test_what_copies_is_measured_on_a_text_that_does_not_repeat_itself() -> None:
    """Greedily the texts of this target soon do, and the automaton would take all rows."""
    target = ToyTarget.random(vocab_size=64, order=1, context_length=1024)
    inner, caps = PromptLookup(), []
    draft = inner.draft

    def noted(request: DraftRequest) -> TokenTree:
        caps.append(request.depth_caps[0])
        return draft(request)

    inner.draft = noted  # type: ignore[method-assign]
    measure(target, SuffixAutomaton(inner), seconds=0.0)
    assert sum(cap > 0 for cap in caps) > 0.8 * len(caps)


def test_measured_drafts_do_not_end_because_of_their_text() -> None:
    target = world.target("llama")
    drafter = world.make_drafter("jakiro/wide", target)
    asked, draft = set(), drafter.draft

    def noted(request: DraftRequest) -> TokenTree:
        asked.add(request.plan.reach)
        return draft(request)

    drafter.draft = noted  # type: ignore[method-assign]
    measure(target, drafter, replace(world.TREES["dynamic"], reach=1.0), seconds=0.0)
    assert asked == {0.0}


@pytest.mark.parametrize("case", ["jakiro/wide", "lookahead"])
def test_measuring_leaves_the_drafter_free(case: str) -> None:
    """On a target whose context ends within the measurement."""
    target = world.target("llama")
    drafter = world.make_drafter(case, target)
    plan = world.TREES["dynamic"]
    found = measure(target, drafter, plan, max_batch_size=2, seconds=0.0)
    assert (found.batches, found.nodes[0], found.nodes[-1]) == ((1, 2), 1, plan.budget + 1)
    assert np.min(found.draft_ms) > 0
    rows = world.ROWS[3]
    engine = world.make_engine(
        target, drafter, plan, max_batch_size=2, policy=lambda whole: Controller(whole, found)
    )
    done = engine.generate(
        [list(world.prompt(row)) for row in rows], [world.params("top_p", row) for row in rows]
    )
    truths = [list(world.truth("llama", "top_p", row)) for row in rows]
    assert [each.token_ids for each in done] == truths
