"""An answer ends exactly where plain decoding would end it, wherever the drafted blocks lie."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jakiro.errors import PromptError
from jakiro.sampling.params import SamplingParams
from jakiro.tree.shapes import TreePlan
from tests.conformance import world
from tests.conformance.doubles import Scripted
from tests.conformance.guided import Guided
from tests.engine.bytes_tokenizer import END, as_bytes, word
from tests.engine.script import PROMPT, Says, engine

DEPTHS = range(8)
ABC = as_bytes("abcdefghijklmnop")


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("at", [0, 1, 4, 6, 7])
def test_eos_cuts_an_accepted_block(at: int, depth: int) -> None:
    script = [*ABC[:at], END, *ABC[at:]]
    (done,) = engine(script, depth).generate(
        [PROMPT], SamplingParams(max_new_tokens=12), processors=[Says(script)]
    )
    assert done.token_ids == [*ABC[:at], END]
    assert done.finish_reason == "stop"
    assert done.text == "abcdefghijklmnop"[:at]
    assert done.stats.num_emitted == at + 1


@pytest.mark.parametrize("depth", DEPTHS)
def test_stop_token_ids_and_ignore_eos(depth: int) -> None:
    script = [*ABC[:3], END, *ABC[3:]]
    params = SamplingParams(max_new_tokens=12, stop_token_ids=(ABC[5], 200), ignore_eos=True)
    (done,) = engine(script, depth).generate([PROMPT], params, processors=[Says(script)])
    assert done.token_ids == script[:7]
    assert done.finish_reason == "stop"


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("max_new_tokens", [1, 2, 7, 8, 9])
def test_max_new_tokens_is_exact(max_new_tokens: int, depth: int) -> None:
    (done,) = engine(ABC, depth).generate(
        [PROMPT], SamplingParams(max_new_tokens=max_new_tokens), processors=[Says(ABC)]
    )
    assert done.token_ids == ABC[:max_new_tokens]
    assert done.finish_reason == "length"
    assert done.stats.num_emitted == max_new_tokens


@pytest.mark.parametrize("depth", DEPTHS)
def test_eos_as_the_last_wanted_token_is_a_stop(depth: int) -> None:
    script = [*ABC[:3], END, *ABC]
    (done,) = engine(script, depth).generate(
        [PROMPT], SamplingParams(max_new_tokens=4), processors=[Says(script)]
    )
    assert (done.token_ids, done.finish_reason) == ([*ABC[:3], END], "stop")


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    ("stop", "num_tokens", "text"),
    [
        ("hello", 1, ""),
        ("lo w", 2, "hel"),
        ("o world\n", 4, "hell"),
        ("ld", 3, "hello wor"),
        ("r", 2, "hello wo"),
    ],
)
def test_stop_strings_span_tokens(stop: str, num_tokens: int, text: str, depth: int) -> None:
    script = [word("hello"), word(" wor"), word("ld"), word("\n\n"), *ABC]
    (done,) = engine(script, depth).generate(
        [PROMPT], SamplingParams(max_new_tokens=12, stop=(stop,)), processors=[Says(script)]
    )
    assert (done.text, done.finish_reason) == (text, "stop")
    assert done.token_ids == script[:num_tokens]


def test_a_stop_string_counts_before_min_new_tokens() -> None:
    """As in ``transformers``, where ``min_new_tokens`` puts off end tokens only."""
    script = [word("hello"), word(" wor"), word("ld"), *ABC]
    params = SamplingParams(max_new_tokens=12, min_new_tokens=9, stop=("lo w",))
    (done,) = engine(script).generate([PROMPT], params, processors=[Says(script)])
    assert (done.text, done.token_ids, done.finish_reason) == ("hel", script[:2], "stop")


def test_the_earliest_of_several_stop_strings_counts() -> None:
    script = [word("hello"), word(" wor"), word("ld"), *ABC]
    params = SamplingParams(max_new_tokens=12, stop=("wo", "lo w", "ld"))
    (done,) = engine(script).generate([PROMPT], params, processors=[Says(script)])
    assert (done.text, done.token_ids) == ("hel", script[:2])


# -- against the oracle, with a target that speaks for itself -----------------------------------


@pytest.mark.parametrize("setting", ["greedy", "top_p"])
@pytest.mark.parametrize("at", [0, 3, 8])
@pytest.mark.parametrize("min_new_tokens", [0, 5, 12])
def test_end_tokens_and_min_new_tokens_as_in_the_oracle(
    min_new_tokens: int, at: int, setting: str
) -> None:
    """The end token is one that the answer contains; before ``min_new_tokens`` it is banned."""
    target = world.target("llama")
    end = world.truth("llama", setting, 0)[at]
    params = replace(world.params(setting, 0), min_new_tokens=min_new_tokens)
    expected = world.answer(world.model("llama"), world.prompt(0), params, [end])
    drafter = Guided(world.make_feature_drafter(target), [[*world.prompt(0), *expected]])
    found = world.make_engine(target, drafter, world.TREES["dynamic"], eos_ids=[end])
    (done,) = found.generate([list(world.prompt(0))], params)
    assert done.token_ids == expected
    assert done.finish_reason == ("stop" if expected[-1] == end else "length")
    assert end not in expected[:min_new_tokens]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("room", [1, 2, 9])
@pytest.mark.parametrize("case", ["jakiro/wide", "prompt_lookup", "none"])
def test_answers_end_at_the_context_edge(case: str, room: int, family: str) -> None:
    target = world.target(family)
    prompt = [2 + i % 50 for i in range(target.context_length - room)]
    expected = world.answer(target.model, prompt, SamplingParams(max_new_tokens=room))
    for plan in (TreePlan.chain(12), TreePlan("dynamic", depth=6, width=4, budget=30)):
        drafter = Guided(world.make_drafter(case, target), [[*prompt, *expected]])
        found = world.make_engine(target, drafter, plan)
        (done,) = found.generate([prompt], SamplingParams(max_new_tokens=50))
        assert done.token_ids == expected
        assert done.finish_reason == "length"


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    found = world.make_engine(world.target("llama"), Scripted([]))
    context = found.target.context_length
    with pytest.raises(PromptError, match=f"{context} tokens"):
        found.generate([[3] * context])
    with pytest.raises(PromptError, match="empty"):
        found.generate([[]])
