"""Prompt lookup against a scalar search of the whole text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jakiro.drafters.base import DraftRequest
from jakiro.drafters.prompt_lookup import PromptLookup
from jakiro.errors import ConfigError
from jakiro.target.output import TargetOutput
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from tests.conformance.doubles import chain_tree
from tests.drafters.reference import PlainScores


def search(text: list[int], max_ngram: int, min_ngram: int, limit: int) -> list[int]:
    """What followed the latest earlier occurrence of the longest suffix that has one. (One that
    only the root follows, the run of a single token, is not looked at: it would foretell no more.)
    """
    for size in range(max_ngram, min_ngram - 1, -1):
        for end in range(len(text) - 2, size - 1, -1):
            if text[end - size : end] == text[-size:] and len(text) >= size:
                grown = list(text)
                for i in range(limit):
                    grown.append(grown[end + i])
                return grown[len(text) :]
    return []


def draft(drafter: PromptLookup, roots: list[int], caps: list[int], plan: TreePlan) -> TokenTree:
    lengths = [0] * len(roots)  # where the rows stand does not matter to it
    return drafter.draft(DraftRequest(torch.tensor(roots), lengths, caps, plan, PlainScores()))


def chains(tree: TokenTree) -> list[list[int]]:
    """Per row the drafted tokens; the tree must be a chain."""
    tree.check()
    assert torch.equal(
        tree.depth[tree.valid], torch.arange(tree.num_nodes).expand_as(tree.valid)[tree.valid]
    )
    both = zip(tree.tokens.tolist(), tree.valid.tolist(), strict=True)
    return [[t for t, v in zip(*row, strict=True) if v][1:] for row in both]


def told(drafter: PromptLookup, rows: list[list[int]]) -> None:
    """Every row accepts all of ``rows``, roots included."""
    tree = chain_tree(rows)
    paths = [list(range(len(row))) for row in rows]
    out = TargetOutput(torch.zeros(len(rows), tree.num_nodes, 1))
    drafter.accept(tree, Verdict(paths, [0] * len(rows)), out)


TOKENS = st.integers(0, 3)


@settings(max_examples=60)
@given(
    st.lists(TOKENS, min_size=1, max_size=12),
    st.lists(st.lists(TOKENS, min_size=1, max_size=4), max_size=4),
    st.integers(1, 4),
    st.integers(1, 2),
    st.integers(0, 6),
)
def test_draft_equals_a_search_of_the_whole_text(
    prompt: list[int], blocks: list[list[int]], longest: int, shortest: int, cap: int
) -> None:
    drafter = PromptLookup(max(longest, shortest), shortest)
    drafter.begin(prompt, None)
    text, root = list(prompt), 1
    for block in [*blocks, [2]]:
        (found,) = chains(draft(drafter, [root], [cap], TreePlan.chain(5)))
        limit = min(cap, 5)
        assert found == search([*text, root], max(longest, shortest), shortest, limit)
        told(drafter, [[root, *block[:-1]]])
        text += [root, *block[:-1]]
        root = block[-1]


def test_the_latest_occurrence_of_the_longest_ngram_wins() -> None:
    drafter = PromptLookup()
    drafter.begin([1, 2, 3, 9, 9, 2, 3, 8, 7, 1, 2], None)
    # (1, 2, 3) was followed by 9 9; the later (2, 3) is shorter.
    assert chains(draft(drafter, [3], [2], TreePlan.chain(10))) == [[9, 9]]


def test_a_text_without_repetition_is_not_drafted() -> None:
    drafter = PromptLookup()
    drafter.begin([1, 2, 3], None)
    assert chains(draft(drafter, [4], [9], TreePlan.chain(10))) == [[]]


def test_rows_are_ragged_and_keep_renumbers_them() -> None:
    drafter = PromptLookup()
    for prompt in ([5, 6, 7, 5], [1, 1, 1], [8, 3, 8]):
        drafter.begin(prompt, None)
    plan = TreePlan.chain(2)
    assert chains(draft(drafter, [6, 9, 3], [5, 5, 1], plan)) == [[7, 5], [], [8]]
    drafter.keep([2, 0])
    assert chains(draft(drafter, [3, 6], [5, 5], plan)) == [[8, 3], [7, 5]]


def test_a_budget_limits_the_chain() -> None:
    drafter = PromptLookup()
    drafter.begin([5, 6, 7, 8, 5], None)
    plan = TreePlan("dynamic", depth=9, width=3, budget=2)
    assert chains(draft(drafter, [6], [9], plan)) == [[7, 8]]


def test_ngrams_may_be_as_long_as_any_text() -> None:
    drafter = PromptLookup(10**18)
    drafter.begin([5, 6, 7, 5], None)
    assert chains(draft(drafter, [6], [2], TreePlan.chain(10))) == [[7, 5]]


@pytest.mark.parametrize(("longest", "shortest"), [(2, 3), (3, 0), (0, 0)])
def test_sizes_must_be_ordered(longest: int, shortest: int) -> None:
    with pytest.raises(ConfigError, match=f"min_ngram={shortest}"):
        PromptLookup(longest, shortest)
