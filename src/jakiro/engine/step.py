"""One cycle: draft, verify, commit. Everything else in this package serves these lines."""

from __future__ import annotations

import time

from jakiro.drafters.base import Drafter
from jakiro.engine.batch import Batch
from jakiro.engine.policy import Times
from jakiro.engine.stats import Stats
from jakiro.target.target import Target
from jakiro.verify import RuleFunction


def step(batch: Batch, target: Target, drafter: Drafter, rule: RuleFunction, total: Stats) -> None:
    """Every row of ``batch`` emits at least one token, or fails."""
    began, module_ms = time.perf_counter(), drafter.module_ms
    tree = batch.sealed(drafter.draft(batch.request()))
    drafted = time.perf_counter()
    out = target.verify(tree, batch.cache, drafter.needs)
    verified = time.perf_counter()
    nodes = batch.sampler.view(tree, out.logits)
    verdict = rule(tree, nodes)
    batch.cache.commit(verdict)
    drafter.accept(tree, verdict, out)
    batch.emit(tree, nodes, verdict, out)

    times = (
        1e3 * (drafted - began),
        drafter.module_ms - module_ms,
        1e3 * (verified - drafted),
        1e3 * (time.perf_counter() - began),
    )
    batch.trace(tree, verdict, (times[0], times[2]), drafter)
    batch.policy.learn(tree, verdict, Times(times[0], times[3] - times[0]))
    for stats in (total, *(request.stats for request in batch.rows)):
        stats.count_times(*times)
