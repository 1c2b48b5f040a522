"""Calls of tools: how they are told from the text of an answer, and how one is asked for.

What a model writes is up to its chat template. Two ways are read: a JSON object between
``<tool_call>`` tags, anywhere and as often as it likes (Hermes, Qwen), and an answer that is
nothing but such an object, or several between semicolons (Llama 3). The object has a ``name`` and
either ``arguments`` or ``parameters``.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jakiro.serve.constrain import WHITESPACE, Grammar
from jakiro.serve.conversation import Called, Tool, ToolCall
from jakiro.serve.schema import Sampled

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_BARE = '{"name":'
"""How an answer begins that is a call, without its spaces."""


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of an answer; calls by their number in it."""

    text: str
    calls: dict[int, ToolCall] = field(default_factory=dict)


class Reader:
    """Reads one answer piece by piece; where it is cut into pieces makes no difference.

    A call that cannot be read, or of a tool that is not offered, stays text. Space around calls is
    left out. Where one call is asked for at most, later ones are dropped.
    """

    def __init__(self, asked: Sampled) -> None:
        self._names = {tool.function.name for tool in asked.offered}
        self._is_single = asked.is_single_call
        self._held = ""
        self._has_said = self._is_after_call = False
        self.num_calls = 0

    def read(self, text: str, is_last: bool) -> Said:
        """What is certain now that ``text`` came; with ``is_last``, all the rest."""
        if not self._names:
            return Said(text)
        self._held += text
        if not (self._has_said or self.num_calls) and _may_be_bare(self._held):
            if not is_last:
                return Said("")
            if calls := self._bare():
                self._held = ""
                return Said("", self._numbered(calls))
        return self._tagged(is_last)

    def _tagged(self, is_last: bool) -> Said:
        said, calls = "", []
        while (start := self._held.find(OPEN)) >= 0:
            end = self._held.find(CLOSE, start)
            if end < 0 and not is_last:
                break
            # The end of the answer closes a call as well.
            end, after = (end, end + len(CLOSE)) if end >= 0 else (2 * [len(self._held)])
            call = self._call(self._held[start + len(OPEN) : end])
            if call is None:
                said += self._spaced(self._held[:after])
            else:
                said += self._spaced(self._held[:start].rstrip())
                calls.append(call)
            self._is_after_call = call is not None
            self._held = self._held[after:]
        sure = len(self._held) if is_last else self._num_sure(start)
        said += self._spaced(self._held[:sure])
        self._held = self._held[sure:]
        self._has_said = self._has_said or bool(said)
        return Said(said, self._numbered(calls))

    def _num_sure(self, start: int) -> int:
        """Characters of what is held that no call can change; ``start``: of an open one, or -1."""
        if start < 0:
            sizes = range(len(OPEN) - 1, 0, -1)
            overlap = next((size for size in sizes if self._held.endswith(OPEN[:size])), 0)
            start = len(self._held) - overlap
        return len(self._held[:start].rstrip())

    def _spaced(self, text: str) -> str:
        """``text`` without the space between it and a call before it."""
        text = text.lstrip() if self._is_after_call else text
        self._is_after_call = self._is_after_call and not text
        return text

    def _bare(self) -> list[ToolCall]:
        """The calls of which the whole answer consists; none if there is anything else."""
        calls, rest = [], self._held.strip()
        while rest:
            try:
                _, end = json.JSONDecoder().raw_decode(rest)
            except (ValueError, RecursionError):
                return []
            call = self._call(rest[:end])
            if call is None:
                return []
            calls.append(call)
            rest = rest[end:].lstrip().removeprefix(";").lstrip()
        return calls

    def _call(self, text: str) -> ToolCall | None:
        """The call that ``text`` spells, if it does."""
        try:
            value = json.loads(text)
            name, arguments = value.pop("name"), value.popitem()
            if value or name not in self._names or arguments[0] not in ("arguments", "parameters"):
                return None
            told = json.dumps(arguments[1], ensure_ascii=False, allow_nan=False)
            return ToolCall(
                id=f"call_{secrets.token_hex(12)}",
                type="function",
                function=Called(name=name, arguments=told),
            )
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            return None

    def _numbered(self, calls: list[ToolCall]) -> dict[int, ToolCall]:
        kept = calls[: 1 - min(1, self.num_calls)] if self._is_single else calls
        first, self.num_calls = self.num_calls, self.num_calls + len(kept)
        return dict(enumerate(kept, start=first))


def _may_be_bare(text: str) -> bool:
    """Whether an answer that begins so may be a call without tags."""
    start = "".join(text[:64].split())[: len(_BARE)]
    return _BARE.startswith(start)


def grammar(tools: Sequence[Tool], is_single: bool, tokenizer: Any) -> Grammar:
    """Of an answer that is a call of one of ``tools``, or of several unless ``is_single``: between
    tags where the chat template of ``tokenizer`` (of ``transformers``) speaks of them, else bare.
    The arguments follow the schema of the tool."""
    is_tagged = OPEN in str(tokenizer.chat_template)
    key, gap = ("arguments", "\n") if is_tagged else ("parameters", "; ")
    # A tag that is one token is no text to the grammar.
    added = tokenizer.get_added_vocab()
    opening, closing = (tag if tag in added else _quoted(tag) for tag in (OPEN, CLOSE))
    around = [opening, _quoted("\n"), "body", _quoted("\n"), closing] if is_tagged else ["body"]
    each = [
        f"{_quoted(f'{_quoted(tool.function.name)}, {_quoted(key)}: ')} %json {_arguments(tool)}"
        for tool in tools
    ]
    lines = [
        "start: call" + ("" if is_single else f" ({_quoted(gap)} call)*"),
        f"call: {' '.join(around)}",
        f"body: {_quoted('{' + _quoted('name') + ': ')} tool {_quoted('}')}",
        "tool: " + "\n    | ".join(each),
    ]
    return Grammar("\n".join(lines), "tools")


def _arguments(tool: Tool) -> str:
    """The schema of a tool's arguments, as JSON; a tool without one takes none."""
    given = tool.function.parameters
    if given is None:
        given = {"properties": {}, "additionalProperties": False}
    told = {"type": "object", **given, "x-guidance": {"whitespace_pattern": WHITESPACE}}
    return json.dumps(told)


def _quoted(text: str) -> str:
    return json.dumps(text)
