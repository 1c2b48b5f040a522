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
    MadeCall,
    TextAnswer,
    TextChoice,
    TextLogprobs,
    Usage,
)
from jakiro.serve.calls import Reader, Said
from jakiro.serve.schema import Sampled
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

    def part(self, said: Said) -> dict[str, Any]:
        """The field of a choice that carries what is new."""

    def logprobs(self, entries: Sequence[TokenLogprobs], offset: int) -> BaseModel:
        """Of tokens that come after ``offset`` characters of the answer."""

    def whole(
        self, head: Head, asked: Sampled, answers: Sequence[Completion], usage: Usage
    ) -> BaseModel:
        """All choices, finished."""


class ChatForm:
    """Of ``/v1/chat/completions``."""

    part_name = "chat.completion.chunk"

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.opening: dict[str, Any] | None = {"delta": {"role": "assistant", "content": ""}}

    def part(self, said: Said) -> dict[str, Any]:
        delta: dict[str, Any] = {"content": said.text} if said.text else {}
        if said.calls:
            delta["tool_calls"] = [
                {"index": number, **call.told()} for number, call in said.calls.items()
            ]
        return {"delta": delta}

    def logprobs(self, entries: Sequence[TokenLogprobs], offset: int) -> ChatLogprobs:
        return self._tokens.chat_logprobs(entries)

    def whole(
        self, head: Head, asked: Sampled, answers: Sequence[Completion], usage: Usage
    ) -> ChatAnswer:
        choices = [self._choice(index, asked, done) for index, done in enumerate(answers)]
        return ChatAnswer(**vars(head), choices=choices, usage=usage)

    def _choice(self, index: int, asked: Sampled, done: Completion) -> ChatChoice:
        said = Reader(asked).read(done.text, is_last=True)
        message = AnswerMessage(
            content=said.text or (None if said.calls else ""),
            tool_calls=[MadeCall(**call.told()) for call in said.calls.values()] or None,
        )
        return ChatChoice(
            index=index,
            message=message,
            logprobs=None if done.logprobs is None else self.logprobs(done.logprobs, 0),
            finish_reason=reason(done, len(said.calls)),
            jakiro=Drafting.of(done),
        )


class TextForm:
    """Of ``/v1/completions``."""

    part_name = "text_completion"

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.opening: dict[str, Any] | None = None

    def part(self, said: Said) -> dict[str, Any]:
        return {"text": said.text}

    def logprobs(self, entries: Sequence[TokenLogprobs], offset: int) -> TextLogprobs:
        return self._tokens.text_logprobs(entries, offset)

    def whole(
        self, head: Head, asked: Sampled, answers: Sequence[Completion], usage: Usage
    ) -> TextAnswer:
        choices = [
            TextChoice(
                index=index,
                text=done.text,
                logprobs=None if done.logprobs is None else self.logprobs(done.logprobs, 0),
                finish_reason=reason(done, 0),
                jakiro=Drafting.of(done),
            )
            for index, done in enumerate(answers)
        ]
        return TextAnswer(**vars(head), choices=choices, usage=usage)


def reason(done: Completion, num_calls: int) -> FinishReason:
    """Of an answer that did not fail. One that was cut by a deadline has no name in this API but
    that of one cut by a limit."""
    assert done.finish_reason in ("stop", "length", "deadline"), done.finish_reason
    if done.finish_reason != "stop":
        return "length"
    return "tool_calls" if num_calls else "stop"
