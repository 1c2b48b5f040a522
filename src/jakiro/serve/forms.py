"""The two shapes of an answer: of chat completions and of the older text completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel

from jakiro.engine.request import Completion, TokenLogprobs
from jakiro.serve.answers import (
    AnswerMessage,
    ChatAnswer,
    ChatChoice,
    ChatLogprobs,
    Drafting,
    FinishReason,
    TextAnswer,
    TextChoice,
    TextLogprobs,
    Usage,
)
from jakiro.serve.tokens import Tokens


@dataclass(frozen=True)
class Head:
    """What all objects of one answer have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class Form(Protocol):
    """How answers are written, whole or in parts."""

    part_name: str
    """The ``object`` of a part."""
    opening: dict[str, Any] | None
    """What a stream says of a choice before it has any text."""

    def part(self, text: str) -> dict[str, Any]:
        """The field of a choice that carries new text."""

    def logprobs(self, entries: Sequence[TokenLogprobs], offset: int) -> BaseModel:
        """Of tokens that come after ``offset`` characters of the answer."""

    def whole(self, head: Head, answers: Sequence[Completion], usage: Usage) -> BaseModel:
        """All choices, finished."""


class ChatForm:
    """Of ``/v1/chat/completions``."""

    part_name = "chat.completion.chunk"

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.opening: dict[str, Any] | None = {"delta": {"role": "assistant", "content": ""}}

    def part(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def logprobs(self, entries: Sequence[TokenLogprobs], offset: int) -> ChatLogprobs:
        return self._tokens.chat_logprobs(entries)

    def whole(self, head: Head, answers: Sequence[Completion], usage: Usage) -> ChatAnswer:
        choices = [
            ChatChoice(
                index=index,
                message=AnswerMessage(content=done.text),
                logprobs=None if done.logprobs is None else self.logprobs(done.logprobs, 0),
                finish_reason=_reason(done),
                jakiro=Drafting.of(done.stats, done.seed),
            )
            for index, done in enumerate(answers)
        ]
        return ChatAnswer(**vars(head), choices=choices, usage=usage)


class TextForm:
    """Of ``/v1/completions``."""

    part_name = "text_completion"

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.opening: dict[str, Any] | None = None

    def part(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def logprobs(self, entries: Sequence[TokenLogprobs], offset: int) -> TextLogprobs:
        return self._tokens.text_logprobs(entries, offset)

    def whole(self, head: Head, answers: Sequence[Completion], usage: Usage) -> TextAnswer:
        choices = [
            TextChoice(
                index=index,
                text=done.text,
                logprobs=None if done.logprobs is None else self.logprobs(done.logprobs, 0),
                finish_reason=_reason(done),
                jakiro=Drafting.of(done.stats, done.seed),
            )
            for index, done in enumerate(answers)
        ]
        return TextAnswer(**vars(head), choices=choices, usage=usage)


def _reason(done: Completion) -> FinishReason:
    """Of an answer that did not fail."""
    assert done.finish_reason in ("stop", "length"), done.finish_reason
    return done.finish_reason
