"""The controller: drafts as much as pays, measured in tokens per second.

Of every part of its plan it knows what a draft should bring (``acceptance``) and what the cycle
costs (``prices``), and takes the one with the most tokens per millisecond, plain decoding among
them. At that optimum a node or a level is there while what it should bring exceeds its time at that
rate (Dinkelbach's rule for a ratio). An ``account`` limits what drafts may lose, those that are
only tried (``trials``) among them.

Between two cycles of the target little of what is asked here is in the processor's caches, and an
operation on a few numbers of an array takes 10 to 20 us. So a cycle is noted with plain numbers,
and arrays wait for the next decision.
"""

from __future__ import annotations

from itertools import accumulate, compress
from typing import NamedTuple

from torch import Tensor

from jakiro.engine.acceptance import Acceptance, Choice, needed
from jakiro.engine.account import Account
from jakiro.engine.costs import Costs
from jakiro.engine.pace import Pace, Size
from jakiro.engine.policy import DraftLimits, Policy, Times
from jakiro.engine.prices import Prices
from jakiro.engine.trials import WAITS, Outlook, Trials, largest
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

HYSTERESIS = 1.02
"""How much better another choice must look."""
DECIDE_EVERY = (4, 16)
"""Drafts, which are counted then: at first, and at most while the choice stays; they double. A
batch says more with each draft, and its cycles are longer: ever the first."""
BELIEVED = 1.25
"""Of the expected time of a draft's cycle, at most so much is booked: a stall is no fault of the
draft, and two of them would spend the start. What drafts take by themselves is expected soon."""


class _Draft(NamedTuple):
    """What is to be counted of one; no more of its tree is kept, whose laws are large."""

    scores: Tensor | None
    valid: list[list[int]]
    paths: list[list[int]]
    part: Choice
    depths: list[int]
    last: int
    made: int


class Controller(Policy):
    """Chooses the part of ``plan`` to draft, or nothing, for all rows together."""

    def __init__(self, plan: TreePlan, costs: Costs) -> None:
        super().__init__(plan)
        self._prices = Prices(plan, costs)
        self._acceptance = Acceptance(self._prices.grid)
        depths, budgets = self._prices.grid.shape
        self._whole: Choice = (depths - 1, budgets - 1)
        self._trials = Trials(self._whole)
        # Which rows are drafted at all, and of each of those the tokens that drafts brought.
        self._drafted: list[bool] = []
        self._leads: list[int] = []
        self._sizes: dict[int, Size] = {}
        self._size = self._size_here()
        # What is done by default, None: plain decoding; what is expected, None: something else
        # since; and what is done in this cycle.
        self._choice: Choice | None = None
        self._outlook: Outlook | None = None
        self._running: Choice | None = None
        self._caps = [1]
        self._news: list[_Draft] = []
        self._decide_at = DECIDE_EVERY[0]
        self._num_cycles = self._num_off = self._num_idle = 0

    # -- the policy ---------------------------------------------------------------------------

    def begin(self, is_drafted: bool = True) -> None:
        self._count()
        self._drafted.append(is_drafted)
        if is_drafted:
            if self._choice is None:
                self._trials.begin()
            self._acceptance.begin()
            self._leads.append(min(self._leads, default=0))
        self._outlook = None

    def keep(self, rows: list[int]) -> None:
        self._count()
        places = list(accumulate(self._drafted, initial=0))
        drafted = [places[row] for row in rows if self._drafted[row]]
        self._acceptance.keep(drafted)
        self._leads = [self._leads[place] for place in drafted]
        self._drafted = [self._drafted[row] for row in rows]
        self._outlook = None

    def limits(self, lengths: list[int], caps: list[int]) -> DraftLimits:
        self._prices.context, self._caps = sum(lengths) / len(lengths), caps
        if self._outlook is None:
            self._outlook = self._decide()
        self._num_cycles += 1
        self._running = self._trials.next(self._outlook, self._size)
        if self._running is None:
            self._num_off += 1
            return DraftLimits(self._prices.plans[0, 0], [0] * len(caps))
        return DraftLimits(self._prices.plans[self._running], caps)

    def learn(self, tree: TokenTree, verdict: Verdict, times: Times) -> None:
        if self._running is None or max(self._caps) == 0:
            self._size.plain.learn(times.rest_ms, self._prices.rest_ms(1))
            self._size.account.rest()
            self._num_idle += 1
            self._trials.num_drafts = 0
            is_stale = self._num_idle >= WAITS[0]
        else:
            self._learn_draft(self._running, tree, verdict, times)
            self._trials.num_drafts += 1
            is_stale = self._choice is None or len(self._news) >= self._decide_at
        if is_stale:
            self._outlook = None

    def explain(self) -> str:
        self._outlook = outlook = self._decide()
        prices, size = self._prices, self._size
        plain, place = prices.plain_ms(size), outlook.choice or outlook.best
        draft = prices.draft_ms(size).item(place)
        cost = prices.cycle_ms(size).item(place)
        part, gains = prices.plans[place], self._acceptance.gains()
        gain = gains.item(place) / self._num_rows
        worth = 1 + self._share * gain
        reasons = (
            f"verify costs {(cost - draft) / plain:.2f} at {part.num_nodes + 1} rows, "
            f"drafting {draft / plain:.2f}, for {1 + gain:.2f} tokens a cycle: "
            f"{worth * plain / cost:.2f} x plain"
        )
        what = f"budget {part.budget}, depth {part.depth}, width {part.width}"
        off = f"off in {self._num_off} of {self._num_cycles} cycles"
        return f"{'no drafting; best ' if self._choice is None else ''}{what}: {reasons}; {off}"

    # -- choosing -----------------------------------------------------------------------------

    def _decide(self) -> Outlook:
        """Take what promises most; what is done now, unless clearly worse."""
        before, is_due = self._choice, len(self._news) >= self._decide_at
        self._count()
        num_rows, prices = self._num_rows, self._prices
        prices.enter(num_rows)
        self._size = size = self._size_here()
        cost, plain = prices.cycle_ms(size), prices.plain_ms(size)
        rates = (num_rows + self._share * self._acceptance.gains()) / cost
        off, best = num_rows / plain, largest(rates)
        most = rates.item(best)
        now = off if self._choice is None else rates.item(self._choice)
        if max(off, most) > HYSTERESIS * now:
            was_off, self._choice = self._choice is None, None if off >= most else best
            if was_off != (self._choice is None):
                self._trials.turn()
        is_steady = is_due and num_rows == 1 and self._choice == before
        self._decide_at = (
            min(2 * self._decide_at, DECIDE_EVERY[1]) if is_steady else DECIDE_EVERY[0]
        )
        paying = cost[rates > off]
        least = (paying if paying.size else cost).min().item() / plain - 1
        return Outlook(num_rows, prices.levels, rates, cost, plain, best, self._choice, least)

    @property
    def _share(self) -> float:
        """Of the tokens that drafts bring, those that count. Where others wait for the rows, all
        do: who is done early makes room."""
        return 1.0 if self.is_queued else self._size.progress.share

    @property
    def _num_rows(self) -> int:
        """Of the batch there is, or that comes."""
        return max(1, len(self._drafted))

    def _size_here(self) -> Size:
        """Those of batches between two powers of two; at first at the last pace."""
        size = self._num_rows.bit_length()
        if size not in self._sizes:
            pace = Pace(self._size.plain.value if self._sizes else 1.0)
            self._sizes[size] = Size(pace, Account(size == 1))
        return self._sizes[size]

    # -- learning -----------------------------------------------------------------------------

    def _learn_draft(self, place: Choice, tree: TokenTree, verdict: Verdict, times: Times) -> None:
        size, last = self._size, min(place[0] + 1, max(self._caps))
        made = max(1, min(tree.num_levels, last))
        draft = self._prices.made_ms(made, last, place[1])
        rest = self._prices.rest_ms(tree.num_nodes)
        expected = size.of(size.drafting) * draft
        most = BELIEVED * (expected + size.of(size.drafted) * rest)
        # After cycles without a draft it had to catch up first: that is paid, and is no price.
        bound = 2.0 if self._trials.num_drafts else 1.0
        own = min(times.draft_ms, bound * expected)
        worth = self._worth(verdict.paths)
        taken = min(times.draft_ms + times.rest_ms, most)
        saved = worth - taken / self._prices.plain_ms(size)
        size.account.book(saved)
        if self._choice is None and saved > 0:
            self._trials.repeat()
        if self._num_rows == 1 and self._choice is not None:
            assert self._outlook is not None
            is_accepted = len(verdict.paths[0]) > self._prices.levels.item(place)
            is_better = worth / taken > self._outlook.rates.item(self._choice)
            self._trials.see(place, is_accepted, is_better)
        size.drafting.learn(own, draft)
        size.drafted.learn(times.rest_ms, rest)
        depths = [min(last, cap) for cap in self._caps]
        valid, paths = tree.listed.valid, verdict.paths
        self._news.append(_Draft(tree.scores, valid, paths, place, depths, last, made))

    def _worth(self, paths: list[list[int]]) -> float:
        """Plain cycles that would have brought the tokens of ``paths``. A cycle of fewer rows costs
        less, but not in proportion: that a batch is done sooner, its slowest row must be. The
        slowest is one that is drafted: the others never become faster."""
        before = min(self._leads)
        taken = [len(path) for path in compress(paths, self._drafted)]
        self._leads = [lead + count for lead, count in zip(self._leads, taken, strict=True)]
        gain, slowest = sum(taken) / len(taken) - 1, min(self._leads) - before
        if not self.is_queued:
            shared = self._prices.shared
            self._size.progress.learn(gain, shared * (slowest - 1) + (1 - shared) * gain)
        return 1 + self._share * gain * len(taken) / self._num_rows

    def _count(self) -> None:
        """Several drafts at a time, as little else of a cycle needs numbers of the device."""
        for new in self._news:
            found = compress(needed(new.scores, new.valid, new.paths), self._drafted)
            depths = compress(new.depths, self._drafted)
            self._acceptance.count([*found], new.part, [*depths], new.last)
            self._prices.count(new.part, new.last, new.made, len(new.valid[0]))
        self._news = []
        self._acceptance.fade(self._num_idle)
        self._num_idle = 0
