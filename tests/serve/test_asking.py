"""What is made of the fields of a request: seeds, room, and values that clients send by habit."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

import jakiro
from jakiro.engine.scheduler import Scheduler
from jakiro.errors import ConfigError
from jakiro.serve.app import create_app
from jakiro.serve.settings import Settings
from tests.serve.conftest import HELLO, NAME, chat

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def choices(client: TestClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    found = client.post(path, json=body)
    assert found.status_code == 200, found.text
    told: list[dict[str, Any]] = found.json()["choices"]
    return told


def test_every_prompt_draws_a_seed(client: TestClient) -> None:
    body = {"model": NAME, "prompt": ["hello"] * 3, "n": 2, "max_tokens": 12}
    free = choices(client, TEXT, body)
    assert len({choice["text"] for choice in free}) == 6
    seeds = [choice["jakiro"]["seed"] for choice in free]
    assert seeds[::2] == seeds[1::2] and len(set(seeds)) == 3, "answers to a prompt share one"
    given = choices(client, TEXT, body | {"seed": seeds[2]})
    assert [choice["text"] for choice in given] == 3 * [choice["text"] for choice in free[2:4]]


def test_what_clients_send_by_habit(client: TestClient) -> None:
    """Seeds are any 64-bit integers, and a temperature of nearly nothing is none."""
    (greedy,) = choices(client, CHAT, chat())
    (nearly,) = choices(client, CHAT, chat(temperature=1e-6))
    assert nearly["message"] == greedy["message"]
    warm = chat(temperature=1)
    (wrapped,) = choices(client, CHAT, warm | {"seed": -1})
    (plain,) = choices(client, CHAT, warm | {"seed": 2**63 - 1})
    assert wrapped["message"] == plain["message"] != greedy["message"]
    fields = {"stream_options": {"include_obfuscation": False}, "top_logprobs": 0}
    (same,) = choices(client, CHAT, chat(**fields))
    assert same["message"] == greedy["message"]
    padded = [turn | dict.fromkeys(["annotations", "audio", "function_call"]) for turn in HELLO]
    (same,) = choices(client, CHAT, chat(messages=padded))
    assert same["message"] == greedy["message"]


def test_an_answer_is_as_long_as_context_and_cache_allow(model: Any, speaker: Any) -> None:
    """64 slots, of which a draft takes 8."""
    engine = jakiro.load(model, model, tokenizer=speaker, tree="dynamic:3,3,8", max_batch_size=2)
    with Scheduler(engine, kv_tokens=64) as scheduler:
        client = TestClient(create_app(scheduler, Settings(NAME)))
        assert client.get("/v1/models").json()["data"][0]["max_model_len"] == 56
        for max_tokens in (None, 4000):
            body = chat(max_tokens=max_tokens, ignore_eos=True)
            usage = client.post(CHAT, json=body).json()["usage"]
            assert usage["total_tokens"] == 56
        prompt = {"model": NAME, "prompt": [72] * 55}
        (last,) = choices(client, TEXT, prompt | {"logprobs": 0})
        assert len(last["logprobs"]["tokens"]) == 1
        found = client.post(TEXT, json=prompt | {"prompt": [72] * 56})
        assert "55 at most" in found.json()["error"]["message"]
    with (
        Scheduler(engine, kv_tokens=9) as scheduler,
        pytest.raises(ConfigError, match="kv_tokens must be an integer of at least 10, got 9"),
    ):
        create_app(scheduler, Settings(NAME))
