"""Whatever is sent, the answer has the shape of the OpenAI API and says what is wrong; no 500."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Mount

import jakiro
from jakiro.engine.engine import Engine
from jakiro.engine.scheduler import Scheduler
from jakiro.errors import ConfigError
from jakiro.sampling.params import SamplingParams
from jakiro.serve.app import create_app
from jakiro.serve.settings import Settings
from tests.serve.conftest import NAME, chat

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def text(**fields: Any) -> dict[str, Any]:
    return {"model": NAME, "prompt": "hello", "max_tokens": 4} | fields


def schema(value: Any) -> dict[str, Any]:
    named = {"name": "x", "schema": value}
    return chat(response_format={"type": "json_schema", "json_schema": named})


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def forced(**more: Any) -> dict[str, Any]:
    return chat(tools=[tool("a", **more)], tool_choice="required")


def called(arguments: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [tool("a", arguments=arguments) | {"id": "1"}]}


def problem(found: Any, status: int) -> dict[str, Any]:
    """The error of a response, which must have its shape."""
    assert found.status_code == status, found.text
    assert found.headers["content-type"] == "application/json"
    (name, error), *others = found.json().items()
    assert name == "error" and not others
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return dict(error)


BAD_FIELDS = [
    (CHAT, chat(model="other"), 404, "no model 'other'"),
    (CHAT, chat(messages=[]), 400, "at least 1 item"),
    (CHAT, chat(messages=[{"role": "king", "content": "x"}]), 400, "messages.0.role"),
    (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "content"),
    (CHAT, chat(messages="hello"), 400, "messages"),
    (CHAT, chat(temperature="hot"), 400, "temperature"),
    (CHAT, chat(temperature=-1), 400, "temperature"),
    (CHAT, chat(temperature=float("nan")), 400, "finite"),
    (CHAT, chat(top_p=2), 400, "top_p"),
    (CHAT, chat(n=0), 400, "n: "),
    (CHAT, chat(n=17), 400, "n: "),
    (CHAT, chat(seed=-(2**63) - 1), 400, "seed"),
    (CHAT, chat(seed=2**70), 400, "seed"),
    (CHAT, chat(max_tokens=0), 400, "max_tokens"),
    (CHAT, chat(max_tokens=True), 400, "max_tokens"),
    (CHAT, chat(max_tokens=10**30), 400, "max_tokens"),
    (CHAT, chat(min_tokens=99), 400, "min_tokens is 99"),
    (CHAT, chat(stop=[""]), 400, "stop"),
    (CHAT, chat(logit_bias={"5": 1e9}), 400, "logit_bias"),
    (CHAT, chat(logit_bias={"-5": 1}), 400, "'-5'"),
    (CHAT, chat(logit_bias={"5000": 1}), 400, "token 5000"),
    (CHAT, chat(top_logprobs=21, logprobs=True), 400, "top_logprobs"),
    (CHAT, chat(audio={}), 400, "audio: this field is unknown or not supported"),
    (CHAT, chat(tool_choice="some"), 400, "tool_choice"),
    (CHAT, chat(tool_choice="required"), 400, "not among tools"),
    (CHAT, chat(tools=[tool("a b")]), 400, "tools.0.function.name"),
    (CHAT, chat(tools=[tool("a", parameters={"type": "array"})]), 400, "schema of an object"),
    (CHAT, chat(tools=[tool("a")], tool_choice={"type": "function"}), 400, "tool_choice"),
    (CHAT, chat(tools=[tool("a")], tool_choice=tool("b")), 400, "not among tools"),
    (CHAT, forced(parameters={"type": "object", "required": 3}), 400, "tools: the schema"),
    (CHAT, forced() | {"response_format": {"type": "json_object"}}, 400, "exclude each other"),
    (CHAT, forced() | {"min_tokens": 3}, 400, "min_tokens"),
    (CHAT, chat(messages=[called("[" * 9000)]), 400, "arguments are a JSON object"),
    (CHAT, chat(messages=[called("3")]), 400, "arguments are a JSON object"),
    (CHAT, chat(jakiro={"deadline_s": 0}), 400, "deadline_s"),
    (CHAT, chat(messages=[{"role": "user", "content": "x" * 5000}]), 400, "4095 at most"),
    (CHAT, schema({"type": "nonsense"}), 400, "nonsense"),
    (CHAT, schema({"type": "integer", "minimum": 5, "maximum": 3}), 400, "Unsatisfiable"),
    (CHAT, schema({"$ref": "http://127.0.0.1/x"}), 400, "schema"),
    (CHAT, schema({"enum": [float("inf")]}), 400, "schema"),
    (CHAT, schema(3), 400, "schema"),
    (CHAT, schema({"type": "object"}) | {"ignore_eos": True}, 400, "ignore_eos"),
    (CHAT, chat(response_format={"type": "xml"}), 400, "response_format"),
    (CHAT, chat(response_format={"type": "json_schema"}), 400, "response_format"),
    (CHAT, schema({}) | {"stream_options": {"include_obfuscation": True}}, 400, "obfuscation"),
    (TEXT, text(prompt=""), 400, "empty"),
    (TEXT, text(prompt=[]), 400, "prompt"),
    (TEXT, text(prompt=[[]]), 400, "empty"),
    (TEXT, text(prompt=[10**25]), 400, "not in the vocabulary"),
    (TEXT, text(prompt=[-1]), 400, "not in the vocabulary"),
    (TEXT, text(prompt=None), 400, "prompt"),
    (TEXT, text(prompt=["a"] * 9, n=2), 400, "18 answers"),
    (TEXT, text(prompt=["a"] * 9), 400, "makes 8 at most"),
    (TEXT, text(echo=True), 400, "echo"),
    (TEXT, text(suffix="end"), 400, "suffix"),
    (TEXT, text(best_of=2), 400, "best_of: Value error, must be n, which is 1"),
    (TEXT, text(n=2, best_of=1), 400, "must be n, which is 2"),
    (TEXT, text(skip_special_tokens=False), 400, "skip_special_tokens"),
    (CHAT, chat(modalities=["text", "audio"]), 400, "modalities"),
    (CHAT, chat(n=None, model=None), 400, "model: Input should be a valid string"),
    (CHAT, chat(tools=[tool("a", description="\ud800")]), 400, "surrogates"),
    ("/tokenize", {"prompt": "\ud800"}, 400, "surrogates"),
    ("/tokenize", {}, 400, "either prompt or messages"),
    ("/detokenize", {"tokens": [10**9]}, 400, "0 to 271"),
]


@pytest.mark.parametrize(("path", "body", "status", "told"), BAD_FIELDS)
def test_bad_fields(client: TestClient, path: str, body: Any, status: int, told: str) -> None:
    sent = json.dumps(body).encode()
    found = client.post(path, content=sent, headers={"content-type": "application/json"})
    assert told in problem(found, status)["message"]


FIELDS = [
    (TEXT, text(min_tokens=9), "min_tokens", "may have 4 tokens"),
    (TEXT, text(prompt=["a"] * 20), "prompt", "20 answers"),
    (CHAT, chat(stop=""), "stop", "at least 1 character"),
    (CHAT, chat(top_logprobs=2), "top_logprobs", "needs logprobs: true"),
    (CHAT, chat(tool_choice={"type": "function"}), "tool_choice", "tool_choice.function: Field"),
    (
        CHAT,
        chat(response_format={"type": "json_schema", "json_schema": {}}),
        "response_format.json_schema.name",
        "required",
    ),
]


@pytest.mark.parametrize(("path", "body", "param", "told"), FIELDS)
def test_the_field_is_named(
    client: TestClient, path: str, body: Any, param: str, told: str
) -> None:
    error = problem(client.post(path, json=body), 400)
    assert error["param"] == param and told in error["message"]


BAD_BODIES = [
    (b"", 400, "body"),
    (b"{", 400, "not JSON"),
    (b"[1]", 400, "body"),
    (b'"\xff"', 400, "cannot be read as JSON"),
    (b"[" * 9000, 400, "JSON"),
    (b'{"model": "tiny", "n": ' + b"9" * 5000 + b"}", 400, "thousands of digits"),
    (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "surrogates"),
    (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', 400, "unicode"),
    (b'{"\\ud800": 1}', 400, "unicode"),
    (b" " * 20_001, 413, "longer than 20000 bytes"),
]


@pytest.mark.parametrize(("sent", "status", "told"), BAD_BODIES)
def test_bad_bodies(client: TestClient, sent: bytes, status: int, told: str) -> None:
    found = client.post(CHAT, content=sent, headers={"content-type": "application/json"})
    assert told in problem(found, status)["message"]


def test_bad_ways(client: TestClient) -> None:
    assert "no GET /v2" in problem(client.get("/v2"), 404)["message"]
    assert "GET /v1/completions" in problem(client.get(TEXT), 405)["message"]
    found = client.post(CHAT, content=b"x=1", headers={"content-type": "text/plain"})
    assert "application/json" in problem(found, 400)["message"]
    parts = (b" " * 9000 for _ in range(3))
    found = client.post(CHAT, content=parts, headers={"content-type": "application/json"})
    assert "longer than" in problem(found, 413)["message"]


def test_strangers_learn_nothing(scheduler: Scheduler) -> None:
    app = create_app(scheduler, Settings(NAME, api_key=" s3cret-key\n"))
    visitor = TestClient(app)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
        found = visitor.get("/v1/models", headers=headers)
        assert problem(found, 401)["code"] == "invalid_api_key"
        assert "s3cret" not in found.text
    # Below a prefix as well, however the application came to be there.
    below = (
        TestClient(app, root_path="/pico"),
        TestClient(Starlette(routes=[Mount("/pico", app)])),
    )
    for mounted in below:
        assert problem(mounted.post(f"/pico{TEXT}", json=text()), 401)["code"] == "invalid_api_key"
        assert mounted.get("/pico/health").status_code == 200
    known = {"Authorization": "Bearer s3cret-key"}
    assert visitor.get("/v1/models", headers=known).status_code == 200
    assert visitor.get("/health").status_code == 200
    with pytest.raises(ConfigError, match="8 characters"):
        Settings(NAME, api_key="short   ")
    with pytest.raises(ConfigError, match="ASCII"):
        Settings(NAME, api_key="schlüssel")


def test_a_full_house_and_a_closed_one(alone: Engine) -> None:
    full = Scheduler(alone, max_waiting=0)
    visitor = TestClient(create_app(full, Settings(NAME)), raise_server_exceptions=False)
    running = full.submit([72], SamplingParams(max_new_tokens=4000, ignore_eos=True))
    next(running)
    found = visitor.post(CHAT, json=chat())
    assert problem(found, 429)["type"] == "rate_limit_error"
    assert int(found.headers["retry-after"]) >= 1
    assert "2 answers at once" in problem(visitor.post(CHAT, json=chat(n=2)), 400)["message"]
    full.close()
    assert problem(visitor.post(CHAT, json=chat()), 503)["code"] == "shutting_down"
    assert problem(visitor.get("/health"), 503)["code"] == "shutting_down"


def test_all_answers_have_a_place_or_none(model: Any, speaker: Any) -> None:
    """Two of three would fit beside the one that runs: none is begun, and then all are."""
    engine = jakiro.load(model, "none", tokenizer=speaker, max_batch_size=3)
    with Scheduler(engine, max_waiting=0) as scheduler:
        visitor = TestClient(create_app(scheduler, Settings(NAME)), raise_server_exceptions=False)
        running = scheduler.submit([72], SamplingParams(max_new_tokens=4000, ignore_eos=True))
        next(running)
        problem(visitor.post(CHAT, json=chat(n=3)), 429)
        assert scheduler.num_open == 1
        running.cancel()
        for _ in range(1000):
            if scheduler.num_open:
                time.sleep(0.01)
        assert len(visitor.post(CHAT, json=chat(n=3)).json()["choices"]) == 3
