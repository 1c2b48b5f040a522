"""Trees made on the host, against the invariants and by hand."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from jakiro.tree.sketch import Sketch, chain, mix, stack, what_follows
from tests.drafters.reference import paths

CPU = torch.device("cpu")
PATHS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=6)


@given(st.lists(PATHS, min_size=1, max_size=3), st.integers(0, 8))
def test_paths_share_prefixes_up_to_the_budget(rows: list[list[list[int]]], budget: int) -> None:
    sketches = [Sketch(9) for _ in rows]
    for sketch, wanted in zip(sketches, rows, strict=True):
        for path in wanted:
            sketch.path(path, budget)
    tree = stack(sketches, CPU)
    tree.check()
    for row, wanted in enumerate(rows):
        found = {tuple(path) for path in paths(tree, row).values()} - {()}
        prefixes = {tuple(path[:n]) for path in wanted for n in range(1, len(path) + 1)}
        assert found <= prefixes
        assert len(found) == min(budget, len(prefixes)) == sketches[row].num_drafted


def test_auxiliary_nodes_are_fed_and_never_valid() -> None:
    sketch = Sketch(4)
    one = sketch.auxiliary(0, 5)
    two = sketch.auxiliary(one, 5)
    three = sketch.child(0, 5)
    tree = stack([sketch, chain([4])], CPU)
    tree.check()
    assert (one, two, three) == (1, 2, 3)
    assert tree.valid.tolist() == [[True, False, False, True], [True, False, False, False]]
    assert tree.parents[0].tolist() == [-1, 0, 1, 0]
    assert tree.depth[0].tolist() == [0, 1, 2, 1]


def test_mix_takes_rows_from_either_tree() -> None:
    first = stack([chain([1, 2, 3]), chain([4, 5])], CPU)
    second = stack([chain([1, 8, 8, 8]), chain([4, 9])], CPU)
    tree = mix([True, False], first, second)
    tree.check()
    assert [list(paths(tree, row).values())[-1] for row in (0, 1)] == [[2, 3], [9]]
    assert mix([False, True], second, first).tokens[0].tolist() == [1, 2, 3, 0]


def test_a_text_goes_on_as_if_it_copied_itself() -> None:
    assert what_follows([9, 0, 1, 2], 1, 7) == [0, 1, 2, 0, 1, 2, 0]
    assert what_follows([9, 0, 1, 2], 1, 2) == [0, 1]
    assert what_follows([9], 1, 3) == what_follows([9], 0, 0) == []
