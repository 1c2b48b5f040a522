from __future__ import annotations

import json

import jakiro
from tests.cli.conftest import Run

PROMPT = "w1 w2 w3 w1 w2"


def test_the_text_is_that_of_the_engine(run: Run, target: str) -> None:
    params = jakiro.SamplingParams(max_new_tokens=24, temperature=1.0, seed=3)
    expected = jakiro.load(target, "none").generate([PROMPT], params)[0]
    sampled = ("--temperature", "1", "--seed", "3", "-n", "24")
    result = run("generate", PROMPT, "--raw", "--target", target, *sampled)
    assert result.exit_code == 0
    assert result.stdout == expected.text + "\n"


def test_standard_input_is_the_prompt(run: Run, target: str) -> None:
    given = run("generate", PROMPT, "--target", target, "-n", "8")
    piped = run("generate", "--target", target, "-n", "8", stdin=PROMPT + "\n")
    assert piped.stdout == given.stdout != "\n"


def test_json_carries_the_whole_completion(run: Run, target: str) -> None:
    arguments = ("--raw", "--json", "--logprobs", "2", "-n", "4", "--ignore-eos")
    record = json.loads(run("generate", PROMPT, "--target", target, *arguments).stdout)
    assert record["prompt_ids"] == [1, 2, 3, 1, 2]
    assert len(record["token_ids"]) == record["stats"]["num_emitted"] == 4
    assert record["finish_reason"] == "length"
    assert [len(entry["top"]) for entry in record["logprobs"]] == [2] * 4
    assert record["stats"]["tau"] >= 1


def test_the_template_is_used_unless_raw(run: Run, target: str) -> None:
    def prompt_ids(*flags: str) -> list[int]:
        done = run("generate", "w1", "--target", target, "--json", "-n", "1", *flags)
        ids: list[int] = json.loads(done.stdout)["prompt_ids"]
        return ids

    assert prompt_ids("--raw") == [1]
    assert prompt_ids() == prompt_ids("--chat") != [1]


def test_stop_bias_and_stop_token_reach_the_engine(run: Run, target: str) -> None:
    def answer(*flags: str) -> dict[str, object]:
        done = run("generate", PROMPT, "--target", target, "--raw", "--json", "-n", "9", *flags)
        record: dict[str, object] = json.loads(done.stdout)
        return record

    assert answer("--logit-bias", "7=1000", "--stop", "w7 w7")["token_ids"] == [7, 7]
    assert answer("--logit-bias", "7=1000", "--stop-token-id", "7")["token_ids"] == [7]


def test_statistics_go_to_standard_error(run: Run, target: str) -> None:
    result = run("generate", PROMPT, "--target", target, "-n", "8", "--stats")
    assert "verify forwards" in result.stderr
    assert "verify forwards" not in result.stdout
