"""Redefined targets in the identity suite: every drafter, in trees and batches, greedy and sampled,
says what the paper's formula says when it is computed from whole forwards of whole texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import cycle, pairwise, product
from typing import Any, NamedTuple

import pytest
import torch

from jakiro.drafters.none import NoDrafter
from jakiro.engine.limits import Limits
from jakiro.errors import ConfigError, TargetRefused
from jakiro.sampling.params import SamplingParams
from jakiro.target.definitions.ead import Switching
from jakiro.target.definitions.registry import ENTRIES, find
from jakiro.target.target import Target
from tests.conformance import world
from tests.conformance.guided import Guided
from tests.conformance.test_extremes import assert_cache_is_fresh
from tests.conformance.test_identity import assert_cell_proves_something
from tests.families import llama_like
from tests.oracles import redefined
from tests.oracles.plain import generate

SETTINGS = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=0.7, top_k=12, top_p=0.9),
}
ROWS = {1: (2,), 3: (0, 1, 2, 3)}
NUM_NEW = (17, 13, 20, 12)
INSTRUCTION = [7, 8, 9, 10, 11]


@cache
def amateur() -> Any:
    """Another family, depth, width and vocabulary: four tokens of the target are not in it."""
    return llama_like("Llama", hidden_size=16, num_hidden_layers=1, vocab_size=60)()


@cache
def few_experts() -> Any:
    """The weights of the family, one expert per token."""
    changes: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 1}
    made = llama_like("Mixtral", **changes)()
    made.load_state_dict(world.model("mixtral").state_dict())
    return made


class Law(NamedTuple):
    """A definition on a family, and its oracle."""

    family: str
    text: str
    amateur: Callable[[], Any] | None
    oracle: Callable[[], redefined.Redefined]


def similar() -> Any:
    return world.draft_model(world.target("llama"), "wide").model


LAWS = {
    "contrastive": Law(
        "gemma3",
        "contrastive:alpha=0.05,beta=0.6",
        amateur,
        lambda: redefined.contrastive(world.model("gemma3"), amateur(), 0.05, 0.6),
    ),
    "dola": Law(
        "qwen3",
        "dola:layers=0+1,alpha=0.02",
        None,
        lambda: redefined.dola(world.model("qwen3"), (0, 1), 0.02),
    ),
    "lol": Law(
        "llama",
        "lol:alpha=0.02,beta=0.4,share=0.2,truth=0.7,instruction=be truthful, please",
        similar,
        lambda: redefined.lower_layers(
            world.model("llama"), similar(), (1, 1), (0.02, 0.4, 0.2, 0.7), INSTRUCTION
        ),
    ),
    "scmoe": Law(
        "mixtral",
        "scmoe:alpha=0.03",
        None,
        lambda: redefined.contrastive(world.model("mixtral"), few_experts(), 0.03, 0.5),
    ),
    "ead": Law(
        "mistral",
        "ead:threshold=2,window=3,stay=2",
        amateur,
        lambda: redefined.by_turns(world.model("mistral"), amateur(), 2.0, 3, 2),
    ),
}


@cache
def target(name: str) -> Target:
    law = LAWS[name]
    other = None if law.amateur is None else Target(law.amateur())

    def encode(text: str) -> list[int]:
        assert text == "be truthful, please"
        return INSTRUCTION

    return find(law.text).redefine(world.target(law.family), other, encode)


def params(setting: str, row: int) -> SamplingParams:
    return replace(SETTINGS[setting], seed=17 + row, max_new_tokens=NUM_NEW[row])


@cache
def truth(name: str, setting: str, row: int) -> tuple[int, ...]:
    asked = params(setting, row)
    names = ("temperature", "top_k", "top_p", "seed", "max_new_tokens")
    settings = {key: getattr(asked, key) for key in names} | {"seed": asked.seed}
    return tuple(generate(LAWS[name].oracle(), list(world.prompt(row)), **settings))


def test_every_definition_is_here() -> None:
    assert set(LAWS) == set(ENTRIES)


@cache
def takes(name: str, case: str) -> bool:
    """Whether the redefined target does not refuse the drafter, as its family or its law may."""
    try:
        world.make_engine(target(name), world.make_drafter(case, target(name)))
    except TargetRefused:
        return False
    return True


def cells() -> list[tuple[str, str, str, int, str]]:
    """Every drafter with one law, of those that take it the one with the fewest so far; trees in
    turn, and each law in every batch size with every setting."""
    corners = {name: cycle(product(ROWS, SETTINGS)) for name in LAWS}
    found: list[tuple[str, str, str, int, str]] = []
    for case, tree in zip(world.kinds(), cycle(world.TREES), strict=False):
        taken = Counter(name for name, *_ in found)
        law = min((name for name in LAWS if takes(name, case)), key=taken.__getitem__)
        found.append((law, case, tree, *next(corners[law])))
    return found


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: "-".join(map(str, cell)))
def test_text_is_that_of_the_formula(cell: tuple[str, str, str, int, str]) -> None:
    name, case, tree, batch_size, setting = cell
    rows, redefined_target = ROWS[batch_size], target(name)
    texts = [[*world.prompt(row), *truth(name, setting, row)] for row in rows]
    drafter = Guided(world.make_drafter(case, redefined_target), texts, seed=3)
    engine = world.make_engine(
        redefined_target, drafter, world.TREES[tree], max_batch_size=batch_size
    )
    done = engine.generate(
        [list(world.prompt(row)) for row in rows], [params(setting, row) for row in rows]
    )
    assert [c.token_ids for c in done] == [list(truth(name, setting, row)) for row in rows]
    if batch_size > 1:
        assert_cell_proves_something(done)
    plain = world.answer(
        world.model(LAWS[name].family), world.prompt(rows[0]), params(setting, rows[0])
    )
    assert done[0].token_ids != plain, "the law is not another one"


def test_every_law_is_met_in_every_setting_and_batch() -> None:
    met = {(law, batch, setting) for law, _, _, batch, setting in cells()}
    assert met == {(law, batch, setting) for law in LAWS for batch in ROWS for setting in SETTINGS}


def test_all_caches_hold_the_text_and_nothing_else() -> None:
    """That of each of three sources, one with words before it, after every cycle of a batch whose
    rows come and go."""
    own, rows = target("lol"), ROWS[3]
    texts = [[*world.prompt(row), *truth("lol", "sampled", row)] for row in rows]
    drafter = Guided(world.make_drafter("prompt_lookup", own), texts)
    engine = world.make_engine(own, drafter, world.TREES["dynamic"], max_batch_size=2)
    requests = [engine.submit(list(world.prompt(row)), params("sampled", row)) for row in rows]
    num_steps = 0
    while engine.step():
        num_steps += 1
        cache = engine._batch.cache
        caches = [cache, *cache.beside]  # type: ignore[attr-defined]
        for row, request in enumerate(engine._batch.rows):
            text = [*request.prompt_ids, *request.token_ids][:-1]
            for source, each in zip(own._sources, caches, strict=True):  # type: ignore[attr-defined]
                read = [token if token < source.model.vocab_size else 0 for token in text]
                assert_cache_is_fresh(each, row, source.model, [*source.before, *read])
    assert num_steps > 8 and all(request.finish_reason == "length" for request in requests)


def test_a_prompt_that_was_fed_before_is_not_fed_again() -> None:
    """To any source; what stands before the text of one is no part of the prompt."""
    own, prompt = target("lol"), list(world.prompt(2))
    engine = world.make_engine(own, NoDrafter(), max_batch_size=1)
    engine.limits = Limits(1, prefill_chunk=7, prefix_bytes=1 << 20)
    asked = params("sampled", 2)
    first, again = (engine.generate([prompt], asked)[0] for _ in range(2))
    assert first.token_ids == again.token_ids == list(truth("lol", "sampled", 2))
    assert (first.stats.num_reused, again.stats.num_reused) == (0, len(prompt) - 1)


def test_no_contrast_is_no_change() -> None:
    for text, family in (("contrastive:alpha=0,beta=0", "llama"), ("scmoe:weak=2", "mixtral")):
        other = Target(similar()) if family == "llama" else None
        same = find(text).redefine(world.target(family), other, list)  # type: ignore[arg-type]
        asked = replace(params("greedy", 1), max_new_tokens=12)
        done = world.make_engine(same, NoDrafter()).generate([list(world.prompt(1))], asked)
        assert done[0].token_ids == list(world.truth(family, "greedy", 1))[:12]


def test_the_context_is_that_of_the_shortest_source() -> None:
    own = target("lol")
    assert own.context_length == world.target("llama").context_length - len(INSTRUCTION)
    length = own.context_length - 4
    with torch.inference_mode():
        asked = SamplingParams(max_new_tokens=99)
        done = world.make_engine(own, NoDrafter()).generate([[5] * length], asked)
    assert (done[0].finish_reason, len(done[0].token_ids)) == ("length", 4)


# -- two models by turns -----------------------------------------------------------------------


def switching(text: str, small: Any) -> Switching:
    made = find(text).redefine(world.target("llama"), Target(small), list)  # type: ignore[arg-type]
    assert isinstance(made, Switching)
    return made


@pytest.mark.parametrize(("text", "is_large"), [("ead:threshold=-1", 1), ("ead:threshold=inf", 0)])
def test_at_the_extremes_one_model_writes_alone(text: str, is_large: int) -> None:
    own, asked = switching(text, similar()), replace(params("sampled", 1), max_new_tokens=10)
    engine = world.make_engine(own, world.make_drafter("prompt_lookup", own))
    done = engine.generate([list(world.prompt(1))], asked)
    writer = (similar(), world.model("llama"))[is_large]
    assert done[0].token_ids == world.answer(writer, world.prompt(1), asked)
    assert own.num_read[is_large] > 10 and own.num_read[not is_large] == 0


def test_both_caches_after_many_switches() -> None:
    """What each model has read, and what it has missed, is the text; a prompt comes in parts."""
    own = switching("ead:threshold=2.1,window=1,stay=1", amateur())
    texts = [[*world.prompt(2), *[0] * 30]]
    drafter = Guided(world.make_drafter("prompt_lookup", own), texts)
    engine = world.make_engine(own, drafter, world.TREES["dynamic"], max_batch_size=1)
    engine.limits = Limits(1, prefill_chunk=4)
    request = engine.submit(list(world.prompt(2)), SamplingParams(seed=4, max_new_tokens=30))
    turns = []
    while engine.step():
        for text in engine._batch.cache.texts:  # type: ignore[attr-defined]
            turns.append(text.turn.is_large)
            whole = [*request.prompt_ids, *request.token_ids][:-1]
            for reader in text.readers if request.token_ids else ():
                cut = len(whole) - len(reader.missed)
                assert reader.missed == whole[cut:]
                if cut:
                    read = reader.source.readable(whole[:cut])
                    assert_cache_is_fresh(reader.cache, 0, reader.source.model, read)
    assert sum(a != b for a, b in pairwise(turns)) > 8


def test_what_switching_refuses() -> None:
    own = switching("ead", similar())
    with pytest.raises(TargetRefused, match="cannot draft for itself: two models write by turns"):
        world.make_drafter("swift", own)
    with pytest.raises(TargetRefused, match=r"read features.*two models write by turns"):
        world.make_engine(own, world.make_drafter("jakiro/wide", own))
    for text in ("ead:window=0", "ead:stay=0", "ead:threshold=nan"):
        with pytest.raises(ConfigError, match=text[4:].partition("=")[0]):
            find(text)
