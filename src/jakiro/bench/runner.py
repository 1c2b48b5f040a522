"""Methods in alternation on the same prompts.

Every speed figure is a ratio of two wall times that were taken one after the other, on the same
prompts, model, threads and number of tokens; the order of the methods rotates. What a machine does
besides then falls on all methods alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from jakiro.engine.engine import Engine
from jakiro.engine.stats import Stats
from jakiro.errors import RowFailed
from jakiro.sampling.params import SamplingParams

Promise = Literal["exact", "in_law", "lossy"]
"""As of a rule of ``jakiro.verify``."""

PLAIN = "plain"
"""The method that all others are compared with: the same engine without a drafter."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt with everything its text depends on."""

    prompt_ids: list[int]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method made of a request; ``stats`` where the method keeps any."""

    token_ids: list[int]
    stats: Stats | None = None


class Method(Protocol):
    """A way to answer requests, and what it promises about the texts."""

    @property
    def name(self) -> str: ...

    @property
    def promise(self) -> Promise: ...

    def answer(self, batch: Sequence[Request]) -> list[Answer]: ...


@dataclass(frozen=True, slots=True)
class EngineMethod:
    """An engine under a name."""

    name: str
    engine: Engine

    @property
    def promise(self) -> Promise:
        return self.engine.rule.promise

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        """Raises ``RowFailed`` if a request ends in an error."""
        prompts = [request.prompt_ids for request in batch]
        answers = []
        for done in self.engine.generate(prompts, [request.params for request in batch]):
            if done.finish_reason == "error":
                raise RowFailed(f"{self.name} failed on a prompt: {done.error}")
            answers.append(Answer(done.token_ids, done.stats))
        return answers


@dataclass(frozen=True, slots=True)
class TransformersMethod:
    """``model.generate`` of ``transformers``, for scale, one request after the other. Sampled
    texts are its own."""

    name: str
    model: Any
    eos_ids: tuple[int, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of ``generate``."""

    @property
    def promise(self) -> Promise:
        return "in_law"

    def answer(self, batch: Sequence[Request]) -> list[Answer]:
        return [self._answer(request) for request in batch]

    @torch.inference_mode()
    def _answer(self, request: Request) -> Answer:
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
            **self.more,
        )
        return Answer(out[0, ids.shape[1] :].tolist())


@dataclass(frozen=True, slots=True)
class Sample:
    """The answers to one batch and their wall time together, prefill included."""

    requests: tuple[int, ...]
    """Indices among the requests of the run; by default one."""
    repetition: int
    method: str
    wall_ms: float
    answers: tuple[Answer, ...]


def measure(
    methods: Sequence[Method],
    requests: Sequence[Request],
    *,
    batch_size: int = 1,
    repetitions: int = 1,
    num_warmup: int = 1,
    progress: Callable[[Sample], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Sample]:
    """Every method on every batch of ``batch_size`` requests (the last one may be smaller),
    ``repetitions`` times, in rotating order.

    The first ``num_warmup`` batches are answered once by every method beforehand, unmeasured.
    ``clock`` returns seconds; ``progress`` hears of every sample.
    """
    places = range(0, len(requests), batch_size)
    batches = [range(len(requests))[place : place + batch_size] for place in places]
    for batch in batches[:num_warmup]:
        for method in methods:
            method.answer([requests[index] for index in batch])
    samples = []
    for repetition in range(repetitions):
        for turn, batch in enumerate(batches):
            first = (repetition + turn) % len(methods)
            for method in (*methods[first:], *methods[:first]):
                asked = [requests[index] for index in batch]
                began = clock()
                answers = method.answer(asked)
                wall_ms = 1e3 * (clock() - began)
                samples.append(
                    Sample(tuple(batch), repetition, method.name, wall_ms, tuple(answers))
                )
                progress(samples[-1])
    return samples
