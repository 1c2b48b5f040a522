"""What is served is what the engine says alone, in every form in which it can be asked for."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from jakiro.engine.engine import Engine
from jakiro.engine.request import TokenLogprobs
from jakiro.engine.scheduler import Scheduler
from jakiro.sampling.params import SamplingParams
from jakiro.serve.app import create_app
from jakiro.serve.constrain import Grammar, Grammars
from jakiro.serve.logs import JsonLines
from jakiro.serve.settings import Settings
from jakiro.serve.tokens import Tokens
from tests.serve.conftest import HELLO, NAME, chat, events

CHAT = "/v1/chat/completions"
SAMPLED = {"temperature": 1.3, "top_p": 0.9, "top_k": 40, "presence_penalty": 0.5}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "sizes": {"type": "array", "items": {"type": "integer", "maximum": 99}, "maxItems": 2},
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
}


def post(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    found = client.post(path, json=body)
    assert found.status_code == 200, found.text
    return found


def test_many_at_once_are_answered_as_each_alone(client: TestClient, alone: Engine) -> None:
    bodies = [
        chat(seed=seed, **({} if seed % 3 else SAMPLED), messages=[{**HELLO[0], "content": text}])
        for seed, text in enumerate(["hello", "a", "stop it", "größe 🙂", "hello", "xyz " * 30])
    ]
    with ThreadPoolExecutor(len(bodies)) as pool:
        got = [each.json() for each in pool.map(lambda b: post(client, CHAT, b), bodies)]
    for body, answer in zip(bodies, got, strict=True):
        kept = {name: body[name] for name in ("seed", *SAMPLED) if name in body}
        (wanted,) = alone.generate(
            [body["messages"]], SamplingParams(max_new_tokens=24, **{"temperature": 0} | kept)
        )
        (choice,) = answer["choices"]
        assert choice["message"]["content"] == wanted.text
        assert choice["finish_reason"] == wanted.finish_reason
        assert answer["usage"] == {
            "prompt_tokens": len(wanted.prompt_ids),
            "completion_tokens": len(wanted.token_ids),
            "total_tokens": len(wanted.prompt_ids) + len(wanted.token_ids),
        }
        assert choice["jakiro"]["seed"] == body["seed"]
        assert choice["jakiro"]["tau"] > 2, "the drafts of the model itself are accepted"
        assert choice["jakiro"]["num_accepted"] == sum(choice["jakiro"]["accepted_by_depth"])


def test_a_stream_adds_up_to_the_whole(client: TestClient) -> None:
    body = chat(**SAMPLED, seed=5, n=3, logprobs=True, top_logprobs=2)
    whole = post(client, CHAT, body).json()
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert len(set(texts)) == 3, "choices are different draws"
    usage = {"include_usage": True, "continuous_usage_stats": True}
    asked = body | {"stream": True, "stream_options": usage, "jakiro": {"trace": True}}
    *parts, last = events(post(client, CHAT, asked).text)
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [p["choices"][0] for p in parts if p["choices"][0]["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        said = "".join(part["delta"].get("content", "") for part in own)
        assert said == choice["message"]["content"]
        assert [part["finish_reason"] for part in own][-1] == choice["finish_reason"]
        assert all(part["finish_reason"] is None for part in own[:-1])
        scored = [
            entry for part in own if part["logprobs"] for entry in part["logprobs"]["content"]
        ]
        assert scored == choice["logprobs"]["content"]
        _check_trace(own[1:], scored)


def _check_trace(parts: list[dict[str, Any]], scored: list[dict[str, Any]]) -> None:
    """Every token came from the cycle beside it, at the depth it says."""
    tokens = [token for part in parts for token in part["jakiro"]["trace"]["tokens"]]
    assert len(tokens) == len(scored)
    assert tokens[0]["how"] == "first" and {"drafted", "bonus"} <= {t["how"] for t in tokens}
    came = iter(tokens[1:])
    for cycle in (c for part in parts for c in part["jakiro"]["trace"]["cycles"]):
        assert cycle["path"][0] == 0 and cycle["parents"][0] == -1
        for depth, (above, node) in enumerate(pairwise(cycle["path"]), start=1):
            assert cycle["parents"][node] == above
            token = next(came, None)
            wanted = {"id": cycle["tokens"][node], "how": "drafted", "depth": depth} | {
                "origin": "draft_model"
            }
            assert token is None or token.items() >= wanted.items()
        token = next(came, None)
        assert token is None or (token["id"], token["how"]) == (cycle["bonus"], "bonus")
    assert next(came, None) is None


def test_every_choice_is_what_the_engine_says_of_it_alone(
    client: TestClient, alone: Engine
) -> None:
    """With every setting that has a say in it."""
    law = SAMPLED | {"frequency_penalty": 0.7, "repetition_penalty": 1.2, "min_p": 0.001}
    bias = {str(token): 4.0 - token % 9 for token in range(80, 120)}
    asked = chat(
        **law, logit_bias=bias, seed=12, n=4, min_tokens=5, stop=["zz"], stop_token_ids=[7]
    )
    got = post(client, CHAT, asked).json()["choices"]
    params = SamplingParams(
        **law,
        max_new_tokens=24,
        logit_bias={int(token): value for token, value in bias.items()},
        seed=12,
        min_new_tokens=5,
        stop=("zz",),
        stop_token_ids=(7,),
    )
    for index, choice in enumerate(got):
        request = alone.prepare(HELLO, params, choice_index=index)
        alone.enqueue(request)
        while request.finish_reason is None:
            alone.step()
        wanted = request.completion()
        assert (choice["message"]["content"], choice["finish_reason"]) == (
            wanted.text,
            wanted.finish_reason,
        )
    assert len({choice["message"]["content"] for choice in got}) == 4
    assert sum(choice["jakiro"]["num_accepted"] for choice in got) > 10


def test_a_deadline_ends_an_answer_with_what_there_is(
    client: TestClient, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of this test goes on by a second whenever it is looked at."""
    ticks = count()
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)), perf_counter=time.perf_counter)
    monkeypatch.setattr("jakiro.engine.scheduler.time", clock)
    limited = TestClient(create_app(scheduler, Settings(NAME, deadline_s=5)))
    body = chat(max_tokens=4000, ignore_eos=True)
    whole = post(limited, CHAT, chat(max_tokens=4000)).json()["choices"][0]["message"]["content"]
    for visitor, own in ((client, {"deadline_s": 5}), (limited, {}), (limited, {"deadline_s": 99})):
        found = post(visitor, CHAT, body | {"jakiro": own}).json()
        (choice,) = found["choices"]
        assert (choice["finish_reason"], choice["jakiro"]["timed_out"]) == ("length", True)
        assert 0 < found["usage"]["completion_tokens"] < 100
        assert (
            choice["message"]["content"][: len(whole)] == whole[: len(choice["message"]["content"])]
        )
    late = client.post(CHAT, json=body | {"jakiro": {"deadline_s": 0.5}})
    assert (late.status_code, late.json()["error"]["code"]) == (408, "deadline")


def test_an_answer_can_be_asked_for_without_drafts(client: TestClient) -> None:
    """Beside others that are drafted, in one batch."""
    bodies = [chat(**SAMPLED, seed=7, jakiro={"draft": is_on}) for is_on in (True, False, True)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        got = [each.json() for each in pool.map(lambda b: post(client, CHAT, b), bodies)]
    fast, plain, _ = (answer["choices"][0] for answer in got)
    assert plain["message"] == fast["message"]
    assert fast["jakiro"]["tau"] > 2
    assert plain["jakiro"]["tau"] == 1 and plain["jakiro"]["offered_by_depth"] == []


def test_fields_that_change_nothing_are_taken(client: TestClient) -> None:
    """Those of the operator, and others with the value that leaves things as they are."""
    told = {"prompt_cache_key": "x", "safety_identifier": "y", "user": "z", "metadata": {"a": "b"}}
    plain = {"echo": False, "best_of": 1, "use_beam_search": False, "skip_special_tokens": True}
    absent = dict.fromkeys(["suffix", "audio", "reasoning_effort", "best_of", "user"])
    text = {"model": NAME, "prompt": "hello", "max_tokens": 6, "temperature": 0}
    for path, body in ((CHAT, chat(max_tokens=6)), ("/v1/completions", text)):
        wanted = post(client, path, body).json()["choices"]
        for more in (told | plain | {"suffix": "", "modalities": ["text"]}, absent):
            found = post(client, path, body | more).json()["choices"]
            for one, other in zip(found, wanted, strict=True):
                assert {**one, "jakiro": None} == {**other, "jakiro": None}
    two = post(client, CHAT, chat(max_tokens=6, n=2, best_of=2)).json()["choices"]
    assert len(two) == 2


def test_logprobs_are_those_of_the_target(client: TestClient, model: Any) -> None:
    body = {
        "model": NAME,
        "prompt": [[72, 105]],
        "max_tokens": 6,
        "logprobs": 2,
        "temperature": 2.0,
    }
    (choice,) = post(client, "/v1/completions", body | {"seed": 3}).json()["choices"]
    found = choice["logprobs"]
    assert len(found["tokens"]) == 6 and found["text_offset"][0] == 0
    ids = [72, 105]
    for logprob, top in zip(found["token_logprobs"], found["top_logprobs"], strict=True):
        with torch.no_grad():
            law = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        token = int((law - logprob).abs().argmin())
        assert abs(float(law[token]) - logprob) < 1e-9
        assert sorted(top.values(), reverse=True) == pytest.approx(law.topk(2).values.tolist())
        ids.append(token)


def test_several_prompts_stops_and_limits(client: TestClient, alone: Engine) -> None:
    prompts = ["hello", "world"]
    (first, second) = alone.generate(prompts, SamplingParams(max_new_tokens=16))
    stop = first.text[5:8]
    body = {"model": NAME, "prompt": prompts, "max_tokens": 16, "temperature": 0, "stop": [stop]}
    found = post(client, "/v1/completions", body).json()["choices"]
    assert found[0]["text"] == first.text[: first.text.index(stop)]
    assert found[0]["finish_reason"] == "stop"
    if stop not in second.text:
        assert (found[1]["text"], found[1]["finish_reason"]) == (second.text, "length")


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_constrained_answers_are_drafted_and_lossless(
    client: TestClient, alone: Engine, speaker: Any, temperature: float
) -> None:
    ids = alone.encode(HELLO)
    grammars = Grammars(speaker, alone.target.vocab_size, sorted(alone.eos_ids))
    plain = grammars.compile(Grammar.of_schema(SCHEMA)).constraint(len(ids))
    settings = SamplingParams(
        max_new_tokens=200, temperature=temperature, top_p=0.95, seed=11, presence_penalty=1.0
    )
    (wanted,) = alone.generate([ids], settings, processors=[plain])
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
    fields = {"temperature": temperature, "top_p": 0.95, "seed": 11, "presence_penalty": 1.0}
    body = chat(max_tokens=200, response_format=form, **fields)
    (choice,) = post(client, CHAT, body).json()["choices"]
    assert choice["message"]["content"] == wanted.text
    assert choice["finish_reason"] == "stop"
    assert set(json.loads(wanted.text)) == {"name", "sizes"}
    assert choice["jakiro"]["num_accepted"] > 0


def test_what_is_said_is_not_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="jakiro.serve"):
        answer = post(client, CHAT, chat(messages=[{"role": "user", "content": "qwertz"}])).json()
        client.get("/health")  # by then the line is written
    (line,) = [JsonLines().format(record) for record in caplog.records]
    assert json.loads(line)["event"] == "answered" and answer["id"] in line
    assert "qwertz" not in line
    assert json.dumps(answer["choices"][0]["message"]["content"])[1:-1] not in line


def test_tools_reach_the_template(client: TestClient, speaker: Any) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    body = {"messages": [{"role": "user", "content": parts}], "tools": [tool]}
    ids = post(client, "/tokenize", body).json()["tokens"]
    assert speaker.decode(ids) == "[look;]u:hello\na:"
    assert post(client, "/detokenize", {"tokens": ids}).json() == {"prompt": speaker.decode(ids)}
    for choice, told in (("auto", "[look;]"), ("none", "")):
        asked = post(client, CHAT, chat(tools=[tool], tool_choice=choice)).json()
        assert asked["usage"]["prompt_tokens"] == len(f"{told}u:hello\na:")


def test_the_state_is_told(client: TestClient) -> None:
    before = _counters(client)
    answer = post(client, CHAT, chat()).json()
    grown = {name: value - before[name] for name, value in _counters(client).items()}
    (choice,) = answer["choices"]
    ours = choice["jakiro"]
    assert grown["generation_tokens"] == answer["usage"]["completion_tokens"]
    assert grown["spec_decode_num_accepted_tokens"] == ours["num_accepted"]
    assert grown["spec_decode_num_drafts"] == ours["offered_by_depth"][0]
    assert grown["spec_decode_num_draft_tokens"] >= ours["num_accepted"]
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == (NAME, 4096)
    assert client.get(f"/v1/models/{NAME}").json() == model
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/").text.startswith("<!doctype html>")
    assert set(client.get("/openapi.json").json()["paths"]) >= {CHAT, "/v1/completions"}


def _counters(client: TestClient) -> dict[str, float]:
    names = [
        "generation_tokens",
        "spec_decode_num_accepted_tokens",
        "spec_decode_num_drafts",
        "spec_decode_num_draft_tokens",
    ]
    lines = client.get("/metrics").text.splitlines()
    return {
        name: sum(float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith(f"vllm:{name}_total{{"))
        for name in names
    }


def test_tokens_that_read_alike_are_told_by_the_likeliest(speaker: Any) -> None:
    """Bytes of no character each."""
    entry = TokenLogprobs(0xE6, -0.5, {0xE6: -0.5, 0x61: -1.0, 0xE7: -3.0})
    (found,) = Tokens(speaker).text_logprobs([entry], 0).top_logprobs
    assert found == {"\ufffd": -0.5, "a": -1.0}
