"""From samples to the figures of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from statistics import median

from jakiro.bench.equality import Judge
from jakiro.bench.runner import PLAIN, Request, Sample
from jakiro.bench.statistics import Spread, loops
from jakiro.engine.stats import Stats


@dataclass(frozen=True, slots=True)
class Shares:
    """Where the time of the cycles goes, as shares of it; draft + verify + other = 1."""

    draft: float
    verify: float
    other: float
    outside: float
    """Neither in the target's forward nor in the drafter's network."""


@dataclass(frozen=True, slots=True)
class Equality:
    """Texts compared with those of plain decoding."""

    num_equal: int
    num_near_ties: int
    """First differences that rounding explains."""
    num_bugs: int


@dataclass(frozen=True, slots=True)
class Summary:
    """One method on one task."""

    method: str
    num_prompts: int
    num_tokens: int
    tokens_per_s: float
    speedup: Spread | None
    """Plain wall time / wall time, per prompt (the median of its repetitions), over the prompts
    whose two texts have the same number of tokens."""
    total_speedup: float | None
    """Summed plain wall time / summed wall time, over the same prompts."""
    tau: float | None
    tau_without_loops: float | None
    """Over the texts of which at most half of the 8-grams are repeats."""
    num_loops: int
    alpha: list[float]
    shares: Shares | None
    equality: Equality | None
    """None where the texts need not be those of plain decoding."""


def total(stats: Sequence[Stats]) -> Stats:
    """Sum of counts and times."""
    summed = Stats()
    for one in stats:
        for field in fields(Stats):
            mine, other = getattr(summed, field.name), getattr(one, field.name)
            if isinstance(mine, list):
                added = [a + b for a, b in zip_longest(mine, other, fillvalue=0)]
            else:
                added = mine + other
            setattr(summed, field.name, added)
    return summed


def summarise(
    task: str, requests: Sequence[Request], samples: Sequence[Sample], judge: Judge | None = None
) -> list[Summary]:
    """One ``Summary`` per method for the requests of ``task``; without a ``judge`` no texts are
    compared."""
    here = [sample for sample in samples if requests[sample.request].task == task]
    # In the order of the whole run: within a task it depends on where the rotation stood.
    names = list(dict.fromkeys(sample.method for sample in samples))
    by_method = {name: [sample for sample in here if sample.method == name] for name in names}
    ordered = [PLAIN, *(name for name in names if name != PLAIN)]
    return [_summary(by_method[name], by_method[PLAIN], requests, judge) for name in ordered]


def _summary(
    samples: list[Sample], plain: list[Sample], requests: Sequence[Request], judge: Judge | None
) -> Summary:
    texts = {sample.request: sample.answer.token_ids for sample in samples}
    num_tokens = sum(len(sample.answer.token_ids) for sample in samples)
    stats = [sample.answer.stats for sample in samples if sample.answer.stats is not None]
    looping = {request for request, text in texts.items() if loops(text)}
    straight = [
        sample.answer.stats
        for sample in samples
        if sample.answer.stats is not None and sample.request not in looping
    ]
    summed = total(stats)
    ratios, total_speedup = _ratios(samples, plain)
    return Summary(
        method=samples[0].method,
        num_prompts=len(texts),
        num_tokens=num_tokens,
        tokens_per_s=num_tokens / sum(sample.wall_ms for sample in samples) * 1e3,
        speedup=Spread.of(ratios),
        total_speedup=total_speedup,
        tau=summed.tau if stats else None,
        tau_without_loops=total(straight).tau if straight else None,
        num_loops=len(looping),
        alpha=summed.alpha,
        shares=_shares(summed),
        equality=None if judge is None else _equality(samples, plain, requests, judge),
    )


def _ratios(samples: list[Sample], plain: list[Sample]) -> tuple[list[float], float | None]:
    """Per prompt the median of the paired ratios, and the ratio of the sums."""
    baseline = {(sample.request, sample.repetition): sample for sample in plain}
    ratios: dict[int, list[float]] = {}
    plain_ms = own_ms = 0.0
    for sample in samples:
        other = baseline[sample.request, sample.repetition]
        if len(other.answer.token_ids) == len(sample.answer.token_ids):
            ratios.setdefault(sample.request, []).append(other.wall_ms / sample.wall_ms)
            plain_ms, own_ms = plain_ms + other.wall_ms, own_ms + sample.wall_ms
    return [median(values) for values in ratios.values()], plain_ms / own_ms if own_ms else None


def _shares(stats: Stats) -> Shares | None:
    if not stats.cycle_ms:
        return None
    draft, verify = stats.draft_ms / stats.cycle_ms, stats.verify_ms / stats.cycle_ms
    return Shares(draft, verify, 1 - draft - verify, stats.outside_share)


def _equality(
    samples: list[Sample], plain: list[Sample], requests: Sequence[Request], judge: Judge
) -> Equality | None:
    """None for a method with its own randomness, which is one that keeps no statistics."""
    is_own = samples[0].answer.stats is None
    expected = {sample.request: sample.answer.token_ids for sample in plain}
    counts = {"equal": 0, "near-tie": 0, "bug": 0}
    # Repetitions write the same text again; the first one stands for all.
    for sample in (sample for sample in samples if sample.repetition == 0):
        request = requests[sample.request]
        if is_own and not request.params.is_greedy:
            return None
        found = judge.compare(
            request.prompt_ids, request.params, expected[sample.request], sample.answer.token_ids
        )
        outcome = "equal" if found is None else "near-tie" if found.is_near_tie else "bug"
        counts[outcome] += 1
    return Equality(counts["equal"], counts["near-tie"], counts["bug"])
