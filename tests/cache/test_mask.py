"""Masks against their definition, one pair of slots at a time."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from jakiro.cache.mask import Window, additive, attendable, positions, slot_positions, tree_mask
from jakiro.tree.token_tree import TokenTree
from tests.tree.strategies import path_to, trees

LENGTHS = st.lists(st.integers(0, 20), min_size=3, max_size=3)
WINDOWS = st.one_of(st.none(), st.builds(Window, st.integers(1, 9), st.booleans()))


def defined(tree: TokenTree, length: int, row: int, node: int, window: Window | None) -> set[int]:
    """The slots a node may see: its text, cut by the window, found by walking up the tree."""
    path = path_to(tree, row, node)
    slot_of = list(range(length)) + [length + above for above in path]
    here = len(slot_of) - 1
    if window is None:
        first = 0
    elif window.chunked:
        first = here - here % window.size
    else:
        first = max(0, here - window.size + 1)
    return set(slot_of[first:])


@given(trees(), LENGTHS, WINDOWS, st.integers(0, 4))
def test_tree_mask_is_its_definition(
    tree: TokenTree, lengths: list[int], window: Window | None, room: int
) -> None:
    lengths = lengths[: tree.num_rows]
    span = max(lengths) + tree.num_nodes + room
    mask = tree_mask(tree, lengths, span, window)
    assert mask.shape == (tree.num_rows, tree.num_nodes, span)
    for row, length in enumerate(lengths):
        for node in range(tree.num_nodes):
            seen = set(mask[row, node].nonzero().flatten().tolist())
            assert seen == defined(tree, length, row, node, window)


@given(trees(), LENGTHS)
def test_positions(tree: TokenTree, lengths: list[int]) -> None:
    lengths = lengths[: tree.num_rows]
    span = max(lengths) + tree.num_nodes
    where = positions(tree, lengths)
    by_slot = slot_positions(tree, lengths, span)
    for row, length in enumerate(lengths):
        assert by_slot[row, :length].tolist() == list(range(length))
        for node in range(tree.num_nodes):
            assert where[row, node] == length + len(path_to(tree, row, node)) - 1
            assert by_slot[row, length + node] == where[row, node]


def test_siblings_are_invisible() -> None:
    parents = torch.tensor([[-1, 0, 0, 1, 2]])
    tree = TokenTree(torch.arange(5)[None], parents, torch.ones(1, 5, dtype=torch.bool))
    mask = tree_mask(tree, [2], 7)[0].int().tolist()
    assert mask == [
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 1, 0],
        [1, 1, 1, 0, 1, 0, 1],
    ]


def test_a_window_counts_positions_not_slots() -> None:
    """Node 3 lies three slots behind the root, but is its child: a window of 2 shows both."""
    parents = torch.tensor([[-1, 0, 0, 0]])
    tree = TokenTree(torch.arange(4)[None], parents, torch.ones(1, 4, dtype=torch.bool))
    mask = tree_mask(tree, [5], 9, Window(2))
    assert mask[0, 3].nonzero().flatten().tolist() == [5, 8]


def test_attendable_takes_fewer_queries_than_entries() -> None:
    reach = torch.tensor([[[True, False, True]], [[False, True, True]]])
    mask = attendable(reach, [1, 3], 6).int().tolist()
    assert mask == [[[1, 1, 0, 1, 0, 0]], [[1, 1, 1, 0, 1, 1]]]


def test_additive() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        mask = additive(torch.tensor([[[True, False]]]), dtype)
        assert mask.dtype == dtype
        assert mask.shape == (1, 1, 1, 2)
        assert mask.flatten().tolist() == [0.0, torch.finfo(dtype).min]
