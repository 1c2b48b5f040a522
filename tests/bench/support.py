"""Small reports, made by hand and by running."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jakiro.bench.environment import environment
from jakiro.bench.grid import Prompts
from jakiro.bench.report import Cell, Report
from jakiro.bench.runner import PLAIN, Answer, Promise, Request
from jakiro.bench.settings import Settings
from jakiro.bench.statistics import Ratio, Spread
from jakiro.bench.suites import Row
from jakiro.bench.summary import Equality, Shares, Summary
from jakiro.engine.stats import Stats

DRAFTED = Summary(
    method="drafted",
    num_prompts=3,
    num_tokens=384,
    tokens_per_s=123.456,
    speedup=Spread(1.75, 1.5, 2.0, 1.6, 1.9, 3),
    total_speedup=1.8,
    tau=Ratio(3.25, 3.0, 3.5),
    tau_without_loops=Ratio(3.0, 2.5, 3.5),
    num_loops=1,
    alpha=[Ratio(0.8, 0.7, 0.9), Ratio(0.5, 0.25, 0.75), None],
    shares=Shares(0.25, 0.6, 0.15, 0.125),
    equality=Equality(2, 1, 0),
    output_sha256="b" * 64,
    bound=2.0,
)
UNDRAFTED = Summary(
    method=PLAIN,
    num_prompts=3,
    num_tokens=384,
    tokens_per_s=70.0,
    speedup=Spread(1.0, 1.0, 1.0, 1.0, 1.0, 3),
    total_speedup=1.0,
    tau=Ratio(1.0, 1.0, 1.0),
    tau_without_loops=Ratio(1.0, 1.0, 1.0),
    num_loops=0,
    alpha=[],
    shares=None,
    equality=Equality(3, 0, 0),
    output_sha256="a" * 64,
)


def settings(
    tasks: Sequence[str] = ("gsm8k", "mine"), temperatures: Sequence[float] = (0.0, 1.0)
) -> Settings:
    return Settings(
        target="pico",
        target_sha256="0" * 64,
        dtype="torch.float32",
        rows=(Row("drafted", "prompt_lookup", tree="chain:3"),),
        tasks=tuple(tasks),
        temperatures=tuple(temperatures),
        max_new_tokens=4,
    )


def cell(task: str, temperature: float) -> Cell:
    return Cell(
        task=task,
        temperature=temperature,
        batch_size=1,
        prompts_sha256="1" * 64,
        num_skipped=2 if task == "mine" else 0,
        commit="0123456789ab",
        date="2026-01-01T00:00:00+00:00",
        texts=["1 2 3", "4", ""],
        methods=[UNDRAFTED, DRAFTED],
    )


def report(cells: list[Cell]) -> Report:
    return Report(
        command="jakiro bench --suite paper",
        environment=environment(),
        settings=settings(),
        not_measured={"other": "no head of that name"},
        cells=cells,
    )


def whole_report() -> Report:
    return report([cell(place.task, place.temperature) for place in settings().places()])


@dataclass
class Counting:
    """Answers with its prompt's first id; can be made to stop at its n-th call."""

    name: str
    calls: list[list[int]] = field(default_factory=list)
    fails_at: int | None = None
    promise: Promise = "exact"
    text: Callable[[Request], list[int]] = lambda request: request.prompt_ids[:1] * 4

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        self.calls.append([request.prompt_ids[0] for request in batch])
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        return [Answer(self.text(request), Stats(1, 2, 4)) for request in batch]


PROMPTS = {"gsm8k": Prompts([[1, 2], [3, 4]]), "mine": Prompts([[5, 6]], num_skipped=2)}
