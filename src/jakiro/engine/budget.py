"""The controller: drafts as much as pays, measured in tokens per second.

Of every part of its plan it knows what a draft should bring (``acceptance``) and what the cycle
costs (``costs``; of drafting the levels that are made, ``survival``), and takes the one with the
most tokens per millisecond, plain decoding among them. At that optimum a node or a level is there
while what it should bring exceeds its time at that rate (Dinkelbach's rule for a ratio). Measured
costs are corrected by what cycles really take. An ``account`` limits what drafts may lose, those
that are only tried among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jakiro.engine.acceptance import Acceptance, Array, Choice, Grid, needed
from jakiro.engine.costs import Costs
from jakiro.engine.pace import PACE_WEIGHT, Pace, Size
from jakiro.engine.policy import DraftLimits, Policy, Times
from jakiro.engine.survival import Survival
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

HYSTERESIS = 1.02
"""How much better another choice must look."""
WHOLE = 1.25
"""How much better than the whole a part must look to be drafted alone: a drafter's own tree was
chosen for one row and may end by itself, and is right more often than what a hundred cycles seem to
say."""
FRESH = 4
"""Drafts of the whole that a text begins with alone, whatever looked best in others: a draft says
how good its own parts would have been, and nothing of what it is a part of."""
DECIDE_EVERY = 4
"""Drafts, which are counted then."""
WAITS = (8, 96)
"""Cycles until what is not being done is tried, at first and at most; they double."""
PLAIN_FIRST, PLAIN_EVERY = 2, 96
"""Plain cycles before the first draft of a size of batch, and cycles until the next one: all else
is compared with them."""

BELIEVED = 1.25
"""Of the expected time of a draft's cycle, at most so much is booked: a stall is no fault of the
draft, and two of them would spend the start. What drafts take by themselves is expected soon."""


@dataclass(frozen=True, slots=True)
class _Sheet:
    """The costs for one number of rows."""

    verify: Array
    """[nodes], from 0 on, ms at the measured context."""
    slope: Array
    """[nodes]: ms per further committed token."""
    levels: Array
    """[depths, budgets] of the grid, ms: of each level of a draft."""
    shared: float
    """The part of a plain cycle that is the same however many rows there are."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """One that is not counted yet."""

    tree: TokenTree
    paths: list[list[int]]
    part: Choice
    depths: list[int]
    last: int


class Controller(Policy):
    """Chooses the part of ``plan`` to draft, or nothing, for all rows together."""

    def __init__(self, plan: TreePlan, costs: Costs) -> None:
        super().__init__(plan)
        self._costs, self.grid = costs, Grid.of(plan)
        # No level of a tree of b nodes has more than b.
        self._plans = {
            (d, b): plan.limited(d + 1, budget, budget)
            for d in range(self.grid.num_depths)
            for b, budget in enumerate(self.grid.budgets)
        }
        self._nodes = np.zeros(self.grid.shape)
        self._levels = np.zeros(self.grid.shape)
        for place, part in self._plans.items():
            self._nodes[place] = part.num_nodes
            self._levels[place] = min(part.depth, part.budget)
        depths, budgets = self.grid.shape
        self._whole: Choice = (depths - 1, budgets - 1)
        self._sheets: dict[int, _Sheet] = {}
        self._sizes: dict[int, Size] = {}
        self._fill, self._context, self._caps = 1.0, 0.0, [1]
        self._acceptance, self._survival = Acceptance(self.grid), Survival(self.grid)
        self._size = self._size_here()
        # What is done by default, None: plain decoding; the best draft; and what is done in this
        # cycle.
        self._choice: Choice | None = None
        self._best: Choice = self._whole
        self._running: Choice | None = None
        # Of every part tokens per ms, as expected and if all levels were accepted, beside those of
        # plain decoding, and the plain cycles that are lost if nothing is accepted.
        self._rates, self._most, self._losses = (np.zeros(self.grid.shape) for _ in range(3))
        self._off = 0.0
        # Per row the tokens that drafts brought.
        self._leads: list[int] = []
        self._news: list[_Draft] = []
        self._is_stale = True
        self._wait = self._left = WAITS[0]
        # Drafts of the whole that are left to be made of a new text.
        self._fresh = 0
        self._num_cycles = self._num_off = self._num_idle = self._num_probes = 0
        self._since_plain = 0

    # -- the policy ---------------------------------------------------------------------------

    def begin(self) -> None:
        self._count()
        if not self._leads:
            self._fresh = FRESH
        self._acceptance.begin()
        self._leads.append(min(self._leads, default=0))
        if self._choice is None:  # it may be of another kind than those before
            self._left = min(self._left, WAITS[0])
        self._is_stale = True

    def keep(self, rows: list[int]) -> None:
        self._count()
        self._acceptance.keep(rows)
        self._leads = [self._leads[row] for row in rows]
        self._is_stale = True

    def limits(self, lengths: list[int], caps: list[int]) -> DraftLimits:
        self._context, self._caps = sum(lengths) / len(lengths), caps
        if self._is_stale:
            self._decide()
        self._num_cycles += 1
        self._running = self._next()
        if self._running is None:
            self._num_off += 1
            return DraftLimits(self._plans[0, 0], [0] * len(caps))
        return DraftLimits(self._plans[self._running], caps)

    def learn(self, tree: TokenTree, verdict: Verdict, times: Times) -> None:
        if self._running is None or max(self._caps) == 0:
            self._size.plain.learn(times.rest_ms, float(self._measured_ms(1)))
            self._size.account.rest()
            self._num_idle += 1
            self._since_plain = 0
            self._is_stale = self._num_idle >= WAITS[0]
        else:
            self._learn_draft(self._running, tree, verdict, times)
            self._since_plain += 1
            self._is_stale = self._choice is None or len(self._news) >= DECIDE_EVERY

    def explain(self) -> str:
        self._decide()
        plain, cost, place = self._plain_ms, self._cost(), self._choice or self._best
        part, draft = self._plans[place], float(self._draft_ms()[place])
        gain = float(self._acceptance.gains()[place]) / self._acceptance.num_rows
        worth = 1 + self._size.progress.share * gain
        reasons = (
            f"verify costs {(cost[place] - draft) / plain:.2f} at {part.num_nodes + 1} rows, "
            f"drafting {draft / plain:.2f}, for {1 + gain:.2f} tokens a cycle: "
            f"{worth * plain / cost[place]:.2f} x plain"
        )
        what = f"budget {part.budget}, depth {part.depth}, width {part.width}"
        off = f"off in {self._num_off} of {self._num_cycles} cycles"
        return f"{'no drafting; best ' if self._choice is None else ''}{what}: {reasons}; {off}"

    # -- choosing -----------------------------------------------------------------------------

    def _decide(self) -> None:
        """Take what promises most; the whole, and what is done now, unless clearly worse."""
        self._count()
        self._is_stale = False
        self._size = self._size_here()
        num_rows, cost, plain = self._acceptance.num_rows, self._cost(), self._plain_ms
        tokens = num_rows + self._size.progress.share * self._acceptance.gains()
        self._rates, self._off = rates, off = tokens / cost, num_rows / plain
        self._most = num_rows * (1 + self._levels) / cost
        self._losses = cost / plain - 1
        self._best = self._argmax(rates)
        if num_rows == 1 and WHOLE * rates[self._whole] > rates[self._best]:
            self._best = self._whole
            self._choice = self._choice and self._whole
        best = float(rates[self._best])
        now = off if self._choice is None else float(rates[self._choice])
        if max(off, best) > HYSTERESIS * now:
            was_off, self._choice = self._choice is None, None if off >= best else self._best
            if was_off != (self._choice is None):
                self._wait = self._left = WAITS[0]

    def _next(self) -> Choice | None:
        """A plain cycle where one is due; else the choice, or something else now and then. Where
        the account allows no draft of that size, the best one that it allows."""
        self._left -= 1
        if self._size.plain.count < PLAIN_FIRST or self._since_plain >= PLAIN_EVERY:
            return None
        pays = self._rates > self._off
        least = float(self._losses[pays].min() if pays.any() else self._losses.min())
        wanted, most = self._choice, self._size.account.stake(least)
        is_fresh = self._fresh and self._acceptance.num_rows == 1
        if is_fresh and wanted is not None and self._losses[self._whole] <= most:
            self._fresh -= 1
            return self._whole
        if self._left <= 0:
            other = self._best if wanted is None else self._other(wanted)
            if other is not None and self._losses[other] <= most:
                self._left = self._wait = min(2 * self._wait, WAITS[1])
                self._num_probes += 1
                return other
        if wanted is None or self._losses[wanted] <= most:
            return wanted
        rates = np.where(self._losses <= most, self._rates, 0.0)
        smaller = self._argmax(rates)
        return smaller if rates[smaller] > self._off else None

    @staticmethod
    def _argmax(rates: Array) -> Choice:
        depth, budget = np.unravel_index(int(rates.argmax()), rates.shape)
        return int(depth), int(budget)

    def _other(self, choice: Choice) -> Choice | None:
        """What is not done at present: mostly one level and twice the nodes, else the whole; only
        what would be better if all its levels were accepted."""
        depth, budget = choice
        more = min(depth + 1, self._whole[0]), min(budget + 1, self._whole[1])
        tried = (more,) if self._num_probes % 3 else (self._whole, more)
        return next((part for part in tried if self._most[part] > self._rates[choice]), None)

    # -- what is expected ---------------------------------------------------------------------

    def _cost(self) -> Array:
        """Milliseconds of a cycle of every part."""
        nodes = np.rint(1 + self._fill * self._nodes).astype(int)
        drafted = self._size.of(self._size.drafted)
        cost: Array = self._draft_ms() + drafted * self._measured_ms(nodes)
        return cost

    def _draft_ms(self) -> Array:
        made = (self._survival.shares() * self._sheet.levels).cumsum(0)
        draft: Array = self._size.of(self._size.drafting) * made
        return draft

    @property
    def _plain_ms(self) -> float:
        """A cycle without a draft."""
        return self._size.plain.value * float(self._measured_ms(1))

    def _measured_ms(self, nodes: np.typing.NDArray[np.int64] | int) -> Array:
        """All of a cycle but drafting, as measured beforehand, without correction."""
        sheet = self._sheet
        nodes = np.minimum(nodes, len(sheet.verify) - 1)
        more = max(0.0, self._context - self._costs.context)
        measured: Array = sheet.verify[nodes] + more * sheet.slope[nodes]
        return measured

    @property
    def _sheet(self) -> _Sheet:
        batch = self._acceptance.num_rows
        if batch not in self._sheets:
            # Some drafters feed nodes beside their draft; four times the plan holds them all.
            nodes = np.arange(4 * (self.plan.num_nodes + 16), dtype=np.float64)
            depths = np.arange(1, self.grid.num_depths + 1, dtype=np.float64)
            widths = np.array([self._plans[0, b].width for b in range(self.grid.shape[1])])
            verify, slope = self._costs.verify(batch, nodes)
            draft = self._costs.draft(batch, depths, widths.astype(np.float64))
            alone, together = float(self._costs.verify(1, nodes)[0][1]), float(verify[1])
            row = (together - alone) / (batch - 1) if batch > 1 else 0.0
            levels = np.diff(draft, axis=0, prepend=0.0)
            self._sheets[batch] = _Sheet(verify, slope, levels, 1 - batch * row / together)
        return self._sheets[batch]

    def _size_here(self) -> Size:
        """Those of batches between two powers of two; at first at the last pace."""
        size = self._acceptance.num_rows.bit_length()
        if size not in self._sizes:
            self._sizes[size] = Size(Pace(self._size.plain.value if self._sizes else 1.0))
        return self._sizes[size]

    # -- learning -----------------------------------------------------------------------------

    def _learn_draft(self, place: Choice, tree: TokenTree, verdict: Verdict, times: Times) -> None:
        size, last = self._size, min(place[0] + 1, max(self._caps))
        made = max(1, min(tree.num_levels, last))
        draft = float(self._sheet.levels[:made, place[1]].sum())
        rest = float(self._measured_ms(tree.num_nodes))
        expected = size.of(size.drafting) * draft
        most = BELIEVED * (expected + size.of(size.drafted) * rest)
        # After cycles without a draft it had to catch up first, which is not for this draft only.
        bound = 2.0 if self._since_plain else 1.0
        own = min(times.draft_ms, bound * expected)
        worth = self._worth(verdict.paths)
        saved = worth - min(own + times.rest_ms, most) / self._plain_ms
        size.account.book(saved)
        if self._choice is None and saved > 0:
            self._wait, self._left = WAITS[0], 1
        size.drafting.learn(own, draft)
        size.drafted.learn(times.rest_ms, rest)
        filled = (tree.num_nodes - 1) / self._nodes[last - 1, place[1]]
        self._fill += PACE_WEIGHT * (filled - self._fill)
        self._survival.count(place, last, made)
        depths = [min(last, cap) for cap in self._caps]
        self._news.append(_Draft(tree, verdict.paths, place, depths, last))

    def _worth(self, paths: list[list[int]]) -> float:
        """Plain cycles that would have brought the tokens of ``paths``. A cycle of fewer rows costs
        less, but not in proportion: that a batch is done sooner, its slowest row must be."""
        before, progress = min(self._leads), self._size.progress
        self._leads = [lead + len(path) for lead, path in zip(self._leads, paths, strict=True)]
        mean, slowest = sum(map(len, paths)) / len(paths), min(self._leads) - before
        shared = self._sheet.shared
        progress.learn(mean - 1, shared * (slowest - 1) + (1 - shared) * (mean - 1))
        return 1 + progress.share * (mean - 1)

    def _count(self) -> None:
        """Several drafts at a time, as little else of a cycle needs numbers of the device."""
        for new in self._news:
            found = needed(new.tree, new.paths)
            self._acceptance.count(found, new.part, new.depths, new.last)
        self._news = []
        self._acceptance.fade(self._num_idle)
        self._num_idle = 0
