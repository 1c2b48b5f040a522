"""One request, from its prompt to its completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from jakiro.engine.detokenize import Detokenizer
from jakiro.engine.stats import Stats
from jakiro.engine.trace import Cycle
from jakiro.sampling.params import SamplingParams
from jakiro.typing import LogitsProcessor

FinishReason = Literal["stop", "length", "error", "cancelled", "deadline"]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Raw log-probabilities of the target at one emitted token: its own, and the best few."""

    token_id: int
    logprob: float
    top: dict[int, float]

    @classmethod
    def of(cls, logits: Tensor, tokens: list[int], num_top: int) -> list[TokenLogprobs]:
        """Of ``tokens`` under ``logits`` [at least len(tokens), V]."""
        table = logits[: len(tokens)].double().log_softmax(-1)
        own = table.gather(1, torch.tensor([tokens], dtype=torch.int64, device=table.device).T)[
            :, 0
        ].tolist()
        best = table.topk(min(num_top, table.shape[-1]))
        tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        each = zip(tokens, own, (dict(zip(*top, strict=True)) for top in tops), strict=True)
        return [cls(*entry) for entry in each]


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one prompt.

    ``token_ids`` include the end token; ``text`` stops before a stop string and shows no special
    tokens (empty without a tokenizer). ``finish_reason``: ``stop`` (end token or stop string),
    ``length``, ``error`` (``error`` says which; the tokens before it are good), ``cancelled`` or
    ``deadline``.
    ``seed`` is the one it was sampled with; ``logprobs`` has an entry per token if asked for.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    seed: int
    stats: Stats
    error: str | None = None
    logprobs: list[TokenLogprobs] | None = None


@dataclass(eq=False)
class Request:
    """A request in flight. The engine fills it; ``finish_reason`` tells when it is done."""

    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    num_wanted: int
    """Tokens to emit at most: ``max_new_tokens``, or fewer where the context ends."""
    end_ids: frozenset[int]
    detokenizer: Detokenizer | None = None
    processors: Sequence[LogitsProcessor] = ()
    choice_index: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    cycles: list[Cycle] = field(default_factory=list)
    """Filled if ``params.trace``."""
    finish_reason: FinishReason | None = None
    error: str | None = None
    stats: Stats = field(default_factory=Stats)

    @property
    def num_left(self) -> int:
        """Tokens still wanted."""
        return self.num_wanted - len(self.token_ids)

    @property
    def depth_cap(self) -> int:
        """The deepest node of a draft that is of use: a cycle emits one token more than it
        accepts."""
        return self.num_left - 1 if self.params.draft else 0

    def take(self, tokens: list[int]) -> list[int]:
        """Emit ``tokens`` until one of them ends the request; returns those emitted.

        Plain decoding would see one token at a time, so the cut falls where it would fall there.
        """
        for count, token in enumerate(tokens, start=1):
            self.token_ids.append(token)
            if self._ends_with(token):
                self.finish("stop")
            elif self.num_left == 0:
                self.finish("length")
            if self.finish_reason is not None:
                return tokens[:count]
        return tokens

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """End the request."""
        self.finish_reason, self.error = reason, error
        if self.detokenizer is not None:
            self.detokenizer.finish()

    def cancel(self) -> None:
        """Give the request up; its row leaves before the next cycle."""
        if self.finish_reason is None:
            self.finish("cancelled")

    def completion(self) -> Completion:
        """The finished request as a value."""
        assert self.finish_reason is not None, "the request is still running"
        return Completion(
            prompt_ids=self.prompt_ids,
            token_ids=self.token_ids,
            text=self.detokenizer.text if self.detokenizer else "",
            finish_reason=self.finish_reason,
            seed=self.seed,
            stats=self.stats,
            error=self.error,
            logprobs=None if self.params.logprobs is None else self.logprobs,
        )

    def _ends_with(self, token: int) -> bool:
        if self.detokenizer is not None:
            self.detokenizer.push(token)
        is_stopped = self.detokenizer is not None and self.detokenizer.is_stopped
        return is_stopped or token in self.end_ids
