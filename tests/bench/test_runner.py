"""The runner and the figures made of its samples, on methods whose times are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from jakiro.bench.equality import Judge
from jakiro.bench.runner import PLAIN, Answer, EngineMethod, Request, Sample, measure
from jakiro.bench.summary import summarise, total
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
    """Takes ``cost(request)`` seconds and answers ``text(request)``."""

    name: str
    clock: Clock
    cost: Callable[[Request], float]
    text: Callable[[Request], list[int]]
    stats: Stats | None = None
    calls: list[int] = field(default_factory=list)

    def answer(self, request: Request) -> Answer:
        self.clock.seconds += self.cost(request)
        self.calls.append(request.prompt_ids[0])
        return Answer(self.text(request), self.stats)


def requests(count: int, task: str = "task") -> list[Request]:
    return [Request(task, [index], SamplingParams(seed=index)) for index in range(count)]


def straight(request: Request) -> list[int]:
    return list(range(20))


def test_methods_alternate_in_rotating_order() -> None:
    clock = Clock()
    methods = [Fake(name, clock, lambda _: 1.0, straight) for name in ("plain", "b", "c")]
    samples = measure(methods, requests(2), repetitions=2, clock=clock)
    order = [(sample.repetition, sample.request, sample.method) for sample in samples]
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
    assert method.calls == [0, 1, 0, 1, 2]
    assert samples == heard
    assert [sample.wall_ms for sample in samples] == [1000.0] * 3


def test_the_speedup_is_the_median_of_paired_ratios() -> None:
    """Prompt i is answered plainly in 6 s and drafted in i + 1 s: ratios 6, 3, 2."""
    clock = Clock()
    plain = Fake(PLAIN, clock, lambda _: 6.0, straight)
    fast = Fake("fast", clock, lambda request: request.prompt_ids[0] + 1.0, straight)
    asked = requests(3)
    samples = measure([fast, plain], asked, repetitions=3, clock=clock)
    first, second = summarise("task", asked, samples)
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
    summary = summarise("task", asked, measure([plain, other], asked, clock=clock))[1]
    assert summary.speedup is not None
    assert (summary.speedup.count, summary.speedup.median) == (1, pytest.approx(6))


def test_tau_is_given_with_and_without_loops() -> None:
    """Prompt 1 loops with τ 9, prompt 0 does not, with τ 2."""

    @dataclass
    class Drafted(Fake):
        def answer(self, request: Request) -> Answer:
            is_loop = request.prompt_ids[0] == 1
            self.clock.seconds += 1
            own = Stats(num_prefills=1, num_forwards=2, num_emitted=19 if is_loop else 5)
            return Answer([1, 2] * 10 if is_loop else list(range(20)), own)

    clock = Clock()
    methods = [
        Fake(PLAIN, clock, lambda _: 1.0, straight),
        Drafted("drafted", clock, lambda _: 1.0, straight),
    ]
    asked = requests(2)
    summary = summarise("task", asked, measure(methods, asked, clock=clock))[1]
    assert summary.tau == pytest.approx((4 + 18) / 4)
    assert summary.tau_without_loops == pytest.approx(2)
    assert summary.num_loops == 1


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
    plain = Fake(PLAIN, clock, lambda _: 1.0, straight, stats)
    asked = requests(1)
    (summary,) = summarise("task", asked, measure([plain], asked, clock=clock))
    assert summary.shares is not None
    shares = summary.shares
    assert (shares.draft, shares.verify, shares.other) == (0.2, 0.5, pytest.approx(0.3))
    assert shares.outside == pytest.approx(0.4)


def test_equality_is_counted_per_prompt_of_its_task() -> None:
    engine = Engine(ToyTarget.random(), NoDrafter(), find_rule("match"))
    plain = EngineMethod(PLAIN, engine)
    params = [SamplingParams(seed=seed, temperature=1.0, max_new_tokens=6) for seed in (1, 2)]
    asked = [Request("a", [1, 2], params[0]), Request("b", [1, 2], params[1])]

    @dataclass
    class Wrong:
        name: str = "wrong"

        def answer(self, request: Request) -> Answer:
            honest = plain.answer(request)
            if request.task == "a":
                return honest
            last = (honest.token_ids[-1] + 1) % engine.target.vocab_size
            return Answer([*honest.token_ids[:-1], last], honest.stats)

    samples = measure([plain, Wrong()], asked, repetitions=2)

    class Uncached:
        """The toy's own table, as the judge asks for it."""

        dtype = torch.float64

        def get_input_embeddings(self) -> object:
            return type("Embeddings", (), {"weight": engine.target.embed(torch.tensor([0]))})

        def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> object:
            where = torch.arange(input_ids.shape[1])[None]
            return engine.target.forward(input_ids, where, None, None)

    judge = Judge(Uncached())
    right, wrong = (summarise(task, asked, samples, judge)[1].equality for task in ("a", "b"))
    assert right is not None
    assert wrong is not None
    assert (right.num_equal, right.num_near_ties, right.num_bugs) == (1, 0, 0)
    assert (wrong.num_equal, wrong.num_near_ties, wrong.num_bugs) == (0, 0, 1)


def test_a_failing_request_stops_the_run() -> None:
    table = torch.zeros(4, 4, dtype=torch.float64)
    table[2] = torch.nan
    engine = Engine(ToyTarget(table), NoDrafter(), find_rule("match"))
    with pytest.raises(RowFailed, match="plain failed on a prompt of task"):
        EngineMethod(PLAIN, engine).answer(Request("task", [1, 2], SamplingParams()))
