"""From the samples of one cell (a task at one temperature and batch size) to figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256
from itertools import zip_longest
from statistics import median

from jakiro.bench.equality import Judge
from jakiro.bench.runner import PLAIN, Answer, Method, Request, Sample
from jakiro.bench.statistics import Ratio, Spread, loops
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
    """One method in one cell."""

    method: str
    num_prompts: int
    num_tokens: int
    tokens_per_s: float
    speedup: Spread | None
    """Plain wall time / wall time, per batch (the median of its repetitions), over the batches
    whose texts have the same numbers of tokens both ways."""
    total_speedup: float | None
    """Summed plain wall time / summed wall time, over the same batches."""
    tau: Ratio | None
    tau_without_loops: Ratio | None
    """Over the texts of which at most half of the 8-grams are repeats."""
    num_loops: int
    alpha: list[Ratio | None]
    """At index d: of depth d+1; None where no node was offered."""
    shares: Shares | None
    equality: Equality | None
    """None where the texts need not be those of plain decoding."""
    output_sha256: str
    """Of all texts in order; see ``digest``."""
    bound: float | None = None
    """The speedup if a cycle took the forwards of target and drafter and nothing else, measured
    here: τ / (1 + draft cost + extra verify cost), in forwards of plain decoding."""
    wall_ms: list[float] = field(default_factory=list)
    """Per batch, in order, the median of its repetitions."""


def written(token_ids: Sequence[int]) -> str:
    """Token ids in decimal with blanks between them, as reports store a text."""
    return " ".join(map(str, token_ids))


def digest(texts: Sequence[Sequence[int]]) -> str:
    """SHA-256 in hex over the token ids of every text, one text per line as ``written``."""
    return sha256("".join(f"{written(text)}\n" for text in texts).encode()).hexdigest()


def texts_of(samples: Sequence[Sample], method: str) -> list[list[int]]:
    """The text of every request in order. Repetitions write the same again; the first counts."""
    first = {
        request: answer.token_ids
        for sample in samples
        if sample.method == method and sample.repetition == 0
        for request, answer in zip(sample.requests, sample.answers, strict=True)
    }
    return [first[request] for request in sorted(first)]


def _variants(samples: Sequence[Sample]) -> list[list[list[int]]]:
    """Of every request in order its texts, each once; a text may depend on what came before."""
    found: dict[int, list[list[int]]] = {}
    for sample in samples:
        for request, answer in zip(sample.requests, sample.answers, strict=True):
            texts = found.setdefault(request, [])
            if answer.token_ids not in texts:
                texts.append(answer.token_ids)
    return [found[request] for request in sorted(found)]


def total(stats: Sequence[Stats]) -> Stats:
    """Sum of counts and times."""
    summed = Stats()
    for one in stats:
        for each in fields(Stats):
            mine, other = getattr(summed, each.name), getattr(one, each.name)
            if isinstance(mine, list):
                added = [a + b for a, b in zip_longest(mine, other, fillvalue=0)]
            else:
                added = mine + other
            setattr(summed, each.name, added)
    return summed


def summarise(
    methods: Sequence[Method],
    requests: Sequence[Request],
    samples: Sequence[Sample],
    judge: Judge | None = None,
) -> list[Summary]:
    """One ``Summary`` per method, plain decoding first; without a ``judge`` no texts are compared.

    ``samples`` are those of ``measure(methods, requests)``.
    """
    ordered = sorted(methods, key=lambda method: method.name != PLAIN)
    expected = texts_of(samples, PLAIN)
    plain = [sample for sample in samples if sample.method == PLAIN]
    summaries = []
    for method in ordered:
        own = [sample for sample in samples if sample.method == method.name]
        texts = texts_of(samples, method.name)
        equality = None
        if judge is not None:
            equality = _equality(method, requests, expected, _variants(own), judge)
        summaries.append(_summary(own, plain, texts, equality))
    return summaries


def _summary(
    samples: list[Sample], plain: list[Sample], texts: list[list[int]], equality: Equality | None
) -> Summary:
    stats = _stats_by_request(samples)
    looping = {request for request, text in enumerate(texts) if loops(text)}
    num_tokens = sum(len(answer.token_ids) for sample in samples for answer in sample.answers)
    ratios, total_speedup = _speedups(samples, plain)
    return Summary(
        method=samples[0].method,
        num_prompts=len(texts),
        num_tokens=num_tokens,
        tokens_per_s=num_tokens / sum(sample.wall_ms for sample in samples) * 1e3,
        speedup=Spread.of(ratios),
        total_speedup=total_speedup,
        tau=_tau(list(stats.values())),
        tau_without_loops=_tau([one for request, one in stats.items() if request not in looping]),
        num_loops=len(looping),
        alpha=_alpha(list(stats.values())),
        shares=_shares(total(list(stats.values()))),
        equality=equality,
        output_sha256=digest(texts),
        bound=_bound(total(list(stats.values())), total(list(_stats_by_request(plain).values()))),
        wall_ms=_wall_ms(samples),
    )


def _stats_by_request(samples: list[Sample]) -> dict[int, Stats]:
    """Per request the sum over its repetitions; nothing for a method that keeps none."""
    found: dict[int, list[Stats]] = {}
    for sample in samples:
        for request, answer in zip(sample.requests, sample.answers, strict=True):
            if answer.stats is not None:
                found.setdefault(request, []).append(answer.stats)
    return {request: total(each) for request, each in found.items()}


def _tau(stats: list[Stats]) -> Ratio | None:
    decoded = [one.num_emitted - one.num_prefills for one in stats]
    return Ratio.of(decoded, [one.num_forwards for one in stats])


def _alpha(stats: list[Stats]) -> list[Ratio | None]:
    """By depth; a prompt that never reached a depth counts there with nothing offered."""
    accepted = zip_longest(*(one.accepted_by_depth for one in stats), fillvalue=0)
    offered = zip_longest(*(one.offered_by_depth for one in stats), fillvalue=0)
    return [Ratio.of(*depth) for depth in zip(accepted, offered, strict=True)]


def _speedups(samples: list[Sample], plain: list[Sample]) -> tuple[list[float], float | None]:
    """Per batch the median of the paired ratios, and the ratio of the sums."""
    baseline = {(sample.requests, sample.repetition): sample for sample in plain}
    ratios: dict[tuple[int, ...], list[float]] = {}
    plain_ms = own_ms = 0.0
    for sample in samples:
        other = baseline[sample.requests, sample.repetition]
        if _lengths(other.answers) == _lengths(sample.answers):
            ratios.setdefault(sample.requests, []).append(other.wall_ms / sample.wall_ms)
            plain_ms, own_ms = plain_ms + other.wall_ms, own_ms + sample.wall_ms
    return [median(values) for values in ratios.values()], plain_ms / own_ms if own_ms else None


def _wall_ms(samples: list[Sample]) -> list[float]:
    times: dict[tuple[int, ...], list[float]] = {}
    for sample in samples:
        times.setdefault(sample.requests, []).append(sample.wall_ms)
    return [median(times[batch]) for batch in sorted(times)]


def _bound(stats: Stats, plain: Stats) -> float | None:
    models_ms = stats.verify_ms + stats.module_ms
    if not models_ms or not plain.num_forwards:
        return None
    return stats.tau * stats.num_forwards / models_ms * plain.verify_ms / plain.num_forwards


def _lengths(answers: Sequence[Answer]) -> list[int]:
    return [len(answer.token_ids) for answer in answers]


def _shares(stats: Stats) -> Shares | None:
    if not stats.cycle_ms:
        return None
    draft, verify = stats.draft_ms / stats.cycle_ms, stats.verify_ms / stats.cycle_ms
    return Shares(draft, verify, 1 - draft - verify, stats.outside_share)


def _equality(
    method: Method,
    requests: Sequence[Request],
    expected: list[list[int]],
    texts: list[list[list[int]]],
    judge: Judge,
) -> Equality | None:
    """Of each request the worst of its texts counts. None where the method does not promise those
    of plain decoding."""
    is_greedy = all(request.params.is_greedy for request in requests)
    if method.promise == "lossy" or (method.promise == "in_law" and not is_greedy):
        return None
    counts = {"equal": 0, "near-tie": 0, "bug": 0}
    for request, wanted, own in zip(requests, expected, texts, strict=True):
        found = [judge.compare(request.prompt_ids, request.params, wanted, text) for text in own]
        outcomes = {"equal" if each is None else each.outcome for each in found}
        counts[next(outcome for outcome in reversed(counts) if outcome in outcomes)] += 1
    return Equality(counts["equal"], counts["near-tie"], counts["bug"])
