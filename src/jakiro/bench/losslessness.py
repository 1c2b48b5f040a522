"""The check of a user's own pair: over a grid of settings, are the tokens those of the target?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jakiro.bench.equality import Divergence, Judge
from jakiro.engine.engine import Engine
from jakiro.errors import RowFailed
from jakiro.sampling.params import SamplingParams

GRID: dict[str, SamplingParams] = {
    "greedy": SamplingParams(),
    "T 1": SamplingParams(temperature=1.0),
    "T 0.5, top-p 0.9": SamplingParams(temperature=0.5, top_p=0.9),
    "T 1.3, top-k 5, repetition 1.2": SamplingParams(
        temperature=1.3, top_k=5, repetition_penalty=1.2
    ),
    "T 1, min-p 0.05, bias": SamplingParams(
        temperature=1.0, min_p=0.05, logit_bias={0: -1.0, 1: 1.0}
    ),
}

Comparison = Literal["plain and uncached", "drafted and plain", "batched and plain"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One comparison of one text."""

    setting: str
    prompt: int
    comparison: Comparison
    num_tokens: int
    divergence: Divergence | None

    @property
    def outcome(self) -> Literal["equal", "near-tie", "bug"]:
        return "equal" if self.divergence is None else self.divergence.outcome


def check_pair(
    drafted: Engine,
    plain: Engine,
    judge: Judge,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Cell]:
    """Compare, for every prompt and setting of ``GRID``: plain decoding with uncached
    recomputation, drafted decoding with plain, and drafted decoding of all prompts in one batch
    with plain. ``drafted`` and ``plain`` share their target; ``progress`` hears of each setting.

    Raises:
        RowFailed: a request ended in an error instead of a text.
    """
    cells: list[Cell] = []
    for name, setting in GRID.items():
        progress(name)
        params = [
            replace(setting, max_new_tokens=max_new_tokens, seed=seed + index)
            for index in range(len(prompts))
        ]
        cells += _check_setting(
            name, drafted, plain, judge, list(zip(prompts, params, strict=True))
        )
    return cells


def _check_setting(
    name: str,
    drafted: Engine,
    plain: Engine,
    judge: Judge,
    requests: list[tuple[list[int], SamplingParams]],
) -> Iterator[Cell]:
    batched = _answers(drafted, requests)
    for index, (prompt, params) in enumerate(requests):
        expected = _answers(plain, [(prompt, params)])[0]
        alone = _answers(drafted, [(prompt, params)])[0]
        found: dict[Comparison, Divergence | None] = {
            "plain and uncached": judge.recompute(prompt, params, expected),
            "drafted and plain": judge.compare(prompt, params, expected, alone),
            "batched and plain": judge.compare(prompt, params, expected, batched[index]),
        }
        for comparison, divergence in found.items():
            yield Cell(name, index, comparison, len(expected), divergence)


def _answers(engine: Engine, requests: list[tuple[list[int], SamplingParams]]) -> list[list[int]]:
    prompts, params = zip(*requests, strict=True)
    completions = engine.generate(list(prompts), list(params))
    for index, completion in enumerate(completions):
        if completion.finish_reason == "error":
            raise RowFailed(f"prompt {index} failed: {completion.error}")
    return [completion.token_ids for completion in completions]
