"""The runner and the figures made of its samples, on methods whose times are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from jakiro.bench.equality import Divergence, Judge
from jakiro.bench.runner import PLAIN, Answer, EngineMethod, Promise, Request, Sample, measure
from jakiro.bench.summary import Equality, digest, summarise, total
from jakiro.drafters.none import NoDrafter
from jakiro.engine.engine import Engine
from jakiro.engine.stats import Stats
from jakiro.errors import RowFailed
from jakiro.sampling.params import SamplingParams
from jakiro.target.toy import ToyTarget
from jakiro.verify import find as find_rule


@dataclass
class Clock:
    """Time passes only when a method works."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Fake:
    """Takes ``cost(request)`` seconds for each request and answers ``text(request)``."""

    name: str
    clock: Clock
    cost: Callable[[Request], float]
    text: Callable[[Request], list[int]]
    stats: Callable[[Request], Stats | None] = lambda _: None
    promise: Promise = "exact"
    calls: list[list[int]] = field(default_factory=list)

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        self.clock.seconds += sum(map(self.cost, batch))
        self.calls.append([request.prompt_ids[0] for request in batch])
        return [Answer(self.text(request), self.stats(request)) for request in batch]


def requests(count: int) -> list[Request]:
    return [Request([index], SamplingParams(seed=index)) for index in range(count)]


def straight(request: Request) -> list[int]:
    return list(range(20))


def test_methods_alternate_in_rotating_order() -> None:
    clock = Clock()
    methods = [Fake(name, clock, lambda _: 1.0, straight) for name in ("plain", "b", "c")]
    samples = measure(methods, requests(2), repetitions=2, clock=clock)
    order = [(sample.repetition, *sample.requests, sample.method) for sample in samples]
    assert order == [
        (0, 0, "plain"), (0, 0, "b"), (0, 0, "c"),
        (0, 1, "b"), (0, 1, "c"), (0, 1, "plain"),
        (1, 0, "b"), (1, 0, "c"), (1, 0, "plain"),
        (1, 1, "c"), (1, 1, "plain"), (1, 1, "b"),
    ]  # fmt: skip


def test_the_warm_up_is_not_measured() -> None:
    clock = Clock()
    method = Fake("plain", clock, lambda _: 1.0, straight)
    heard: list[Sample] = []
    samples = measure([method], requests(3), num_warmup=2, clock=clock, progress=heard.append)
    assert method.calls == [[0], [1], [0], [1], [2]]
    assert samples == heard
    assert [sample.wall_ms for sample in samples] == [1000.0] * 3


def test_batches_are_timed_as_a_whole() -> None:
    """Of three prompts two are answered together: the ratios are those of the batches."""
    clock = Clock()
    plain = Fake(PLAIN, clock, lambda _: 6.0, straight)
    fast = Fake("fast", clock, lambda request: request.prompt_ids[0] + 1.0, straight)
    asked = requests(3)
    samples = measure([plain, fast], asked, batch_size=2, num_warmup=0, clock=clock)
    assert plain.calls == [[0, 1], [2]]
    assert [sample.requests for sample in samples] == [(0, 1), (0, 1), (2,), (2,)]
    summary = summarise([plain, fast], asked, samples)[1]
    assert summary.speedup is not None
    assert summary.speedup.count == 2
    assert summary.speedup.median == pytest.approx((12 / 3 + 6 / 3) / 2)
    assert summary.num_prompts == 3


def test_the_speedup_is_the_median_of_paired_ratios() -> None:
    """Prompt i is answered plainly in 6 s and drafted in i + 1 s: ratios 6, 3, 2."""
    clock = Clock()
    plain = Fake(PLAIN, clock, lambda _: 6.0, straight)
    fast = Fake("fast", clock, lambda request: request.prompt_ids[0] + 1.0, straight)
    asked = requests(3)
    samples = measure([fast, plain], asked, repetitions=3, clock=clock)
    first, second = summarise([fast, plain], asked, samples)
    assert (first.method, second.method) == (PLAIN, "fast")
    assert second.speedup is not None
    assert second.speedup.median == pytest.approx(3)
    assert second.speedup.count == 3
    assert second.total_speedup == pytest.approx(18 / 6)
    assert second.tokens_per_s == pytest.approx(9 * 20 / 18)
    assert first.total_speedup == pytest.approx(1)


def test_texts_of_unequal_length_give_no_ratio() -> None:
    clock = Clock()
    plain = Fake(PLAIN, clock, lambda _: 6.0, straight)
    other = Fake("other", clock, lambda _: 1.0, lambda r: [0] * (20 - r.prompt_ids[0]))
    asked = requests(3)
    samples = measure([plain, other], asked, clock=clock)
    summary = summarise([plain, other], asked, samples)[1]
    assert summary.speedup is not None
    assert (summary.speedup.count, summary.speedup.median) == (1, pytest.approx(6))


def test_the_texts_of_all_rounds_are_judged() -> None:
    """Prompt 0 comes out another way in the second round, as what is kept between requests may
    have it."""
    clock = Clock()
    plain = Fake(PLAIN, clock, lambda _: 1.0, straight)
    turns = iter([straight, straight, straight, lambda _: [7] * 20])
    other = Fake(
        "other",
        clock,
        lambda _: 1.0,
        lambda request: (straight if request.prompt_ids[0] else next(turns))(request),
    )
    asked = requests(2)
    samples = measure([plain, other], asked, repetitions=3, clock=clock)
    found = summarise([plain, other], asked, samples, Strict(None))
    assert [each.equality for each in found] == [Equality(2, 0, 0), Equality(1, 0, 1)]


class Strict(Judge):
    """Every difference is a bug."""

    def compare(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        expected: Sequence[int],
        found: Sequence[int],
    ) -> Divergence | None:
        same = list(expected) == list(found)
        return None if same else Divergence(0, expected[0], found[0], None, is_near_tie=False)


def test_tau_is_given_with_and_without_loops() -> None:
    """Prompt 1 loops with τ 9, prompt 0 does not, with τ 2; repetitions change neither."""
    clock = Clock()
    plain = Fake(PLAIN, clock, lambda _: 1.0, straight)
    drafted = Fake(
        "drafted",
        clock,
        lambda _: 1.0,
        lambda request: [1, 2] * 10 if request.prompt_ids[0] else list(range(20)),
        lambda request: Stats(1, 2, num_emitted=19 if request.prompt_ids[0] else 5),
    )
    asked = requests(2)
    samples = measure([plain, drafted], asked, repetitions=2, clock=clock)
    summary = summarise([plain, drafted], asked, samples)[1]
    assert summary.tau is not None
    assert summary.tau_without_loops is not None
    assert summary.tau.value == pytest.approx((4 + 18) / 4)
    assert (summary.tau.interval_low, summary.tau.interval_high) == (2, 9)
    assert summary.tau_without_loops.value == pytest.approx(2)
    assert summary.num_loops == 1


def test_alpha_has_an_interval_at_every_depth() -> None:
    """Prompt 0 reaches depth 1 only, where it accepts 1 of 4; prompt 1 accepts 3 of 4, and 2 of 3
    at depth 2; nobody is offered a node at depth 3."""
    clock = Clock()
    counts = (([1], [4]), ([3, 2, 0], [4, 3, 0]))

    def stats(request: Request) -> Stats:
        accepted, offered = counts[request.prompt_ids[0]]
        return Stats(1, 4, 5, accepted_by_depth=accepted, offered_by_depth=offered)

    plain = Fake(PLAIN, clock, lambda _: 1.0, straight, stats)
    asked = requests(2)
    (summary,) = summarise([plain], asked, measure([plain], asked, clock=clock))
    first, second, third = summary.alpha
    assert first is not None
    assert second is not None
    assert (first.value, first.interval_low, first.interval_high) == (0.5, 0.25, 0.75)
    assert second.value == second.interval_low == second.interval_high == pytest.approx(2 / 3)
    assert third is None


def test_texts_are_known_by_their_digest() -> None:
    """Of the ids of every prompt in order; lines keep texts apart that join to the same ids."""
    assert digest([[1, 2], [3]]) == (
        "0b7c61ec062aaab1e08e56c71f88ee85be1751d0131a5b9c6dce067ba1791b11"
    )
    assert len({digest([[1, 2], [3]]), digest([[1], [2, 3]]), digest([[12], [3]])}) == 3


def test_totals_add_lists_of_unequal_length() -> None:
    one = Stats(1, 2, 3, accepted_by_depth=[1], offered_by_depth=[2], cycle_ms=1.5)
    two = Stats(1, 1, 1, accepted_by_depth=[1, 1], offered_by_depth=[1, 1], cycle_ms=0.5)
    summed = total([one, two])
    assert (summed.num_prefills, summed.num_forwards, summed.num_emitted) == (2, 3, 4)
    assert (summed.accepted_by_depth, summed.offered_by_depth) == ([2, 1], [3, 1])
    assert summed.cycle_ms == 2.0
    assert one.accepted_by_depth == [1], "the parts must stay as they were"


def test_shares_add_up() -> None:
    clock = Clock()
    stats = Stats(1, 1, 2, draft_ms=2.0, module_ms=1.0, verify_ms=5.0, cycle_ms=10.0)
    plain = Fake(PLAIN, clock, lambda _: 1.0, straight, lambda _: stats)
    asked = requests(1)
    (summary,) = summarise([plain], asked, measure([plain], asked, clock=clock))
    assert summary.shares is not None
    shares = summary.shares
    assert (shares.draft, shares.verify, shares.other) == (0.2, 0.5, pytest.approx(0.3))
    assert shares.outside == pytest.approx(0.4)


def test_the_bound_counts_the_forwards_of_both_models_alone() -> None:
    """Plain decoding takes 3 ms a forward. Drafted, 2 forwards of 9 ms in all and 6 ms of the
    drafter give 10 tokens: as long as 5 plain ones."""
    clock = Clock()
    plain = Fake(PLAIN, clock, lambda _: 1.0, straight, lambda _: Stats(1, 4, 5, verify_ms=12.0))
    spent = Stats(1, 2, 11, module_ms=6.0, verify_ms=9.0, draft_ms=8.0, cycle_ms=30.0)
    drafted = Fake("drafted", clock, lambda _: 1.0, straight, lambda _: spent)
    asked = requests(2)
    samples = measure([plain, drafted], asked, clock=clock)
    first, second = summarise([plain, drafted], asked, samples)
    assert (first.bound, second.bound) == (pytest.approx(1), pytest.approx(2))


class Uncached:
    """The table of a toy target, as the judge asks for it."""

    dtype = torch.float64

    def __init__(self, target: ToyTarget) -> None:
        self.target = target

    def get_input_embeddings(self) -> object:
        return type("Embeddings", (), {"weight": self.target.embed(torch.tensor([0]))})

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> object:
        where = torch.arange(input_ids.shape[1])[None]
        return self.target.forward(input_ids, where, None, None)


@pytest.mark.parametrize("promise", ["exact", "in_law", "lossy"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_judged_by_what_the_method_promises(promise: Promise, temperature: float) -> None:
    target = ToyTarget.random()
    plain = EngineMethod(PLAIN, Engine(target, NoDrafter(), find_rule("match")))
    params = [
        SamplingParams(seed=seed, temperature=temperature, max_new_tokens=6) for seed in (1, 2)
    ]
    asked = [Request([1, 2], each) for each in params]

    @dataclass
    class Wrong:
        """The second text ends in another token."""

        name: str = "wrong"
        promise: Promise = "exact"

        def answer(self, batch: Sequence[Request]) -> list[Answer]:
            (honest,) = plain.answer(batch)
            if batch[0] is asked[0]:
                return [honest]
            last = (honest.token_ids[-1] + 1) % target.vocab_size
            return [Answer([*honest.token_ids[:-1], last], honest.stats)]

    methods = [plain, Wrong(promise=promise)]
    samples = measure(methods, asked, repetitions=2)
    first, second = summarise(methods, asked, samples, Judge(Uncached(target)))
    assert first.equality == Equality(2, 0, 0)
    assert first.output_sha256 != second.output_sha256
    is_promised = promise == "exact" or (promise == "in_law" and not temperature)
    assert second.equality == (Equality(1, 0, 1) if is_promised else None)


def test_a_failing_request_stops_the_run() -> None:
    table = torch.zeros(4, 4, dtype=torch.float64)
    table[2] = torch.nan
    engine = Engine(ToyTarget(table), NoDrafter(), find_rule("match"))
    with pytest.raises(RowFailed, match="plain failed on a prompt: "):
        EngineMethod(PLAIN, engine).answer([Request([1, 2], SamplingParams())])
