"""Names of drafters, and arbiters over them."""

from __future__ import annotations

import pytest

import jakiro
from jakiro.drafters import registry
from jakiro.errors import UnknownName
from tests.conformance import world


@pytest.mark.parametrize(
    "entry", [e for e in registry.ENTRIES.values() if not e.is_trained], ids=lambda e: e.name
)
def test_untrained_drafters_need_nothing_and_carry_their_name(entry: registry.Entry) -> None:
    assert entry.load()().name == entry.name


def test_an_arbiter_is_named_before_what_it_stands_over() -> None:
    engine = jakiro.load(world.model("llama"), "suffix_automaton+prompt_lookup")
    assert engine.drafter.name == "suffix_automaton+prompt_lookup"
    (done,) = engine.generate(
        [list(world.prompt(2))], jakiro.SamplingParams(max_new_tokens=8, ignore_eos=True)
    )
    assert done.token_ids == list(world.truth("llama", "greedy", 2)[:8])


@pytest.mark.parametrize(
    ("name", "known"),
    [("none+jakiro", "suffix_automaton"), ("suffix_automaton+nobody", "prompt_lookup")],
)
def test_unknown_names_say_what_is_known(name: str, known: str) -> None:
    with pytest.raises(UnknownName, match=f"unknown .*; known: .*{known}"):
        jakiro.load(world.model("llama"), name)
