"""What may be asked: the OpenAI API, with vLLM's extra sampling fields and one of our own.

Fields that would change the answer and are not listed here are refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from jakiro.serve.conversation import ChatMessage, NamedTool, Tool
from jakiro.serve.fields import AnyText, Asked, NonEmpty
from jakiro.serve.idle import Idle

MAX_CHOICES = 16
"""``n``, and prompts of one request: each is a row of its own."""
MAX_TOKENS = 2**31 - 1
NUM_SEEDS = 2**63


class StreamOptions(Asked):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None
    continuous_usage_stats: bool | None = None


class Extension(Asked):
    """Our own field of a request, ``jakiro``."""

    deadline_s: float | None = Field(None, gt=0)
    """Seconds from now after which the answer ends with what there is."""
    draft: bool = True
    """Off: the same answer by plain decoding."""
    trace: bool = False
    """Say of every streamed token how it came, and show every draft tree."""


class NamedSchema(Asked):
    name: NonEmpty
    description: str | None = None
    json_schema: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Asked):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema, and neither without it")
        return self


class Sampled(Idle):
    """What chat and text completions have in common. ``null`` means the default."""

    model: NonEmpty
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-NUM_SEEDS, lt=NUM_SEEDS)
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    stop: NonEmpty | Annotated[list[NonEmpty], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKENS)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    response_format: ResponseFormat | None = None
    best_of: int | None = None
    jakiro: Extension | None = None

    @field_validator("best_of")
    @classmethod
    def _check_best_of(cls, value: int | None, info: ValidationInfo) -> int | None:
        """Nothing is left to choose where all are shown."""
        wanted = info.data.get("n") or 1
        if value not in (None, wanted):
            raise ValueError(f"must be n, which is {wanted}, or left out")
        return value

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def num_wanted(self) -> int | None:
        """Tokens of an answer at most; None: as many as there is room for."""
        return self.max_tokens

    @property
    def num_alternatives(self) -> int | None:
        """Alternatives to report per token; None: no log-probabilities at all."""
        return None

    @property
    def shows_usage(self) -> bool:
        """The stream ends with the counts of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def counts_all_along(self) -> bool:
        """Every chunk of the stream carries the counts so far."""
        return self.shows_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )

    @property
    def offered(self) -> Sequence[Tool]:
        """Tools whose calls are looked for in the answer."""
        return ()

    @property
    def forced(self) -> Sequence[Tool] | None:
        """Tools of which one has to be called; None: none has to."""
        return None

    @property
    def is_single_call(self) -> bool:
        """At most one call is wanted."""
        return False

    @property
    def wants_json(self) -> bool:
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def deadline_s(self) -> float | None:
        return None if self.jakiro is None else self.jakiro.deadline_s

    @property
    def is_traced(self) -> bool:
        return self.jakiro is not None and self.jakiro.trace

    @property
    def is_drafted(self) -> bool:
        return self.jakiro is None or self.jakiro.draft


class ChatRequest(Sampled):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @field_validator("top_logprobs")
    @classmethod
    def _check_top_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("needs logprobs: true")
        return value

    @property
    def num_wanted(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def tools_told(self) -> Sequence[Tool]:
        """Tools that the model is told of."""
        return () if self.tool_choice == "none" else self.tools or ()

    @property
    def offered(self) -> Sequence[Tool]:
        return () if self.wants_json else self.tools_told

    @property
    def forced(self) -> Sequence[Tool] | None:
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            return [tool for tool in self.tools_told if tool.function.name == name]
        return self.tools_told if self.tool_choice == "required" else None

    @property
    def is_single_call(self) -> bool:
        return self.parallel_tool_calls is False or isinstance(self.tool_choice, NamedTool)


class CompletionRequest(Sampled):
    """``POST /v1/completions``."""

    prompt: (
        AnyText
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[AnyText], Field(min_length=1)]
        | Annotated[list[list[int]], Field(min_length=1)]
    )
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or more texts or lists of token ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt

    @property
    def num_wanted(self) -> int:
        return self.max_tokens or 16

    @property
    def num_alternatives(self) -> int | None:
        return self.logprobs


class TokenizeRequest(Asked):
    """``POST /tokenize``: a text or a conversation."""

    model: NonEmpty | None = None
    prompt: AnyText | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Asked):
    """``POST /detokenize``."""

    model: NonEmpty | None = None
    tokens: list[int]
