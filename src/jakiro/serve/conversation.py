"""Turns of a conversation, and the tools that a model may call in it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, StringConstraints

from jakiro.serve.fields import AnyText, Asked


def _begun_object(text: str) -> str:
    """Models are cut within an object, or write it wrong; clients send it back as it came."""
    if text and not text.lstrip().startswith("{"):
        raise ValueError("arguments are a JSON object, as a string")
    return text


def _of_object(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise ValueError('parameters are a schema of an object: {"type": "object", ...}')
    return schema


FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class TextPart(Asked):
    type: Literal["text"]
    text: AnyText


class Called(Asked):
    """A function with its arguments, which are JSON in a string; empty: there are none."""

    name: FunctionName
    arguments: Annotated[AnyText, AfterValidator(_begun_object)]


class ToolCall(Asked):
    id: str
    type: Literal["function"]
    function: Called

    def as_template(self) -> dict[str, Any]:
        """For a chat template: the arguments as an object, or their text where it is none."""
        arguments: Any = self.function.arguments
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments or "{}")
        return self.model_dump() | {
            "function": {"name": self.function.name, "arguments": arguments}
        }


class ChatMessage(Asked):
    """One turn of a conversation; what it means is up to the model's chat template."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: AnyText | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    def as_template(self) -> dict[str, Any]:
        """The turn for a chat template: parts joined, absent fields left out but for the content,
        with which templates reckon."""
        turn = self.model_dump(exclude_none=True) | {"content": self.content or ""}
        if isinstance(self.content, list):
            turn["content"] = "".join(part.text for part in self.content)
        if self.tool_calls:
            turn["tool_calls"] = [call.as_template() for call in self.tool_calls]
        return turn


class Function(Asked):
    """What may be called; ``parameters`` is a JSON schema of an object."""

    name: FunctionName
    description: AnyText | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_of_object)] | None = None
    strict: bool | None = None


class Tool(Asked):
    type: Literal["function"]
    function: Function

    def as_template(self) -> dict[str, Any]:
        """For a chat template, as it was given."""
        return self.model_dump(exclude_unset=True)


class FunctionChoice(Asked):
    name: str


class NamedTool(Asked):
    """The one tool to call."""

    type: Literal["function"]
    function: FunctionChoice
