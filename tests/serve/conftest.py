"""A tiny model that speaks bytes, drafted by itself, behind a server in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from fastapi.testclient import TestClient
from transformers import LlamaConfig, LlamaForCausalLM

import jakiro
from jakiro.engine.engine import Engine
from jakiro.engine.scheduler import Scheduler
from jakiro.serve.app import create_app
from jakiro.serve.settings import Settings
from tests.engine.bytes_tokenizer import END, tokenizer
from tests.families import build

NAME = "tiny"
TEMPLATE = (
    "{% if tools %}[{% for tool in tools %}{{ tool.function.name }};{% endfor %}]{% endif %}"
    "{% for message in messages %}{{ message.role[0] }}:{{ message.content }}\n{% endfor %}a:"
)
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="session")
def model() -> Any:
    """A random Llama in float64."""
    config = LlamaConfig(
        vocab_size=272,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=END,
    )
    return build(LlamaForCausalLM, config)


@pytest.fixture(scope="session")
def speaker() -> Any:
    """The tokenizer of bytes with a chat template."""
    found = deepcopy(tokenizer())
    found.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="session")
def alone(model: Any, speaker: Any) -> Engine:
    """The engine that answers one request at a time, without drafting."""
    return jakiro.load(model, "none", tokenizer=speaker, max_batch_size=1)


@pytest.fixture(scope="session")
def scheduler(model: Any, speaker: Any) -> Scheduler:
    """Drafted by the model itself, so that whole paths are accepted."""
    engine = jakiro.load(model, model, tokenizer=speaker, tree="dynamic:3,3,8", max_batch_size=4)
    return Scheduler(engine)


@pytest.fixture(scope="session")
def client(scheduler: Scheduler) -> Iterator[TestClient]:
    """Speaks to the server; a failure of the server is a response, as it is to a user."""
    app = create_app(scheduler, Settings(NAME, max_body_bytes=20_000, max_open=8))
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found


def chat(**fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": NAME, "messages": HELLO, "max_tokens": 24, "temperature": 0} | fields


def events(text: str) -> list[dict[str, Any]]:
    """The objects of an event stream, which must end as one."""
    *found, last, nothing = text.split("\n\n")
    assert (last, nothing) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in found]
