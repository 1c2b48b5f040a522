"""Methods in alternation on the same prompts.

Every speed figure is a ratio of two wall times that were taken one after the other, on the same
prompt, model, threads and number of tokens; the order of the methods rotates. What a machine does
besides then falls on all methods alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from jakiro.engine.engine import Engine
from jakiro.engine.stats import Stats
from jakiro.errors import RowFailed
from jakiro.sampling.params import SamplingParams

PLAIN = "plain"
"""The method that all others are compared with: the same engine without a drafter."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt of a task, with everything its text depends on."""

    task: str
    prompt_ids: list[int]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method made of a request; ``stats`` where the method keeps any."""

    token_ids: list[int]
    stats: Stats | None = None


class Method(Protocol):
    """A way to answer a request."""

    @property
    def name(self) -> str: ...

    def answer(self, request: Request) -> Answer: ...


@dataclass(frozen=True, slots=True)
class EngineMethod:
    """An engine under a name."""

    name: str
    engine: Engine

    def answer(self, request: Request) -> Answer:
        """Raises ``RowFailed`` if the request ends in an error."""
        done = self.engine.generate([request.prompt_ids], request.params)[0]
        if done.finish_reason == "error":
            raise RowFailed(f"{self.name} failed on a prompt of {request.task}: {done.error}")
        return Answer(done.token_ids, done.stats)


@dataclass(frozen=True, slots=True)
class TransformersMethod:
    """``model.generate`` of ``transformers``, for scale. Sampled texts are its own."""

    name: str
    model: Any
    eos_ids: tuple[int, ...] = ()

    @torch.inference_mode()
    def answer(self, request: Request) -> Answer:
        params = request.params
        ids = torch.tensor([request.prompt_ids], device=self.model.device)
        settings: dict[str, Any] = {"do_sample": not params.is_greedy}
        if not params.is_greedy:
            settings |= {
                "temperature": params.temperature,
                "top_k": params.top_k,
                "top_p": params.top_p,
                "min_p": params.min_p or None,
            }
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=params.max_new_tokens,
            min_new_tokens=params.min_new_tokens or None,
            repetition_penalty=params.repetition_penalty,
            eos_token_id=None if params.ignore_eos else list(self.eos_ids),
            pad_token_id=self.eos_ids[0] if self.eos_ids else 0,
            **settings,
        )
        return Answer(out[0, ids.shape[1] :].tolist())


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer and its wall time, prefill included."""

    request: int
    """Index among the requests of the run."""
    repetition: int
    method: str
    wall_ms: float
    answer: Answer


def measure(
    methods: Sequence[Method],
    requests: Sequence[Request],
    *,
    repetitions: int = 1,
    num_warmup: int = 1,
    progress: Callable[[Sample], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Sample]:
    """Every method on every request, ``repetitions`` times, in rotating order.

    The first ``num_warmup`` requests are answered once by every method beforehand, unmeasured.
    ``clock`` returns seconds; ``progress`` hears of every sample.
    """
    for request in requests[:num_warmup]:
        for method in methods:
            method.answer(request)
    samples = []
    for repetition in range(repetitions):
        for index, request in enumerate(requests):
            first = (repetition + index) % len(methods)
            for method in (*methods[first:], *methods[:first]):
                began = clock()
                answer = method.answer(request)
                wall_ms = 1e3 * (clock() - began)
                samples.append(Sample(index, repetition, method.name, wall_ms, answer))
                progress(samples[-1])
    return samples
