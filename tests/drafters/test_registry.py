"""Names of drafters, and arbiters over them."""

from __future__ import annotations

import re

import pytest

import jakiro
from jakiro.drafters import registry
from jakiro.errors import UnknownName
from tests.conformance import world


@pytest.mark.parametrize(
    "entry", [e for e in registry.ENTRIES.values() if not e.is_trained], ids=lambda e: e.name
)
def test_untrained_drafters_need_no_checkpoint_and_carry_their_name(entry: registry.Entry) -> None:
    target = world.target(world.home(entry.name))
    assert world.make_drafter(entry.name, target).name == entry.name


def test_an_arbiter_is_named_before_what_it_stands_over() -> None:
    engine = jakiro.load(world.model("llama"), "suffix_automaton+prompt_lookup")
    assert engine.drafter.name == "suffix_automaton+prompt_lookup"
    (done,) = engine.generate(
        [list(world.prompt(2))], jakiro.SamplingParams(max_new_tokens=8, ignore_eos=True)
    )
    assert done.token_ids == list(world.truth("llama", "greedy", 2)[:8])


@pytest.mark.parametrize(
    "name", ["", "none+jakiro", "suffix_automaton+nobody", "no/such+place", "suffix_automaton+"]
)
def test_unknown_names_say_what_is_known(name: str) -> None:
    """And are found before a target is looked for."""
    unknown = name.removeprefix("suffix_automaton+")
    known = r"known: .*a directory, .*prompt_lookup, .*suffix_automaton\+ one of these"
    with pytest.raises(UnknownName, match=f"unknown drafter '{re.escape(unknown)}'; {known}"):
        jakiro.load("no/such/target", name)
