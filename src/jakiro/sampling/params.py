"""What one request may ask of the sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jakiro.errors import ConfigError, check_int

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-4, 1e4
"""Outside of these, float32 logits divided by the temperature lose their order or overflow."""

_LARGEST_FLOAT = 3.4e38
"""What float32 holds."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen. Field names and meanings are those of
    ``transformers.GenerationConfig``; the two OpenAI penalties count generated tokens only.

    Raises:
        ConfigError: a value is outside its range.
    """

    max_new_tokens: int = 128
    """An answer ends earlier where the context of the target does."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_k: int = 0
    """0 is off."""
    top_p: float = 1.0
    """1 is off."""
    min_p: float = 0.0
    """0 is off."""
    repetition_penalty: float = 1.0
    """Of the tokens of prompt and answer; 1 is off."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """By token id, added before everything else."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer at the token that completes one; its text stops before it."""
    stop_token_ids: tuple[int, ...] = ()
    """End tokens besides those of the model."""
    ignore_eos: bool = False
    """Only ``stop_token_ids`` are end tokens."""
    seed: int | None = None
    """None: the engine draws one from the global generator of torch and reports it."""
    min_new_tokens: int = 0
    """Before that many, end tokens are banned; stop strings count at any time."""
    logprobs: int | None = None
    """How many alternatives to report per token, with the log-probabilities of the raw logits;
    None reports nothing."""
    draft: bool = True
    """Off: decoded plainly, beside other requests that are drafted."""
    trace: bool = False
    """Record of every cycle which tree was drafted and what was kept of it."""

    def __post_init__(self) -> None:
        check_int("max_new_tokens", self.max_new_tokens, 1)
        check_int("top_k", self.top_k, 0)
        check_int("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        if self.seed is not None:
            check_int("seed", self.seed, 0)
        if self.logprobs is not None:
            check_int("logprobs", self.logprobs, 0)
        _check_float("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ConfigError(
                f"temperature must be 0 (greedy) or at least {MIN_TEMPERATURE}, "
                f"got {self.temperature}"
            )
        _check_float("top_p", self.top_p, 0.0, 1.0)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, _LARGEST_FLOAT)
        if self.repetition_penalty == 0:
            raise ConfigError(
                f"repetition_penalty must be above 0 (1 is off), got {self.repetition_penalty!r}"
            )
        _check_float("presence_penalty", self.presence_penalty)
        _check_float("frequency_penalty", self.frequency_penalty)
        self._normalise()

    def _normalise(self) -> None:
        """Bring the collections to their declared types and check what is in them."""
        stop = (self.stop,) if isinstance(self.stop, str) else _tuple("stop", self.stop)
        for text in stop:
            if not isinstance(text, str) or not text:
                raise ConfigError(f"stop takes non-empty strings, got {text!r}")
        stop_token_ids = _tuple("stop_token_ids", self.stop_token_ids)
        for token in stop_token_ids:
            check_int("stop_token_ids", token, 0)
        if not isinstance(self.logit_bias, Mapping):
            raise ConfigError(f"logit_bias must map token ids to numbers, got {self.logit_bias!r}")
        bias = dict(self.logit_bias)
        for token, value in bias.items():
            check_int("logit_bias keys", token, 0)
            _check_float(f"logit_bias[{token}]", value)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", stop_token_ids)
        object.__setattr__(self, "logit_bias", bias)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def _tuple(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} must be a list or a tuple, got {value!r}")
    return tuple(value)


def _check_float(
    name: str, value: Any, low: float = -_LARGEST_FLOAT, high: float = _LARGEST_FLOAT
) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise ConfigError(f"{name} must be a number, in {low}..{high}, got {value!r}")
