"""Random token trees, for every test that says something about all of them."""

from __future__ import annotations

import random

import torch
from hypothesis import strategies as st

from jakiro.tree.token_tree import TokenTree


@st.composite
def trees(draw: st.DrawFn, max_rows: int = 3, max_nodes: int = 9) -> TokenTree:
    """A batch of trees of any shape, padding anywhere below valid nodes included."""
    rows = draw(st.integers(1, max_rows))
    size = draw(st.integers(1, max_nodes))
    parents = [[-1] + [draw(st.integers(0, i - 1)) for i in range(1, size)] for _ in range(rows)]
    valid = [_valid(line, [draw(st.booleans()) for _ in line]) for line in parents]
    first = draw(st.integers(0, 30))
    tokens = torch.arange(first, first + rows * size).view(rows, size)
    return TokenTree(tokens, torch.tensor(parents), torch.tensor(valid))


def random_tree(
    generator: random.Random, rows: int, size: int, vocab_size: int, branching: bool = True
) -> TokenTree:
    """A seeded tree whose nodes are all valid and whose siblings differ."""
    parents = [
        [-1] + [generator.randrange(i) if branching else i - 1 for i in range(1, size)]
        for _ in range(rows)
    ]
    tokens = [generator.sample(range(vocab_size), size) for _ in range(rows)]
    shape = torch.tensor(parents)
    return TokenTree(torch.tensor(tokens), shape, torch.ones_like(shape, dtype=torch.bool))


def path_to(tree: TokenTree, row: int, node: int) -> list[int]:
    """Node indices from the root to ``node``, by walking up."""
    path = [node]
    while path[0]:
        path.insert(0, int(tree.parents[row, path[0]]))
    return path


def _valid(parents: list[int], wanted: list[bool]) -> list[bool]:
    valid = [True]
    for parent, wish in zip(parents[1:], wanted[1:], strict=True):
        valid.append(wish and valid[parent])
    return valid
