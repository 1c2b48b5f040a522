"""A real socket, the official client, clients that leave, and SIGTERM."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest
import uvicorn

import jakiro
from jakiro.engine.engine import Engine
from jakiro.engine.scheduler import Scheduler
from jakiro.errors import ConfigError
from jakiro.serve.app import create_app
from jakiro.serve.logs import JsonLines
from jakiro.serve.server import Server, serve
from jakiro.serve.settings import Settings
from tests.serve.conftest import HELLO, NAME, chat, events
from tests.serve.test_answers import SCHEMA

KEY = "a-key-of-tests"
ENDLESS = {"max_tokens": 4000, "ignore_eos": True}


def serving(engine: Engine, grace_s: float, visit: Callable[[str], None]) -> Scheduler:
    """Serve in this thread, as signals want it, while ``visit(url)`` runs in another and ends the
    server by SIGTERM; returns the scheduler the server leaves behind."""
    scheduler = Scheduler(engine)
    app = create_app(scheduler, Settings(NAME, api_key=KEY))
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=30)
    server = Server(config, scheduler, grace_s)
    with socket.create_server(("127.0.0.1", 0)) as door, ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        visited: Future[None] = pool.submit(_visit, server, url, visit)
        server.run([door])
        visited.result()
    return scheduler


def _visit(server: Server, url: str, visit: Callable[[str], None]) -> None:
    try:
        while not server.started:
            time.sleep(0.01)
        visit(url)
    finally:
        server.handle_exit(signal.SIGTERM, None)


@contextmanager
def stream(url: str, **fields: Any) -> Iterator[Iterator[str]]:
    """The lines of a streamed answer."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        httpx2.Client(base_url=url, headers=headers, timeout=60) as client,
        client.stream("POST", "/v1/chat/completions", json=chat(stream=True, **fields)) as found,
    ):
        assert found.status_code == 200
        yield found.iter_lines()


def is_refused(url: str) -> bool:
    """Whether nobody is let in any more; the server looks for its end ten times a second."""
    for _ in range(100):
        try:
            httpx2.get(f"{url}/health")
        except httpx2.ConnectError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def engine(model: Any, speaker: Any) -> Engine:
    return jakiro.load(model, "prompt_lookup", tokenizer=speaker)


def test_the_official_client(
    engine: Engine, alone: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    (wanted,) = alone.generate([HELLO], jakiro.SamplingParams(max_new_tokens=24))

    def visit(url: str) -> None:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        asked: Any = {"model": NAME, "messages": HELLO, "temperature": 0, "max_tokens": 24}
        whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=1)
        assert whole.choices[0].message.content == wanted.text
        assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
        assert whole.choices[0].jakiro["tau"] >= 1
        parts = list(
            client.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
        )
        pieces = [part.choices[0].delta.content or "" for part in parts if part.choices]
        assert "".join(pieces) == wanted.text
        assert parts[-1].usage == whole.usage
        form: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
        asked |= {"max_tokens": 200, "presence_penalty": 1.0}
        made = client.chat.completions.create(**asked, response_format=form)
        assert set(json.loads(made.choices[0].message.content)) == {"name", "sizes"}
        tools: Any = [{"type": "function", "function": {"name": "wait"}}]
        said: Any = client.chat.completions.create(**asked, tools=tools, tool_choice="required")
        (call, *_) = said.choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == ("wait", "{}")
        turn = said.choices[0].message.model_dump()
        assert turn["content"] is turn["audio"] is None, "a turn with fields that are null"
        found = {"role": "tool", "tool_call_id": call.id, "content": "x"}
        asked["messages"] = [*HELLO, turn, found]
        told = client.chat.completions.create(**asked, tools=tools, tool_choice="none")
        assert told.choices[0].message.tool_calls is None
        assert [model.id for model in client.models.list()] == [NAME]
        with pytest.raises(openai.BadRequestError, match="top_p"):
            client.chat.completions.create(**asked, top_p=7)
        with pytest.raises(openai.NotFoundError, match="no model"):
            client.completions.create(model="other", prompt="x")
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()

    with caplog.at_level("INFO"):
        serving(engine, 0, visit)
    lines = [JsonLines().format(record) for record in caplog.records]
    assert any("answered" in line for line in lines)
    assert not any(KEY in line or wanted.text in line for line in lines)


def test_who_leaves_is_not_answered_any_more(engine: Engine) -> None:
    def visit(url: str) -> None:
        with stream(url, **ENDLESS) as lines:
            next(lines)
        while "cancelled" not in (told := httpx2.get(f"{url}/metrics").text):
            time.sleep(0.02)
        assert 'vllm:num_requests_running{engine="0",model_name="tiny"} 0.0' in told

    assert serving(engine, 60, visit).num_waiting == 0


@pytest.mark.parametrize(("grace_s", "is_finished"), [(60.0, True), (0.0, False)])
def test_sigterm_ends_streams_cleanly(engine: Engine, grace_s: float, is_finished: bool) -> None:
    limits = {"max_tokens": 80, "ignore_eos": True} if is_finished else ENDLESS

    def visit(url: str) -> None:
        with stream(url, **limits) as lines:
            first = next(lines)
            os.kill(os.getpid(), signal.SIGTERM)
            rest = events("\n".join([first, *lines, ""]))
        if is_finished:
            assert rest[-1]["choices"][0]["finish_reason"] == "length"
        else:
            assert rest[-1]["error"]["code"] == "shutting_down"
        assert is_refused(url)

    scheduler = serving(engine, grace_s, visit)
    assert not scheduler.is_open and scheduler.num_running == scheduler.num_waiting == 0


def test_what_cannot_be_served_is_said_before_any_address(engine: Engine) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as door, Scheduler(engine) as scheduler:
        for grace_s, told in ((0.0, "cannot listen at 127.0.0.1, port"), (math.inf, "finite")):
            with pytest.raises(ConfigError, match=told):
                serve(
                    scheduler,
                    Settings(NAME),
                    host="127.0.0.1",
                    port=door.getsockname()[1],
                    grace_s=grace_s,
                    announce=lambda: said.append("here"),
                )
    assert not said
