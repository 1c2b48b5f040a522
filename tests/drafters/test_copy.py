"""Copying from a source, against a brute-force alignment."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jakiro.drafters.copy import Alignment, Copy
from jakiro.errors import ConfigError
from jakiro.tree.shapes import TreePlan
from tests.drafters.host import accept, chains, draft, replay

TOKENS = st.integers(0, 3)


def realigned(source: list[int], answer: list[int], pointer: int, most: int) -> int | None:
    """Behind the longest suffix of the answer that is in the source, ahead if possible."""
    for size in range(min(most, len(answer)), 0, -1):
        ends = [e for e in range(size, len(source) + 1) if source[e - size : e] == answer[-size:]]
        if ends:
            ahead = [end for end in ends if end >= pointer]
            return ahead[0] if ahead else ends[-1]
    return None


@settings(max_examples=150)
@given(st.lists(TOKENS, max_size=12), st.lists(TOKENS, max_size=15), st.integers(1, 4))
def test_alignment_equals_a_search(source: list[int], answer: list[int], most: int) -> None:
    alignment = Alignment(source, most)
    pointer: int | None = 0
    last = 0
    for size, token in enumerate(answer, start=1):
        alignment.follow(token)
        if pointer is not None and source[pointer : pointer + 1] == [token]:
            pointer += 1
        else:
            pointer = realigned(source, answer[:size], last, most)
        last = last if pointer is None else pointer
        assert list(alignment.expected(5)) == ([] if pointer is None else source[last : last + 5])


SOURCE = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]


@pytest.mark.parametrize(
    ("answer", "tau"),
    [
        (SOURCE, 9),
        ([10, 11, 12, 50, 14, 15, 16, 17, 18, 19], 9 / 3),  # one replaced: found again behind it
        ([10, 11, 12, 50, 13, 14, 15, 16, 17, 18, 19], 10 / 3),  # one added
        ([10, 11, 12, 15, 16, 17, 18, 19], 7 / 2),  # two left out: found at once
        ([50, 51, 52], 1),
    ],
)
def test_edits_cost_a_cycle_or_two(answer: list[int], tau: float) -> None:
    assert replay(Copy(lambda ids: ids[1:]), [7, *SOURCE], answer) == tau


def test_the_prompt_is_the_source_unless_said_otherwise() -> None:
    drafter = Copy()
    drafter.begin([5, 6, 7, 8], None)
    drafter.begin([6, 1, 6, 2], None)
    assert chains(draft(drafter, [6, 6], TreePlan.chain(3), [9, 2])) == [[7, 8], [1, 6]]
    accept(drafter, [[6, 7], [6, 1]])
    drafter.keep([1])
    assert chains(draft(drafter, [6])) == [[2]]


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_ngram must be at least 1, got 0"):
        Copy(max_ngram=0)


@pytest.mark.parametrize("source", [None, "abc", [1.5]])
def test_a_source_is_a_list_of_token_ids(source: Any) -> None:
    with pytest.raises(ConfigError, match="source_of must return a list of token ids, got"):
        Copy(lambda ids: source).begin([1, 2, 3], None)
