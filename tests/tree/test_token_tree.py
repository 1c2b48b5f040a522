"""The invariants of a tree, and what is derived from its parents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from jakiro.tree.token_tree import TokenTree
from tests.tree.strategies import path_to, trees


@given(trees())
def test_ancestors_are_the_closure_of_parents(tree: TokenTree) -> None:
    for row in range(tree.num_rows):
        for node in range(tree.num_nodes):
            path = path_to(tree, row, node)
            assert tree.ancestors[row, node].nonzero().flatten().tolist() == path
            assert tree.depth[row, node] == len(path) - 1


def test_ancestors_of_a_long_chain() -> None:
    size = 100
    parents = torch.arange(-1, size - 1)[None]
    tree = TokenTree(torch.arange(size)[None], parents, torch.ones(1, size, dtype=torch.bool))
    assert torch.equal(tree.ancestors[0], torch.ones(size, size, dtype=torch.bool).tril())


def test_root_only() -> None:
    tree = TokenTree.root_only(torch.tensor([4, 9]))
    tree.check()
    assert (tree.num_rows, tree.num_nodes) == (2, 1)
    assert tree.depth.tolist() == [[0], [0]]


@given(trees())
def test_check_accepts_every_tree_of_the_strategy(tree: TokenTree) -> None:
    tree.check()


@pytest.mark.parametrize(
    ("tokens", "parents", "valid", "message"),
    [
        ([1, 2], [0, 0], [True, True], "valid root"),
        ([1, 2], [-1, 0], [False, False], "valid root"),
        ([1, 2, 3], [-1, 2, 0], [True] * 3, "before its parent 2"),
        ([1, 2, 3], [-1, 0, -1], [True] * 3, "before its parent -1"),
        ([1, 2, 2], [-1, 0, 0], [True] * 3, "twin of node 2"),
        ([1, 2, 3], [-1, 0, 1], [True, False, True], "below padding 1"),
    ],
)
def test_check_names_what_is_broken(
    tokens: list[int], parents: list[int], valid: list[bool], message: str
) -> None:
    tree = TokenTree(torch.tensor([tokens]), torch.tensor([parents]), torch.tensor([valid]))
    with pytest.raises(AssertionError, match=message):
        tree.check()


def test_twins_below_different_parents_are_allowed() -> None:
    tokens, parents = torch.tensor([[1, 2, 3, 7, 7]]), torch.tensor([[-1, 0, 0, 1, 2]])
    TokenTree(tokens, parents, torch.ones_like(tokens, dtype=torch.bool)).check()
