"""The suffix automaton against searches of the whole text."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jakiro.drafters.automata import CorpusAutomaton, OnlineAutomaton
from jakiro.drafters.prompt_lookup import PromptLookup
from jakiro.drafters.suffix_automaton import SuffixAutomaton, likeliest
from jakiro.errors import CheckpointError, ConfigError
from jakiro.sampling.params import SamplingParams
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from tests.conformance import world
from tests.drafters.host import accept, chains, draft, drafted

LETTERS = st.integers(0, 2)
TEXTS = st.lists(LETTERS, max_size=40)


def longest_earlier_suffix(text: list[int]) -> int:
    """Length of the longest suffix that also ends before the end of ``text``, by brute force."""
    found = 0
    for size in range(1, len(text)):
        if any(text[end - size : end] == text[-size:] for end in range(size, len(text))):
            found = size
    return found


def occurrences(documents: list[list[int]], pattern: list[int]) -> int:
    size = len(pattern)
    return sum(
        document[i : i + size] == pattern
        for document in documents
        for i in range(len(document) - size + 1)
    )


@settings(max_examples=300)
@given(TEXTS)
def test_match_is_the_longest_suffix_that_ends_earlier(text: list[int]) -> None:
    automaton = OnlineAutomaton()
    for size, token in enumerate(text, start=1):
        automaton.extend(token)
        match, follow = automaton.match, automaton.follow
        assert match == longest_earlier_suffix(text[:size])
        assert follow < size
        assert text[follow - match : follow] == text[size - match : size]


def test_ten_thousand_short_texts() -> None:
    generator = random.Random(0)
    for _ in range(10_000):
        text = [generator.randrange(3) for _ in range(generator.randrange(1, 9))]
        automaton = OnlineAutomaton()
        for token in text:
            automaton.extend(token)
        assert automaton.match == longest_earlier_suffix(text)


def test_states_are_at_most_two_per_token_and_work_is_linear() -> None:
    generator = random.Random(1)
    text = [generator.randrange(4) for _ in range(3000)] + [7, 8] * 500
    automaton = OnlineAutomaton()
    for token in text:
        automaton.extend(token)
    assert len(automaton.links) <= 2 * len(text)
    assert sum(map(len, automaton.edges)) <= 3 * len(text)


def test_the_latest_time_it_was_the_match_is_followed() -> None:
    drafter = SuffixAutomaton()
    drafter.begin([1, 2, 7, 0, 1, 2, 8, 0, 1], None)
    assert chains(draft(drafter, [2], TreePlan.chain(2))) == [[8, 0]]


def test_the_match_decides_how_long_the_draft_is() -> None:
    def size(text: list[int], root: int, growth: float) -> int:
        drafter = SuffixAutomaton(growth=growth)
        drafter.begin(text, None)
        return len(chains(draft(drafter, [root], TreePlan.chain(30)))[0])

    text = list(range(20))
    assert size([*text, 50], 3, 4.0) == 5
    assert size([*text, 50, 2], 3, 4.0) == 9
    assert size([*text, 50, 1, 2], 3, 2.0) == 7
    assert size([*text, 50, 1, 2], 3, 0.0) == 1
    assert size(text, 40, 4.0) == 0


@settings(max_examples=40)
@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS)
def test_corpus_match_and_counts(documents: list[list[int]], text: list[int]) -> None:
    corpus = CorpusAutomaton.of(documents)
    state = length = 0
    for size, token in enumerate(text, start=1):
        state, length = corpus.advance(state, length, token)
        inside = [n for n in range(size + 1) if occurrences(documents, text[size - n : size])]
        assert length == max(inside, default=0) or not any(documents)
        if length:
            suffix = text[size - length : size]
            children = corpus.children(state, 9)
            for share, child, _ in children:
                expected = occurrences(documents, [*suffix, child])
                assert share == pytest.approx(expected / occurrences(documents, suffix))
            assert len(children) == sum(
                occurrences(documents, [*suffix, child]) > 0 for child in range(3)
            )


def test_corpus_trees_hold_the_likeliest_paths() -> None:
    words = [[1, 2, 3]] * 5 + [[1, 2, 4]] * 3 + [[1, 5, 6]] * 2 + [[1, 7, 8]]
    counts = Counter(tuple(word[1:n]) for n in (2, 3) for word in words)
    corpus = CorpusAutomaton.of(words)
    state, _ = corpus.advance(0, 0, 1)
    sketch = likeliest(corpus, state, 1, TreePlan("dynamic", 5, 8, 4), 5)
    found = {tuple(path) for path in _paths(sketch.tokens, sketch.parents)}
    assert found == {path for path, _ in counts.most_common(4)} == {(2,), (2, 3), (2, 4), (5,)}
    narrow = likeliest(corpus, state, 1, TreePlan("dynamic", 5, 1, 4), 5)
    assert _paths(narrow.tokens, narrow.parents) == [[2], [2, 3]]


def _paths(tokens: list[int], parents: list[int]) -> list[list[int]]:
    paths: list[list[int]] = [[]]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        paths.append([*paths[parent], token])
    return paths[1:]


def test_a_corpus_match_must_be_longer_by_its_bias() -> None:
    corpus = CorpusAutomaton.of([[9, 8, 7, 6, 5, 4, 3, 2, 60, 61]])
    for bias, expected in ((2, [60, 61]), (7, [50])):
        drafter = SuffixAutomaton(corpus=corpus, corpus_bias=bias, growth=0)
        drafter.begin([2, 50, 51, 9, 8, 7, 6, 5, 4, 3], None)
        assert chains(draft(drafter, [2], TreePlan.chain(5))) == [expected]


def test_corpus_arrays_must_fit() -> None:
    arrays = CorpusAutomaton.of([[1, 2, 1]]).arrays()
    with pytest.raises(CheckpointError, match="do not fit"):
        CorpusAutomaton.from_arrays(arrays | {"links": arrays["links"][1:]})
    with pytest.raises(CheckpointError, match="expected"):
        CorpusAutomaton.from_arrays({"starts": arrays["starts"]})


def test_it_learns_what_was_accepted_and_rows_are_renumbered() -> None:
    drafter = SuffixAutomaton()
    for prompt in ([5, 6, 7, 5], [1, 2], [8, 3, 8]):
        drafter.begin(prompt, None)
    plan = TreePlan.chain(3)
    assert chains(draft(drafter, [6, 1, 3], plan, [9, 9, 1])) == [[7, 5, 6], [2, 1, 2], [8]]
    accept(drafter, [[6, 7], [1], [3, 4]])
    drafter.keep([2, 0])
    assert chains(draft(drafter, [8, 5], plan)) == [[3, 4, 8], [6, 7, 5]]


class Inner(PromptLookup):
    """Counts what it is asked for."""

    plan = TreePlan("dynamic", depth=2, width=2, budget=6)

    def __init__(self) -> None:
        super().__init__()
        self.caps: list[list[int]] = []
        self.plans: list[TreePlan] = []

    def draft(self, request):  # type: ignore[no-untyped-def]
        self.caps.append(request.depth_caps)
        self.plans.append(request.plan)
        return super().draft(request)


def test_the_arbiter_takes_rows_while_the_match_is_long() -> None:
    inner = Inner()
    drafter = SuffixAutomaton(inner, threshold=3)
    assert (drafter.plan.depth, drafter.plan.budget) == (6, 6)
    drafter.begin([1, 2, 3, 4, 5, 6, 7, 8, 1, 2], None)
    drafter.begin([1, 2, 3, 4, 5, 6, 7, 8, 0, 2], None)
    tree = draft(drafter, [3, 3])
    assert chains(tree) == [[4, 5, 6, 7, 8, 1], [4, 5]]
    assert (inner.caps, inner.plans) == ([[0, 99]], [inner.plan])
    assert [drafter.origin(row, 1, 1) for row in (0, 1)] == ["suffix_automaton", "prompt_lookup"]
    accept(drafter, [[3, 4], [3]])
    assert chains(draft(drafter, [9, 4], TreePlan.chain(1))) == [[], [5]]
    assert inner.plans[1] == TreePlan.chain(1)
    # The inner drafter has seen the 4 that was accepted while it was not asked.
    drafter.keep([0])
    accept(drafter, [[9]])
    assert drafted(draft(drafter, [4])) == {(9,), (9, 4)}


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"growth": -1.0}, {"corpus_bias": -1}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"must be at least 1|not negative"):
        SuffixAutomaton(**wrong)  # type: ignore[arg-type]


def test_on_a_chain_only_target_the_other_drafter_goes_no_deeper_than_alone() -> None:
    target = Target(world.model("llama"))
    target.route = "chain"
    inner = world.make_feature_drafter(target)
    engine = world.make_engine(target, SuffixAutomaton(inner, threshold=99))
    engine.generate([[5, 3, 9]], SamplingParams(max_new_tokens=12))
    assert len(engine.stats.offered_by_depth) == inner.plan.depth
