"""Calls of tools: how they are told from the text of an answer, and how one is asked for.

What a model writes is up to its chat template. Two ways are read: a JSON object between
``<tool_call>`` tags, anywhere and as often as it likes (Hermes, Qwen), and an answer that is
nothing but such an object, or several between semicolons (Llama 3). The object has a ``name`` and
either ``arguments`` or ``parameters``.

Behind a tag, or where the answer was made to be a call, an object that begins with the name of a
tool that is offered and the brace of its arguments is a call, whatever follows: from there on its
arguments are told as they come, as the model wrote them. Any other object is read when it is whole.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jakiro.serve.constrain import WHITESPACE, Grammar
from jakiro.serve.conversation import Tool
from jakiro.serve.schema import Sampled

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_BARE = '{"name":'
"""How an answer begins that is a call, without its spaces."""
_HEAD = re.compile(
    r'[\s;]*\{\s*"name"\s*:\s*"([\w.-]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_BARE_END, _TAGGED_END = re.compile(r"\s*\}"), re.compile(rf"\s*\}}\s*{CLOSE}")
_QUOTED = re.compile(r'(?:[^"\\\x00-\x1f]|\\.)*')
_PLAIN = re.compile(r"[\s\w:,.+-]*")
"""What JSON has outside of strings, without brackets."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call, or more of one: the first piece of each has its ``name`` and ``id``."""

    arguments: str
    """JSON, in pieces; cut or wrong where the model wrote it so."""
    name: str | None = None
    id: str | None = None

    @classmethod
    def new(cls, name: str, arguments: str) -> Call:
        return cls(arguments, name, f"call_{secrets.token_hex(12)}")

    def told(self) -> dict[str, Any]:
        """The fields of the API."""
        if self.name is None:
            return {"function": {"arguments": self.arguments}}
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(slots=True)
class Said:
    """A piece of an answer; calls by their number in it."""

    text: str = ""
    calls: dict[int, Call] = field(default_factory=dict)

    def add(self, number: int, call: Call) -> None:
        """``call``, or more of the one that is here."""
        known = self.calls.get(number)
        if known is not None:
            call = Call(known.arguments + call.arguments, known.name, known.id)
        self.calls[number] = call


class Reader:
    """Reads one answer piece by piece; where it is cut into pieces makes no difference.

    What is no call, or one of a tool that is not offered, stays text. Space around calls is left
    out. Where one call is asked for at most, later ones are dropped.
    """

    def __init__(self, asked: Sampled) -> None:
        self._names = {tool.function.name for tool in asked.offered}
        self._is_single, self._is_forced = asked.is_single_call, asked.forced is not None
        self._held = ""
        self._has_said = self._is_after_call = self._is_tagged = False
        self._said = Said()
        # What the held text is read as next; says whether there is more to read.
        self._read: Callable[[bool], bool] = self._read_text
        self._arguments = _Arguments()
        self.num_calls = 0

    def read(self, text: str, is_last: bool) -> Said:
        """What is certain now that ``text`` came; with ``is_last``, all the rest."""
        if not self._names:
            return Said(text)
        self._held += text
        self._said = Said()
        while self._read(is_last):
            pass
        return self._said

    def _read_text(self, is_last: bool) -> bool:
        is_first = not (self._is_forced or self._has_said or self.num_calls)
        if is_first and _may_be_bare(self._held):
            if not is_last:
                return False
            if calls := self._bare():
                self._held = ""
                for call in calls:
                    self._tell(call)
        # A tag in the arguments of a call without tags is text like any other.
        head = self._head(0) if self._is_forced else None
        start = self._held.find(OPEN) if head is None else -1
        if start >= 0:
            head = self._head(start + len(OPEN))
        if head is not None:
            self._say(self._held[: max(start, 0)].rstrip())
            self._tell(Call.new(head[1], ""))
            self._held = self._held[head.end() :]
            self._is_tagged, self._arguments = start >= 0, _Arguments()
            self._read = self._read_arguments
            return True
        if start >= 0 and self._read_whole(start, is_last):
            return True
        sure = len(self._held) if is_last else 0 if self._is_forced else self._num_sure(start)
        self._say(self._held[:sure])
        self._held = self._held[sure:]
        return False

    def _head(self, place: int) -> re.Match[str] | None:
        """How a call of an offered tool begins, if one does there."""
        found = _HEAD.match(self._held, place)
        return found if found is not None and found[1] in self._names else None

    def _read_whole(self, start: int, is_last: bool) -> bool:
        """What is between the tags from ``start`` on, once it is all there."""
        end = self._held.find(CLOSE, start)
        if end < 0 and not is_last:
            return False
        # The end of the answer closes a call as well.
        end, after = (end, end + len(CLOSE)) if end >= 0 else (2 * [len(self._held)])
        call = self._call(self._held[start + len(OPEN) : end])
        if call is None:
            self._say(self._held[:after])
            self._is_after_call = False
        else:
            self._say(self._held[:start].rstrip())
            self._tell(call)
        self._held = self._held[after:]
        return True

    def _read_arguments(self, is_last: bool) -> bool:
        size, is_over = self._arguments.take(self._held)
        if is_last and not is_over:
            size = len(self._held)
        if size:
            self._more(Call(self._held[:size]))
        self._held = self._held[size:]
        if is_over:
            self._read = self._read_end
        return is_over

    def _read_end(self, is_last: bool) -> bool:
        """What closes a call; anything else is text."""
        wanted = "}" + CLOSE * self._is_tagged
        found = "".join(self._held.split())
        if end := (_TAGGED_END if self._is_tagged else _BARE_END).match(self._held):
            self._held = self._held[end.end() :]
        elif wanted.startswith(found) and found != wanted:
            if not is_last:
                return False
            self._held = ""
        self._read = self._read_text
        return True

    def _num_sure(self, start: int) -> int:
        """Characters of what is held that no call can change; ``start``: of an open one, or -1."""
        if start < 0:
            sizes = range(len(OPEN) - 1, 0, -1)
            overlap = next((size for size in sizes if self._held.endswith(OPEN[:size])), 0)
            start = len(self._held) - overlap
        return len(self._held[:start].rstrip())

    def _say(self, text: str) -> None:
        """Tell ``text``, without the space between it and a call before it."""
        text = text.lstrip() if self._is_after_call else text
        self._is_after_call = self._is_after_call and not text
        self._said.text += text
        self._has_said = self._has_said or bool(text)

    def _tell(self, call: Call) -> None:
        """Begin a call."""
        self.num_calls += 1
        self._is_after_call = True
        self._more(call)

    def _more(self, call: Call) -> None:
        if not (self._is_single and self.num_calls > 1):
            self._said.add(self.num_calls - 1, call)

    def _bare(self) -> list[Call]:
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

    def _call(self, text: str) -> Call | None:
        """The call that ``text`` spells, if it does."""
        try:
            value = json.loads(text)
            name, (key, given) = value.pop("name"), value.popitem()
            if value or name not in self._names or key not in ("arguments", "parameters"):
                return None
            told = json.dumps(given, ensure_ascii=False, allow_nan=False)
            told.encode()
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            return None
        return Call.new(name, told) if isinstance(given, dict) else None


class _Arguments:
    """Finds the end of a JSON object that comes in pieces, by its strings and brackets."""

    def __init__(self) -> None:
        self._open = ""
        self._is_quoted = False

    def take(self, text: str) -> tuple[int, bool]:
        """How many characters of ``text``, which goes on where the last call stopped, belong to the
        object; and whether it ends there, because it is whole or what follows is no JSON. A single
        backslash at the end is left for later."""
        at = 0
        while True:
            found = (_QUOTED if self._is_quoted else _PLAIN).match(text, at)
            assert found is not None, "both patterns match nothing at all, too"
            at = found.end()
            if at == len(text) or text[at:] == "\\":
                return at, False
            sign = text[at]
            if sign == '"':
                self._is_quoted = not self._is_quoted
            elif self._is_quoted:
                return at, True
            elif sign in "{[":
                self._open += "}" if sign == "{" else "]"
            elif self._open.endswith(sign):
                self._open = self._open[:-1]
            else:
                return at, True
            at += 1
            if not self._open:
                return at, True


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
