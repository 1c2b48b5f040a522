"""Asking for target definitions: what is refused, and why."""

from __future__ import annotations

import json
from functools import partial

import pytest

import jakiro
from jakiro.errors import ConfigError, PairMismatch, TargetRefused
from jakiro.target.definitions.dola import DoLa
from jakiro.target.definitions.registry import find
from jakiro.target.target import Target
from tests.cli.conftest import Run, run, target  # noqa: F401  fixtures
from tests.conformance import world
from tests.families import llama_like


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("doll", "unknown definition 'doll'; known: .*dola"),
        ("dola:depth=1", "dola has no setting 'depth'; it has layers, alpha"),
        ("contrastive:beta=strong", "cannot read 'beta=strong'"),
        ("contrastive:alpha=2", r"alpha must be from 0 .* to 1 .*, got 2\.0"),
        ("contrastive:beta=-1", "beta must be a number from 0"),
        ("lol:share=1.5", r"share must be from 0 to 1, got 1\.5"),
    ],
)
def test_impossible_settings(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find(text)


def test_a_comma_in_a_text_ends_no_setting() -> None:
    found = find("lol:instruction=Be truthful, always.,share=0.1")
    assert (vars(found)["instruction"], vars(found)["share"]) == ("Be truthful, always.", 0.1)


@pytest.mark.parametrize(
    ("text", "amateur", "message"),
    [
        ("contrastive", None, "contrastive needs a second model; give amateur="),
        ("dola", "llama", "dola takes no second model; leave out amateur"),
        (None, "llama", "no use without a definition"),
        ("dola:layers=1+7", None, "layers must be low, high or numbers from 0 to 1"),
        ("dola:layers=some", None, "layers must be low, high or numbers from 0 to 1"),
        ("lol:layer=2", "llama", "layer must be from 0 to 1, got 2"),
    ],
)
def test_what_does_not_fit_the_target(text: str | None, amateur: str | None, message: str) -> None:
    other = None if amateur is None else world.model(amateur)
    with pytest.raises(ConfigError, match=message):
        jakiro.load(world.model("llama"), "none", definition=text, amateur=other)


def test_an_instruction_leaves_room_for_a_text() -> None:
    of = world.target("llama")
    before = [3] * (of.context_length - 2)
    made = partial(find("lol:instruction=x").redefine, of, of)
    assert made(lambda text: before).context_length == 2
    with pytest.raises(ConfigError, match=f"the instruction has {len(before) + 1} tokens"):
        made(lambda text: [*before, 3])


def test_the_best_of_the_tokens_that_both_models_have_is_always_left() -> None:
    of = world.target("llama")
    amateur = Target(llama_like("Llama", hidden_size=16, num_hidden_layers=1, vocab_size=19)())
    law = find("contrastive:alpha=1").redefine(of, amateur, list)
    ids = list(world.prompt(2))
    (said,) = law.prefill(ids, (cache := law.new_cache()), cache.admit()).logits[0]
    (plain,) = of.prefill(ids, (cache := of.new_cache()), cache.admit()).logits[0]
    assert plain.argmax() >= 19, "the target alone would say another"
    assert said.isfinite().nonzero().tolist() == [[int(plain[:19].argmax())]]


def test_targets_and_amateurs_of_the_wrong_kind() -> None:
    with pytest.raises(TargetRefused, match="no routers"):
        jakiro.load(world.model("llama"), "none", definition="scmoe")
    with pytest.raises(ConfigError, match="experts per token must be from 1 to 2, got 3"):
        jakiro.load(world.model("mixtral"), "none", definition="scmoe:weak=3")
    small = llama_like("Llama", num_hidden_layers=1, vocab_size=32)()
    with pytest.raises(PairMismatch, match=r"the amateur .* chooses among 32 tokens"):
        jakiro.load(world.model("llama"), "none", definition="contrastive", amateur=small)


def test_the_command_and_the_call_say_the_same(run: Run, target: str) -> None:  # noqa: F811
    asked = (
        "generate",
        "w1 w2 w3",
        "-t",
        target,
        "-n",
        "12",
        "--raw",
        "--json",
        "-d",
        "layer_skip",
    )
    pair = ("--definition", "contrastive:beta=1", "--amateur", target)
    record = json.loads(run(*asked, *pair).stdout)
    plain = json.loads(run(*asked).stdout)
    # A model has nothing to prefer to itself: (1 + beta) z - beta z is z.
    assert record["token_ids"] == plain["token_ids"]
    law = DoLa(layers="0", alpha=0.0)
    engine = jakiro.load(target, "none", definition=law)
    own = engine.generate(["w1 w2 w3"], jakiro.SamplingParams(max_new_tokens=12))[0]
    told = json.loads(run(*asked, "--definition", "dola:layers=0,alpha=0").stdout)
    assert told["token_ids"] == own.token_ids != plain["token_ids"]
