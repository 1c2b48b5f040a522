"""The controller: drafts as much as pays, measured in tokens per second.

Of every part of its plan it knows what a draft should bring (``acceptance``) and what the cycle
costs (``costs``), and takes the one with the most tokens per millisecond, plain decoding among
them. At that optimum a node or a level is there while what it should bring exceeds its time at that
rate (Dinkelbach's rule for a ratio). Measured costs are corrected by what cycles really take.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jakiro.engine.acceptance import Acceptance, Array, Choice, Grid, needed
from jakiro.engine.costs import Costs
from jakiro.engine.policy import DraftLimits, Policy, Times
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict

HYSTERESIS = 1.02
"""How much better another choice must look."""
DECIDE_EVERY = 4
"""Drafts of rows."""
PROBE_WEIGHT = 0.08
"""Of the newest cycle in the averages of time."""
WAITS = {True: (8, 128), False: (8, 48)}
"""Cycles until what is not being done is tried, while drafting is off and while it is on: at first,
and at most. They double while nothing comes of it. A new request, which may be of another kind,
halves them while drafting is off."""


@dataclass(frozen=True, slots=True)
class _Sheet:
    """The costs for one number of rows."""

    verify: Array
    """[nodes], from 0 on, ms at the measured context."""
    slope: Array
    """[nodes]: ms per further committed token."""
    draft: Array
    """[depths, budgets] of the grid, ms."""


@dataclass(slots=True)
class _Pace:
    """Measured over predicted time, averaged."""

    value: float = 1.0
    count: int = 0

    def learn(self, measured: float, predicted: float, bound: float = 2.0) -> None:
        """At most ``bound`` times as much as before is believed: a stall of the machine, or the
        first use of a size, is no cost of the plan."""
        ratio = min(measured / max(predicted, 1e-6), bound * self.value)
        self.count += 1
        self.value += max(PROBE_WEIGHT, 1 / (1 + self.count)) * (ratio - self.value)


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
        for place, part in self._plans.items():
            self._nodes[place] = part.num_nodes
        self._sheets: dict[int, _Sheet] = {}
        self._acceptance = Acceptance(self.grid)
        self._drafting, self._drafted, self._plain = _Pace(), _Pace(), _Pace()
        self._fill = 1.0
        depths, budgets = self.grid.shape
        self._whole: Choice = (depths - 1, budgets - 1)
        # What is done by default, and what in this cycle; None: plain decoding.
        self._choice: Choice | None = self._whole
        self._running: Choice | None = self._whole
        self._is_stale = self._has_new = self._is_probe = False
        self._waits = {is_off: first for is_off, (first, _) in WAITS.items()}
        self._left = self._waits[False]
        self._num_cycles = self._num_off = self._num_idle = self._num_probes = 0
        self._num_new = 0
        self._context, self._caps = 0.0, [1]

    # -- the policy ---------------------------------------------------------------------------

    def begin(self) -> None:
        self._acceptance.begin()
        self._is_stale = self._has_new = True

    def keep(self, rows: list[int]) -> None:
        self._acceptance.keep(rows)
        self._is_stale = True

    def limits(self, lengths: list[int], caps: list[int]) -> DraftLimits:
        self._context, self._caps = sum(lengths) / len(lengths), caps
        if self._has_new and self._choice is None:  # once for all that come together
            self._waits[True] = max(WAITS[True][0], self._waits[True] // 2)
            self._left = min(self._left, self._waits[True])
        self._has_new = False
        if self._is_stale:
            self._decide()
        self._left -= 1
        self._num_cycles += 1
        self._is_probe = self._left <= 0
        self._running = self._probe() if self._is_probe else self._choice
        if self._running is None:
            self._num_off += 1
            return DraftLimits(self._plans[0, 0], [0] * len(caps))
        return DraftLimits(self._plans[self._running], caps)

    def learn(self, tree: TokenTree, verdict: Verdict, times: Times) -> None:
        if self._running is None or max(self._caps) == 0:
            self._plain.learn(times.rest_ms, self._plain_ms(1.0))
            self._num_idle += 1
        else:
            self._learn_draft(self._running, tree, verdict, times)
            self._num_new += len(self._caps)
            self._is_stale = self._is_probe or self._num_new >= DECIDE_EVERY
        if self._is_probe:
            self._schedule(sum(map(len, verdict.paths)))

    def explain(self) -> str:
        plain, cost, gains = self._plain_ms(), self._cost(), self._acceptance.gains()
        batch = self._acceptance.num_rows
        place = self._choice or self._best(self._rates())
        part, draft = self._plans[place], float(self._draft_ms()[place])
        tokens = 1 + gains[place] / batch
        reasons = (
            f"verify costs {(cost[place] - draft) / plain:.2f} at {part.num_nodes + 1} rows, "
            f"drafting {draft / plain:.2f}, for {tokens:.2f} tokens a cycle: "
            f"{tokens * plain / cost[place]:.2f} x plain"
        )
        what = f"budget {part.budget}, depth {part.depth}, width {part.width}"
        off = f"off in {self._num_off} of {self._num_cycles} cycles"
        return f"{'no drafting; best ' if self._choice is None else ''}{what}: {reasons}; {off}"

    # -- choosing -----------------------------------------------------------------------------

    def _decide(self) -> None:
        """Take what promises most; what is done now stays unless it is clearly worse."""
        self._is_stale, self._num_new = False, 0
        rates, off = self._rates(), self._acceptance.num_rows / self._plain_ms()
        best = self._best(rates)
        now = off if self._choice is None else float(rates[self._choice])
        if max(off, float(rates[best])) > HYSTERESIS * now:
            was_off, self._choice = self._choice is None, None if off >= rates[best] else best
            if was_off != (self._choice is None):
                self._left = self._waits[not was_off]

    def _probe(self) -> Choice | None:
        """What is not done at present. While drafting is off, the draft that promises most; else
        one level more, mostly, and now and then the whole plan or plain decoding."""
        if self._choice is None:
            return self._best(self._rates())
        self._num_probes += 1
        depth, budget = self._choice
        more = (min(depth + 1, self._whole[0]), min(budget + 2, self._whole[1]))
        several = (None, more, self._whole, more)
        return several[self._num_probes % len(several)]

    def _schedule(self, num_tokens: int) -> None:
        """The next probe: later than this one; at once where a draft was better than none."""
        is_off = self._choice is None
        pays = (
            self._running is not None
            and num_tokens * self._plain_ms() > len(self._caps) * self._cost()[self._running]
        )
        if is_off and pays:
            self._waits[is_off], self._left = WAITS[is_off][0], 1
        else:
            self._left = self._waits[is_off] = min(2 * self._waits[is_off], WAITS[is_off][1])

    @staticmethod
    def _best(rates: Array) -> Choice:
        depth, budget = np.unravel_index(int(rates.argmax()), rates.shape)
        return int(depth), int(budget)

    # -- what is expected ---------------------------------------------------------------------

    def _rates(self) -> Array:
        """Tokens per millisecond of every part of the plan."""
        rates: Array = (self._acceptance.num_rows + self._acceptance.gains()) / self._cost()
        return rates

    def _cost(self) -> Array:
        """Milliseconds of a cycle of every part."""
        nodes = np.rint(1 + self._fill * self._nodes).astype(int)
        cost: Array = self._draft_ms() + self._drafted.value * self._verify_ms(nodes)
        return cost

    def _draft_ms(self) -> Array:
        draft: Array = self._drafting.value * self._sheet.draft
        return draft

    def _plain_ms(self, pace: float | None = None) -> float:
        """A cycle without a draft; until one has been seen, it is as fast or slow as others."""
        if pace is None:
            pace = self._plain.value if self._plain.count else self._drafted.value
        return pace * float(self._verify_ms(np.array(1)))

    def _verify_ms(self, nodes: np.typing.NDArray[np.int64]) -> Array:
        """As measured beforehand, without correction."""
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
            self._sheets[batch] = _Sheet(verify, slope, draft)
        return self._sheets[batch]

    # -- learning -----------------------------------------------------------------------------

    def _learn_draft(self, place: Choice, tree: TokenTree, verdict: Verdict, times: Times) -> None:
        part = self._plans[place]
        last = min(part.depth, max(self._caps))
        # After cycles without a draft it had to catch up first, and took no less than it needs.
        bound = 1.0 if self._num_idle else 2.0
        draft = float(self._sheet.draft[last - 1, place[1]])
        self._drafting.learn(times.draft_ms, draft, bound)
        self._drafted.learn(times.rest_ms, float(self._verify_ms(np.array(tree.num_nodes))))
        filled = (tree.num_nodes - 1) / self._nodes[last - 1, place[1]]
        self._fill += PROBE_WEIGHT * (filled - self._fill)
        self._acceptance.fade(self._num_idle)
        self._num_idle = 0
        budgets = needed(tree, verdict.paths, self.grid.num_depths)
        depths = [min(last, cap) for cap in self._caps]
        self._acceptance.count(budgets, place, depths, last)
