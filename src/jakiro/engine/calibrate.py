"""Takes the costs of cycles: on the target, with the drafter, in whole cycles of an engine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from jakiro.drafters.base import Drafter, DraftRequest
from jakiro.engine.costs import Costs
from jakiro.engine.engine import Engine
from jakiro.engine.policy import DraftLimits, Fixed, Times
from jakiro.engine.request import Request
from jakiro.sampling.params import SamplingParams
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.tree.sketch import chain, stack
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify import find as find_rule

P = TypeVar("P")
R = TypeVar("R")

SECONDS = 4.0
"""What all of it may take where cycles are fast; every place is measured at least twice."""
MIN_ROUNDS, MAX_ROUNDS = 2, 9
SHORT, LONG = 64, 1024
"""Committed tokens of a row in the table, and where the slope is taken."""
TEXT = SamplingParams(max_new_tokens=4096, ignore_eos=True, temperature=1.0)
"""Sampled: a greedy text soon repeats itself, and what copies would cost less than it mostly does.
"""


class _Chains(Drafter):
    """Chains of a given size that nobody will accept."""

    name = "chains"
    size = 0

    def __init__(self, like: Drafter) -> None:
        self.needs = like.needs

    def begin(self, ids: list[int], features: Tensor | None) -> None:
        """Nothing to remember."""

    def draft(self, request: DraftRequest) -> TokenTree:
        rows = [[root, *[0] * self.size] for root in request.roots.tolist()]
        return stack([chain(row) for row in rows], request.roots.device)

    def accept(self, tree: TokenTree, verdict: Verdict, out: TargetOutput) -> None:
        """Nothing to learn."""

    def keep(self, rows: list[int]) -> None:
        """No rows to renumber."""


class _Forced(Fixed):
    """Whatever plan it is told; ``num_levels``: how many its last draft had."""

    now: TreePlan
    num_levels = 0

    def limits(self, lengths: list[int], caps: list[int]) -> DraftLimits:
        return DraftLimits(self.now, caps)

    def learn(self, tree: TokenTree, verdict: Verdict, times: Times) -> None:
        self.num_levels = tree.num_levels


class _Bench:
    """An engine whose cycles are timed with a given number of rows."""

    def __init__(
        self, target: Target, drafter: Drafter, plan: TreePlan, num_rows: int, context: int
    ) -> None:
        self.policy = _Forced(plan)
        self.policy.now = plan
        self.engine = Engine(
            target,
            drafter,
            find_rule("match"),
            plan=plan,
            max_batch_size=num_rows,
            policy=lambda _: self.policy,
        )
        generator = torch.Generator().manual_seed(0)
        size = (num_rows, context)
        self._prompts = torch.randint(target.vocab_size, size, generator=generator).tolist()
        self._requests: list[Request] = []

    def cycle(self) -> tuple[float, float]:
        """One cycle with all rows; returns the milliseconds of drafting and of the rest."""
        # Rows that met the end of the context are replaced before the clock starts.
        self._requests = [r for r in self._requests if r.finish_reason is None]
        for prompt in self._prompts[len(self._requests) :]:
            seed = len(self._requests)
            self._requests.append(self.engine.submit(prompt, replace(TEXT, seed=seed)))
        self.engine.reset_stats()
        self.engine.step()
        stats = self.engine.stats
        return stats.draft_ms, stats.cycle_ms - stats.draft_ms

    def close(self) -> None:
        """Let all rows leave, so that the drafter is free again."""
        for request in self._requests:
            request.cancel()
        self.engine.step()


def measure(
    target: Target,
    drafter: Drafter,
    plan: TreePlan | None = None,
    *,
    max_batch_size: int = 1,
    seconds: float = SECONDS,
) -> Costs:
    """The costs of cycles with ``drafter`` and parts of ``plan`` (None: the drafter's).

    The drafter must be in no other engine; it is left without rows.
    """
    plan = Engine(target, drafter, find_rule("match"), plan=plan).plan
    context = max(1, min(SHORT, target.context_length // 4))
    batches = sorted({1, min(2, max_batch_size), max_batch_size})
    nodes = _spread(plan.num_nodes)
    depths = _steps(plan.depth)
    widths = sorted({1, plan.width}) if plan.kind == "dynamic" else [plan.width]
    share = seconds / (2 * len(batches) + 1)
    verify, draft = [], []
    for batch in batches:
        verify.append(_least(_verifier(target, drafter, nodes[-1], batch, context), nodes, share))
        draft.append(_draft(target, drafter, plan, (depths, widths), batch, context, share))
    return Costs(
        batches=tuple(batches),
        nodes=tuple(nodes),
        verify_ms=tuple(map(tuple, verify)),
        context=context,
        slope_ms=_slope(target, drafter, nodes[-1], context, share),
        depths=tuple(depths),
        widths=tuple(widths),
        draft_ms=tuple(draft),
        free_levels=drafter.free_levels,
    )


def _steps(depth: int) -> list[int]:
    """Depths to measure: the first ones singly, as not every level needs a forward."""
    steps = {1, 2, 3, 4, *range(6, depth, 4), depth}
    return sorted(step for step in steps if step <= depth)


def _spread(num_nodes: int) -> list[int]:
    """Sizes of trees, root included, up to the largest; dense where costs bend."""
    sizes = {1, 2, 4, 8, 16, 32, 64, 128, num_nodes // 2 + 1, num_nodes + 1}
    return sorted(size for size in sizes if size <= num_nodes + 1)


def _verifier(
    target: Target, like: Drafter, most: int, batch: int, context: int
) -> Callable[[int], float]:
    """Takes all of a cycle but drafting, for a tree of a given size, at most ``most`` nodes."""
    drafter = _Chains(like)
    bench = _Bench(target, drafter, TreePlan.chain(most), batch, context)

    def of(size: int) -> float:
        drafter.size = size - 1
        return bench.cycle()[1]

    return of


def _draft(
    target: Target,
    drafter: Drafter,
    plan: TreePlan,
    axes: tuple[Sequence[int], Sequence[int]],
    batch: int,
    context: int,
    seconds: float,
) -> tuple[tuple[float, ...], ...]:
    """Drafting, [depths, widths] of ``axes``, if all levels are made. Where no draft had as many,
    each further one costs what those before did on average."""
    bench = _Bench(target, drafter, plan, batch, context)
    # Whether a text goes on is not what is asked here.
    whole = replace(plan, reach=0.0)
    places = [whole.limited(depth, width, plan.budget) for width in axes[1] for depth in axes[0]]

    def of(part: TreePlan) -> tuple[int, float]:
        bench.policy.now = part
        taken, made = bench.cycle()[0], bench.policy.num_levels
        # What ended early had its last level by a forward, as one with its free levels would have.
        return min(made + drafter.free_levels, part.depth) if made < part.depth else made, taken

    try:
        found = _rounds(of, places, seconds)
    finally:
        bench.close()
    size = len(axes[0])
    curves = [
        _curve([draft for part in found[i : i + size] for draft in part], axes[0])
        for i in range(0, len(places), size)
    ]
    return tuple(zip(*curves, strict=True))


def _curve(drafts: Iterable[tuple[int, float]], depths: Sequence[int]) -> list[float]:
    """Milliseconds at ``depths``, from how many levels ``drafts`` had and how long they took: the
    same part of a plan ends earlier in one text than in another."""
    least: dict[int, float] = {}
    for levels, ms in sorted(drafts):
        least[max(1, levels)] = min(ms, least.get(max(1, levels), math.inf))
    known, times = list(least), list(least.values())
    rise = max(0.0, times[-1] - times[0]) / max(1, known[-1] - known[0])
    beyond = [rise * max(0, depth - known[-1]) for depth in depths]
    inner = np.interp(depths, known, times)
    return [float(ms + more) for ms, more in zip(inner, beyond, strict=True)]


def _slope(
    target: Target, like: Drafter, size: int, context: int, seconds: float
) -> tuple[float, float]:
    """What a committed token more costs one row, without a draft and with the largest."""
    far = min(LONG, target.context_length // 2)
    if far <= 2 * context:
        return 0.0, 0.0
    sizes = (1, max(2, size))
    takers = [_verifier(target, like, sizes[1], 1, length) for length in (context, far)]
    places = [(of, nodes) for of in takers for nodes in sizes]
    times = _least(lambda i: places[i][0](places[i][1]), range(len(places)), seconds)
    rise = [max(0.0, b - a) / (far - context) for a, b in zip(times[:2], times[2:], strict=True)]
    return rise[0], rise[1]


def _least(of: Callable[[int], float], places: Sequence[int], seconds: float) -> list[float]:
    """The least time of every place. What disturbs a cycle only ever adds to it, and a table that
    is kept must not hold what else the machine did when it was taken."""
    return [min(taken) for taken in _rounds(of, places, seconds)]


def _rounds(of: Callable[[P], R], places: Sequence[P], seconds: float) -> list[tuple[R, ...]]:
    """What every place gave. Each is taken once per round; the first round warms up and does not
    count."""
    rounds = []
    began = time.perf_counter()
    for number in range(MAX_ROUNDS + 1):
        if number > MIN_ROUNDS and time.perf_counter() - began > seconds:
            break
        taken = [of(place) for place in places]
        if number:
            rounds.append(taken)
    return list(zip(*rounds, strict=True))
