"""Calls of tools are told from text, wherever an answer is cut, and can be asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import example, given
from hypothesis import strategies as st

import jakiro
from jakiro.engine.scheduler import Scheduler
from jakiro.sampling.params import SamplingParams
from jakiro.serve import calls
from jakiro.serve.app import create_app
from jakiro.serve.constrain import Grammars
from jakiro.serve.schema import ChatRequest
from jakiro.serve.settings import Settings
from tests.serve.conftest import HELLO, NAME, TEMPLATE, chat, events

CHAT = "/v1/chat/completions"
LOOK = {
    "name": "look",
    "description": "Look at a thing.",
    "parameters": {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/thing"}},
        "required": ["at"],
        "additionalProperties": False,
        "$defs": {"thing": {"enum": ['"sea"', "größe", 7]}},
    },
}
TOOLS = [{"type": "function", "function": each} for each in (LOOK, {"name": "wait"})]
CALL = '{"name": "look", "arguments": {"at": "é {\\"a\\"}"}}'
BARE = '{"name": "wait", "parameters": {}}'
SEA, WAIT = ("look", {"at": 'é {"a"}'}), ("wait", {})


def tagged(call: str) -> str:
    return f"<tool_call>\n{call}\n</tool_call>"


CUT = ("look", '{"at": "é {\\"')
READINGS: list[tuple[str, str, list[Any]]] = [
    ("hello <b> {x}\n", "hello <b> {x}\n", []),
    (f"I look.\n\n{tagged(CALL)}\n", "I look.", [SEA]),
    (f"{tagged(CALL)}\n{tagged(BARE)} so\n", "so\n", [SEA, WAIT]),
    (f"a {tagged(CALL)}\n\n{tagged('{')} b", f"a{tagged('{')} b", [SEA]),
    (f"a\n{tagged(CALL.replace('look', 'fly'))}", f"a\n{tagged(CALL.replace('look', 'fly'))}", []),
    (f"a\n{tagged(CALL)[:-12]}", "a", [SEA]),
    (f"a\n{tagged(CALL)[:-5]}", "a", [SEA]),
    (f"a\n{tagged(CALL)[:-20]}", "a", [CUT]),
    (f"a\n{tagged(CALL)[:24]}", f"a\n{tagged(CALL)[:24]}", []),
    (tagged('{"arguments": {}, "name": "wait"}'), "", [WAIT]),
    (tagged('{"name": "wait", "arguments": {"a": !}}'), "!}}\n</tool_call>", [("wait", '{"a": ')]),
    ("a <tool_", "a <tool_", []),
    (f" {CALL}", "", [SEA]),
    (f"{CALL} ;\n{BARE}\n", "", [SEA, WAIT]),
    (f"{CALL} is how", f"{CALL} is how", []),
    ('{"name": "king"}', '{"name": "king"}', []),
    (
        '{"name": "wait", "parameters": {}, "x": 1}',
        '{"name": "wait", "parameters": {}, "x": 1}',
        [],
    ),
    ('{"name": "wait", "parameters": [1e999]}', '{"name": "wait", "parameters": [1e999]}', []),
    ('{"name": "wait", "parameters": {"a": 1e999}}',) * 2 + ([],),
    ('{"name": "wait", "parameters": {"a": "\\ud800"}}',) * 2 + ([],),
    ('{"name": {}, "x": 0}', '{"name": {}, "x": 0}', []),
    (tagged("[1]"), tagged("[1]"), []),
    ("", "", []),
]


def asked_for(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate(chat(tools=TOOLS, **fields))


def joined(asked: ChatRequest, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Text and calls of an answer that is read piece by piece, and then its end."""
    reader = calls.Reader(asked)
    found = [reader.read(piece, is_last=False) for piece in pieces]
    found.append(reader.read("", is_last=True))
    made: dict[int, list[calls.Call]] = {}
    for each in found:
        for number, call in each.calls.items():
            made.setdefault(number, []).append(call)
    assert list(made) == list(range(len(made)))
    for first, *more in made.values():
        assert first.name and first.id
        assert all(each.arguments and not each.name and not each.id for each in more)
    told = [(str(own[0].name), "".join(each.arguments for each in own)) for own in made.values()]
    return "".join(each.text for each in found), told


@pytest.mark.parametrize(("text", "said", "called"), READINGS)
def test_where_an_answer_is_cut_makes_no_difference(
    text: str, said: str, called: list[Any]
) -> None:
    cuts = [[text], list(text), *([text[:cut], text[cut:]] for cut in range(len(text)))]
    for pieces in cuts:
        found, made = joined(asked_for(), pieces)
        assert found == said
        assert [
            (name, told if isinstance(wanted, str) else json.loads(told))
            for (name, told), (_, wanted) in zip(made, called, strict=True)
        ] == called


QUOTING = '{"name": "wait", "parameters": {"a": "<tool_call>"}}'
PARTS = (
    "<tool_call>",
    "</tool_call>",
    "</tool_",
    "\n",
    " ",
    "; ",
    CALL,
    BARE,
    CALL[:-1],
    CALL[:30],
)
PARTS += ('{"name": "wait", "arguments": ', "{", "}", '{"a": [1, {"b": "', '\\"', '"', "]", "so")


@given(
    st.lists(st.sampled_from(PARTS), max_size=8).map("".join),
    st.lists(st.integers(0, 160), max_size=6),
    st.sampled_from([{}, {"parallel_tool_calls": False}, {"tool_choice": "required"}]),
)
@example(QUOTING, [12], {"tool_choice": "required"})
def test_pieces_join_to_what_the_whole_answer_says(
    text: str, cuts: list[int], fields: dict[str, Any]
) -> None:
    asked = asked_for(**fields)
    said = calls.Reader(asked).read(text, is_last=True)
    whole = said.text, [(call.name, call.arguments) for call in said.calls.values()]
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    assert joined(asked, [text[i:j] for i, j in pairwise(places)]) == whole
    assert joined(asked, list(text)) == whole
    if not whole[1] and not fields:
        assert whole[0] == text
    if text == QUOTING:
        assert whole == ("", [("wait", '{"a": "<tool_call>"}')])


@pytest.mark.parametrize(
    ("text", "fields"),
    [(tagged(CALL), {}), (f"{CALL}; {BARE}", {"tool_choice": "required"})],
    ids=["tagged", "bare"],
)
def test_a_call_is_told_while_it_is_written(text: str, fields: dict[str, Any]) -> None:
    reader = calls.Reader(asked_for(**fields))
    begins = text.index('{"at"')
    end = text.index("}}") + 1
    assert not any(reader.read(sign, is_last=False).calls for sign in text[:begins])
    told = [reader.read(sign, is_last=False).calls.get(0) for sign in text[begins:end]]
    assert told[0] is not None and (told[0].name, told[0].arguments) == ("look", "{")
    # A backslash waits for what it stands before.
    waits = [each is None for each in told]
    assert waits == [sign == "\\" for sign in text[begins:end]] and sum(waits) == 2


def test_only_what_is_asked_for_is_a_call() -> None:
    twice = tagged(CALL) + tagged(BARE)
    for fields, num_calls in (
        ({"tools": TOOLS}, 2),
        ({"tools": TOOLS, "parallel_tool_calls": False}, 1),
        ({"tools": TOOLS, "tool_choice": "none"}, 0),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, 0),
        ({}, 0),
    ):
        asked = ChatRequest.model_validate(chat(**fields))
        said = calls.Reader(asked).read(twice, is_last=True)
        assert (len(said.calls), said.text) == (num_calls, "" if num_calls else twice)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ('{"at": "größe"}', {"at": "größe"}),
        ("", {}),
        ('{"at": "grö', '{"at": "grö'),
    ],
)
def test_the_template_sees_earlier_calls_as_objects(given: str, seen: Any) -> None:
    """Those that were cut as they are."""
    function = {"name": "look", "arguments": given}
    call = {"id": "1", "type": "function", "function": function}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    (message,) = ChatRequest.model_validate(chat(messages=[turn])).messages
    told = call | {"function": {"name": "look", "arguments": seen}}
    assert message.as_template() == turn | {"content": "", "tool_calls": [told]}
    asked = ChatRequest.model_validate(chat(tools=TOOLS))
    assert [tool.as_template() for tool in asked.tools_told] == TOOLS


@pytest.fixture(scope="module")
def place(request: Any, model: Any, speaker: Any) -> Iterator[tuple[TestClient, Any]]:
    """A server whose template speaks of tags, which are tokens, or does not; its tokenizer."""
    own = deepcopy(speaker)
    if request.param == "tagged":
        own.add_tokens(["<tool_call>", "</tool_call>"])
        own.chat_template = "{# <tool_call> #}" + TEMPLATE
    engine = jakiro.load(model, model, tokenizer=own, tree="dynamic:3,3,8", max_batch_size=2)
    app = create_app(Scheduler(engine), Settings(NAME))
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found, own


def told(functions: list[Any]) -> list[tuple[str, Any]]:
    return [(each["name"], json.loads(each["arguments"])) for each in functions]


ASKED: list[Any] = [
    ("tagged", {"tool_choice": "required"}, ("look", "wait")),
    ("bare", {"tool_choice": "required", "parallel_tool_calls": False}, ("look", "wait")),
    ("bare", {"tool_choice": TOOLS[1]}, ("wait",)),
]


@pytest.mark.parametrize(("place", "fields", "names"), ASKED, indirect=["place"])
def test_a_call_can_be_asked_for(
    place: tuple[TestClient, Any],
    model: Any,
    fields: dict[str, Any],
    names: tuple[str, ...],
) -> None:
    """It is drafted, and what plain decoding under its grammar gives."""
    client, speaker = place
    law = {"temperature": 1.2, "top_p": 0.95, "seed": 4}
    body = chat(tools=TOOLS, max_tokens=100, **law, **fields)
    answer = client.post(CHAT, json=body).json()
    (whole,) = answer["choices"]
    made = told([call["function"] for call in whole["message"]["tool_calls"]])
    assert (whole["finish_reason"], whole["message"]["content"]) == ("tool_calls", None)
    assert all(name in names for name, _ in made)
    assert all(given == {} if name == "wait" else set(given) == {"at"} for name, given in made)
    assert whole["jakiro"]["num_accepted"] > 0
    *parts, last = events(client.post(CHAT, json=body | {"stream": True}).text)
    deltas = [part["choices"][0]["delta"] for part in (*parts, last)]
    streamed = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert len(streamed) > len(made), "arguments came in one part"
    functions: list[dict[str, str]] = []
    for call in streamed:
        if "id" in call:
            functions.append({"name": call["function"].pop("name"), "arguments": ""})
        assert call["index"] == len(functions) - 1
        functions[-1]["arguments"] += call["function"].pop("arguments")
        assert not call["function"]
    assert functions == [call["function"] for call in whole["message"]["tool_calls"]]
    assert not any(delta.get("content") for delta in deltas)
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    asked = ChatRequest.model_validate(body)
    assert asked.forced is not None
    alone = jakiro.load(model, "none", tokenizer=speaker, max_batch_size=1)
    grammars = Grammars(speaker, alone.target.vocab_size, sorted(alone.eos_ids))
    compiled = grammars.compile(calls.grammar(asked.forced, asked.is_single_call, speaker))
    ids = client.post("/tokenize", json={"messages": HELLO, "tools": TOOLS}).json()["tokens"]
    params = SamplingParams(max_new_tokens=100, **law)
    (plain,) = alone.generate([ids], params, processors=[compiled.constraint(len(ids))])
    assert len(plain.token_ids) == answer["usage"]["completion_tokens"]
    said = calls.Reader(asked).read(plain.text, is_last=True)
    assert told([call.told()["function"] for call in said.calls.values()]) == made
