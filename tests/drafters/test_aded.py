"""Trigrams against their formula, and both searches against what they promise."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jakiro.drafters.aded import Aded, Search, Trigrams, _Place, best_first
from jakiro.errors import ConfigError
from jakiro.tree.shapes import TreePlan
from jakiro.tree.sketch import Sketch
from tests.drafters.host import accept, draft, drafted

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=30)
PLAN = TreePlan("dynamic", depth=3, width=12, budget=7)


def learned(text: list[int], **settings: float) -> Trigrams:
    trigrams = Trigrams(**settings)
    for token in text:
        trigrams.extend(token)
    return trigrams


def share(text: list[int], context: tuple[int, ...], token: int) -> float:
    """Absolute discounting by half an occurrence, from counts of the whole text."""
    if not context:
        return 0.0
    size = len(context)
    runs = Counter(tuple(text[i : i + size + 1]) for i in range(len(text) - size))
    after = {run[-1]: n for run, n in runs.items() if run[:-1] == context}
    if not after:
        return share(text, context[1:], token)
    total = sum(after.values())
    own = max(after.get(token, 0) - 0.5, 0) / total
    return own + 0.5 * len(after) / total * share(text, context[1:], token)


@settings(max_examples=100)
@given(TEXTS)
def test_probabilities_are_discounted_and_backed_off(text: list[int]) -> None:
    trigrams = learned(text, cap=100.0)
    for context in ((0,), (1, 2), (3, 3), trigrams.context):
        found = dict(trigrams.after(context))
        expected = {token: share(text, context, token) for token in range(4)}
        assert found == pytest.approx({t: p for t, p in expected.items() if p > 0})
        assert sum(found.values()) <= 1 + 1e-9


def test_weights_grow_by_occurrence_up_to_the_cap() -> None:
    trigrams = learned([1, 2, 3] * 5)
    assert trigrams.weight((1, 2), 3) == pytest.approx(5 * 0.25)
    assert trigrams.weight((2,), 3) == pytest.approx(5 * 0.25)
    assert learned([1, 2, 3] * 40).weight((1, 2), 3) == 3.0


def paths(sketch: Sketch) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for token, parent in zip(sketch.tokens[1:], sketch.parents[1:], strict=True):
        found.append((*found[parent], token))
    return found[1:]


def probability(trigrams: Trigrams, path: tuple[int, ...]) -> float:
    text, result = trigrams.context, 1.0
    for token in path:
        result *= dict(trigrams.after(text)).get(token, 0.0)
        text = (*text, token)[-2:]
    return result


@settings(max_examples=60)
@given(TEXTS, st.integers(0, 3))
def test_best_first_finds_the_likeliest_paths(text: list[int], depth: int) -> None:
    trigrams = learned(text)
    everything = [path for size in range(1, depth + 1) for path in product(range(4), repeat=size)]
    best = sorted((probability(trigrams, path) for path in everything), reverse=True)[:7]
    found = [probability(trigrams, path) for path in paths(best_first(trigrams, depth, PLAN))]
    assert found == pytest.approx([value for value in best if value > 0])


def test_urgency_is_the_formula_of_the_source() -> None:
    parent = _Place((1, 2), 0.0, 0, visits=30)
    place = _Place((2, 3), 0.25, 1, parent, visits=4, score=9.0)
    expected = 9 / 4 + (32 + math.log((30 + 8 + 1) / 8)) * 0.25 * math.sqrt(30) / 5
    assert place.urgency() == pytest.approx(expected)
    assert _Place((2, 3), 0.25, 1, parent).urgency() == math.inf


def test_every_simulation_is_told_to_all_above_it() -> None:
    text = [random.Random(3).randrange(5) for _ in range(60)]
    search = Search(learned(text), 4, 12, random.Random(0))
    for _ in range(150):
        search.simulate()
    assert search.places[0].visits == 150
    for place in search.places:
        below = sum(child.visits for child in place.children)
        leaves = place.visits - below
        assert leaves >= (place.visits > 0)
        assert leaves <= 1 or not place.children
        assert place.score <= place.visits * (1 + 4)
    visits = {path: place.visits for path, place in _by_path(search).items()}
    found = paths(search.sketch(9))
    assert (
        sorted((visits[path] for path in found), reverse=True)
        == sorted(visits.values(), reverse=True)[:9]
    )


def _by_path(search: Search) -> dict[tuple[int, ...], _Place]:
    found: dict[tuple[int, ...], _Place] = {}
    for place in search.places[1:]:
        path, above = (), place
        while above.parent is not None:
            path, above = (above.context[-1], *path), above.parent
        found[path] = place
    return found


def test_the_search_visits_the_likely_most() -> None:
    trigrams = learned([1, 2, 3] * 9 + [1, 2, 4] + [1, 2, 5, 1, 2])
    search = Search(trigrams, 3, 12, random.Random(0))
    for _ in range(150):
        search.simulate()
    first = search.places[0].children
    assert first[0].context[-1] == 3
    assert first[0].visits > first[1].visits
    assert paths(search.sketch(1)) == [(3,)]


@pytest.mark.parametrize("simulations", [0, 40])
def test_it_learns_what_was_accepted_and_rows_are_renumbered(simulations: int) -> None:
    drafter = Aded(simulations)
    drafter.begin([1, 2, 3, 4, 1, 2], None)
    drafter.begin([7, 8], None)
    tree = draft(drafter, [3, 9], caps=[2, 9])
    assert (4, 1) in drafted(tree)
    assert drafted(tree, 1) == set()
    accept(drafter, [[3, 4], [9, 7]])
    drafter.keep([1])
    assert (9, 7, 8, 9) in drafted(draft(drafter, [8]))


def test_drafts_are_the_same_alone_and_in_a_batch() -> None:
    text = [random.Random(5).randrange(4) for _ in range(40)]

    def drafts(neighbours: int) -> list[set[tuple[int, ...]]]:
        drafter = Aded(30)
        for row in range(neighbours):
            drafter.begin([row, 1, row, 1], None)
        drafter.begin(text, None)
        found = []
        for root in (1, 2, 3):
            found.append(drafted(draft(drafter, [1] * neighbours + [root]), neighbours))
            accept(drafter, [[1]] * neighbours + [[root]])
        return found

    assert drafts(0) == drafts(2)


@pytest.mark.parametrize(
    "wrong", [{"gain": 0.0}, {"cap": 0.1}, {"discount": 1.5}, {"discount": -0.1}]
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name}={wrong[name]}"):
        Trigrams(**wrong)
    with pytest.raises(ConfigError, match="must not be negative, got -1"):
        Aded(-1)
