"""What is answered: the objects of the OpenAI API, and what a choice says of its drafting."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from jakiro.engine.request import Completion

FinishReason = Literal["stop", "length", "tool_calls"]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, num_prompt: int, num_answer: int) -> Usage:
        return cls(
            prompt_tokens=num_prompt,
            completion_tokens=num_answer,
            total_tokens=num_prompt + num_answer,
        )


class Drafting(BaseModel):
    """How one answer was drafted: the extra field ``jakiro`` of a finished choice."""

    tau: float
    """Tokens per forward of the target."""
    num_forwards: int
    num_accepted: int
    """Drafted tokens that were kept."""
    accepted_by_depth: list[int]
    offered_by_depth: list[int]
    num_reused: int
    """Tokens of the prompt that an earlier request had fed."""
    prefill_ms: float
    draft_ms: float
    verify_ms: float
    seed: int
    timed_out: bool
    """The answer was cut by its deadline."""

    @classmethod
    def of(cls, done: Completion) -> Drafting:
        stats = done.stats
        return cls(
            tau=round(stats.tau, 4),
            num_forwards=stats.num_forwards,
            num_accepted=sum(stats.accepted_by_depth),
            accepted_by_depth=stats.accepted_by_depth,
            offered_by_depth=stats.offered_by_depth,
            num_reused=stats.num_reused,
            prefill_ms=round(stats.prefill_ms, 3),
            draft_ms=round(stats.draft_ms, 3),
            verify_ms=round(stats.verify_ms, 3),
            seed=done.seed,
            timed_out=done.finish_reason == "deadline",
        )


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(BaseModel):
    """The older form, of text completions."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class MadeFunction(BaseModel):
    name: str
    arguments: str
    """JSON; cut or wrong where the model wrote it so."""


class MadeCall(BaseModel):
    id: str
    type: Literal["function"]
    function: MadeFunction


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    """None where the answer is nothing but calls."""
    refusal: None = None
    tool_calls: list[MadeCall] | None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    jakiro: Drafting


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason
    jakiro: Drafting


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class TextAnswer(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "jakiro"
    max_model_len: int


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class TokenList(BaseModel):
    """Of ``/tokenize``."""

    tokens: list[int]
    count: int
    max_model_len: int


class Text(BaseModel):
    """Of ``/detokenize``."""

    prompt: str


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Version(BaseModel):
    version: str


class Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Of every error."""

    error: Problem


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request cannot be answered"},
    "5XX": {"model": ErrorAnswer, "description": "The server cannot answer now"},
}
"""For the OpenAPI document."""
