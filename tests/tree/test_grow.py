"""The growers against brute force: scores come from a fixed table of (depth, token, next token)."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jakiro.tree.grow import Expand, Frontier, grow
from jakiro.tree.shapes import EAGLE1_PATHS, TreePlan
from jakiro.tree.token_tree import TokenTree

Path = tuple[int, ...]
Found = dict[Path, float]
"""Tokens from below the root to a node -> the node's summed score."""


def table(depth: int, vocab: int, rows: int, seed: int, levels: int = 3) -> Tensor:
    """Scores [B, D, V, V] with many ties: steps below 0, of ``levels`` distinct values."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, depth, vocab, vocab)
    return -torch.randint(1, levels + 1, shape, generator=generator).float()


def expander(scores: Tensor, calls: list[Frontier] | None = None) -> Expand:
    def expand(frontier: Frontier) -> Tensor:
        if calls is not None:
            calls.append(frontier)
        rows = torch.arange(len(scores))[:, None]
        return scores[rows, frontier.depth, frontier.tokens]

    return expand


def grown(plan: TreePlan, scores: Tensor, caps: list[int] | None = None) -> TokenTree:
    """Roots carry token 0, whose children are scored by depth 0."""
    roots = torch.zeros(len(scores), dtype=torch.int64)
    caps = caps or [plan.depth] * len(scores)
    tree = grow(plan, roots, scores[:, 0, 0], expander(scores), caps)
    tree.check()
    return tree


def found(tree: TokenTree, row: int) -> Found:
    """The valid nodes of a row, by path."""
    nodes: Found = {}
    assert tree.scores is not None
    for node in range(1, tree.num_nodes):
        if tree.valid[row, node]:
            line = tree.ancestors[row, node].nonzero().flatten()[1:]
            nodes[tuple(tree.tokens[row, line].tolist())] = float(tree.scores[row, node])
    return nodes


def everything(scores: Tensor, depth: int, parent: Path = (), above: float = 0.0) -> Found:
    """All nodes of the full tree below ``parent`` for one row [D, V, V]."""
    nodes: Found = {}
    if len(parent) < depth:
        for token, step in enumerate(scores[len(parent), parent[-1] if parent else 0].tolist()):
            if step > -torch.inf:
                nodes[*parent, token] = above + step
                nodes |= everything(scores, depth, (*parent, token), above + step)
    return nodes


def closed(nodes: Found) -> bool:
    return all(len(path) == 1 or path[:-1] in nodes for path in nodes)


@given(
    seed=st.integers(0, 10_000),
    vocab=st.integers(1, 5),
    depth=st.integers(1, 4),
    budget=st.integers(1, 12),
)
def test_wide_dynamic_tree_is_the_best_of_all_trees(
    seed: int, vocab: int, depth: int, budget: int
) -> None:
    """With nothing pruned by width, the tree holds the ``budget`` best nodes there are."""
    scores = table(depth, vocab, 2, seed)
    tree = grown(TreePlan("dynamic", depth, vocab**depth, budget), scores)
    for row in range(2):
        all_nodes, nodes = everything(scores[row], depth), found(tree, row)
        assert len(nodes) == min(budget, len(all_nodes))
        assert closed(nodes)
        assert all(all_nodes[path] == score for path, score in nodes.items())
        best = sorted(all_nodes.values(), reverse=True)[: len(nodes)]
        assert sorted(nodes.values(), reverse=True) == best


def beam(scores: Tensor, plan: TreePlan) -> Found:
    """EAGLE-2 by the book for one row without ties: expand the best ``width`` nodes of each level
    by their best ``width`` children, keep the ``budget`` best of everything made. A level of less
    than ``reach`` is the last."""
    level: Found = {(): 0.0}
    made: Found = {}
    for depth in range(plan.depth):
        children: Found = {}
        for path, above in level.items():
            steps = scores[depth, path[-1] if path else 0]
            for token in steps.argsort(descending=True)[: plan.width].tolist():
                children[*path, token] = above + float(steps[token])
        made |= children
        level = dict(sorted(children.items(), key=lambda item: -item[1])[: plan.width])
        if sum(map(math.exp, level.values())) < plan.reach:
            break
    return dict(sorted(made.items(), key=lambda item: -item[1])[: plan.budget])


@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 4),
    depth=st.integers(1, 4),
    budget=st.integers(1, 20),
    reach=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_dynamic_tree_equals_the_scalar_builder(
    seed: int, width: int, depth: int, budget: int, reach: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(3, depth, 6, 6, generator=generator).log_softmax(-1)
    plan = TreePlan("dynamic", depth, width, budget, reach=reach)
    # Rows go on together, so one row alone ends where its own text hardly reaches.
    rows = [range(3)] if reach == 0 else [[row] for row in range(3)]
    for together in map(list, rows):
        tree = grown(plan, scores[together])
        for place, row in enumerate(together):
            nodes, expected = found(tree, place), beam(scores[row], plan)
            assert nodes.keys() == expected.keys()
            assert all(abs(nodes[path] - expected[path]) < 1e-4 for path in nodes)


def test_rows_go_on_together_while_it_pays_for_all_of_them() -> None:
    """A sure row alone is drafted to the end, its unsure neighbour alone hardly; together they are
    drafted as far as the mean of both says: 0.75, 0.61 and 0.59 by level."""
    scores = torch.full((2, 4, 6, 6), math.log(1 / 6))
    scores[0, :, :, 3] = -1e-3
    for reach, deepest in ((0.55, 4), (0.6, 3), (0.7, 2), (0.8, 1)):
        plan = TreePlan("dynamic", 4, 2, 40, reach=reach)
        assert grown(plan, scores[:1]).depth.amax(1).tolist() == [4]
        assert grown(plan, scores).depth.amax(1).tolist() == [deepest] * 2
    assert grown(plan, scores[1:]).depth.amax(1).tolist() == [1]


@given(seed=st.integers(0, 10_000), budget=st.integers(1, 16))
def test_ties_never_break_the_closure(seed: int, budget: int) -> None:
    """Every score alike, zero included: the worst case for a selection by score."""
    scores = torch.zeros(1, 4, 5, 5) if seed % 2 else table(4, 5, 1, seed, levels=1)
    nodes = found(grown(TreePlan("dynamic", 4, 3, budget), scores), 0)
    assert len(nodes) == budget
    assert closed(nodes)


def test_budget_of_the_whole_pool_keeps_everything() -> None:
    scores = table(3, 4, 2, seed=5)
    made = 2 + 2 * 2 + 2 * 2
    tree = grown(TreePlan("dynamic", 3, 2, made), scores)
    larger = grown(TreePlan("dynamic", 3, 2, made + 9), scores)
    assert tree.num_nodes == larger.num_nodes == made + 1
    assert [found(tree, r) for r in range(2)] == [found(larger, r) for r in range(2)]


def test_width_one_is_the_chain() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(2, 5, 7, 7, generator=generator).log()
    chain = grown(TreePlan.chain(5), scores)
    dynamic = grown(TreePlan("dynamic", 5, 1, 5), scores)
    assert torch.equal(chain.tokens, dynamic.tokens)
    assert chain.parents.tolist() == dynamic.parents.tolist() == [[-1, 0, 1, 2, 3, 4]] * 2
    for row in range(2):
        token, greedy = 0, []
        for depth in range(5):
            token = int(scores[row, depth, token].argmax())
            greedy.append(token)
        assert chain.tokens[row, 1:].tolist() == greedy


@given(seed=st.integers(0, 10_000))
def test_a_beam_keeps_the_best_of_each_level(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, 3, 5, 5, generator=generator).log()
    tree = grown(TreePlan.beam(3, 4), scores)
    for row in range(2):
        expected: Found = {}
        level: Found = {(): 0.0}
        for depth in range(3):
            below = {
                (*path, token): above + float(scores[row, depth, path[-1] if path else 0, token])
                for path, above in level.items()
                for token in range(5)
            }
            level = dict(sorted(below.items(), key=lambda item: -item[1])[:4])
            expected |= level
        nodes = found(tree, row)
        assert nodes.keys() == expected.keys()
        assert all(abs(nodes[path] - expected[path]) < 1e-4 for path in nodes)


def test_static_tree_has_its_shape_whatever_the_scores() -> None:
    generator = torch.Generator().manual_seed(4)
    scores = torch.rand(2, 5, 9, 9, generator=generator).log()
    tree = grown(TreePlan.static(EAGLE1_PATHS), scores)
    assert tree.num_nodes == len(EAGLE1_PATHS) + 1
    for row in range(2):
        expected: Found = {}
        for ranks in EAGLE1_PATHS:
            path, above = (0,), 0.0
            for depth, rank in enumerate(ranks):
                best = scores[row, depth, path[-1]].sort(descending=True)
                path, above = (*path, int(best.indices[rank])), above + float(best.values[rank])
            expected[path[1:]] = above
        nodes = found(tree, row)
        assert nodes.keys() == expected.keys()
        assert all(abs(nodes[path] - expected[path]) < 1e-4 for path in nodes)


def test_static_tree_is_cut_at_the_depth_of_its_plan() -> None:
    tree = grown(TreePlan.static(((0,), (0, 0), (0, 0, 0), (1,))), table(3, 4, 2, 0), [2, 1])
    assert tree.depth[tree.valid].max() == 2
    assert [len(found(tree, row)) for row in range(2)] == [3, 2]


def test_only_inner_nodes_are_expanded() -> None:
    calls: list[Frontier] = []
    scores = table(3, 4, 1, 0)
    plan = TreePlan.static(((0,), (1,), (2,), (1, 0), (1, 1), (1, 1, 0)))
    grow(plan, torch.zeros(1, dtype=torch.int64), scores[:, 0, 0], expander(scores, calls), [3])
    assert [(call.depth, call.tokens.shape[1]) for call in calls] == [(1, 1), (2, 1)]
    assert [call.parent_rows.tolist() for call in calls] == [[[0]], [[0]]]


def test_dynamic_frontiers_know_their_parents() -> None:
    calls: list[Frontier] = []
    generator = torch.Generator().manual_seed(8)
    scores = torch.rand(2, 4, 6, 6, generator=generator).log()
    plan = TreePlan("dynamic", 4, 3, 30)
    tree = grow(
        plan, torch.zeros(2, dtype=torch.int64), scores[:, 0, 0], expander(scores, calls), [4, 4]
    )
    pairs = [
        {
            (int(above), int(below))
            for above, below in zip(
                tree.tokens[row, tree.parents[row]], tree.tokens[row], strict=True
            )
        }
        for row in range(2)
    ]
    for before, after in itertools.pairwise(calls):
        parents = before.tokens.gather(1, after.parent_rows)
        for row in range(2):
            step = zip(parents[row].tolist(), after.tokens[row].tolist(), strict=True)
            assert set(step) <= pairs[row]


def test_nothing_is_expanded_that_could_not_be_kept() -> None:
    """Row 0 has its three nodes on level 1; in row 1 one of them is better than the last kept."""
    calls: list[Frontier] = []
    scores = torch.full((2, 4, 6, 6), -9.0)
    scores[:, 0] = -1.0
    scores[1, 0, 0, 2] = -0.1
    plan, roots = TreePlan("dynamic", 4, 3, 3), torch.zeros(2, dtype=torch.int64)
    tree = grow(plan, roots, scores[:, 0, 0], expander(scores, calls), [4, 4])
    assert [call.depth for call in calls] == [1]
    assert tree.depth.tolist() == [[0, 1, 1, 1]] * 2
    calls.clear()
    grow(plan, roots[:1], scores[:1, 0, 0], expander(scores[:1], calls), [4])
    assert not calls


def test_vocabulary_smaller_than_the_width() -> None:
    for plan in (TreePlan("dynamic", 2, 5, 9), TreePlan.static(((0,), (3,), (0, 0), (0, 4)))):
        tree = grown(plan, table(2, 2, 2, 1))
        assert max(tree.tokens.flatten().tolist()) < 2
        assert all(found(tree, row) for row in range(2))


def test_caps_hold_row_by_row() -> None:
    scores = table(4, 3, 4, 2)
    tree = grown(TreePlan("dynamic", 4, 3, 40), scores, caps=[0, 1, 3, 9])
    deepest = tree.depth.masked_fill(~tree.valid, -1).max(dim=1).values
    assert deepest.tolist() == [0, 1, 3, 4]


def test_a_capped_row_equals_a_shallower_plan() -> None:
    generator = torch.Generator().manual_seed(6)
    scores = torch.rand(2, 4, 6, 6, generator=generator).log()
    tree = grown(TreePlan("dynamic", 4, 3, 8), scores, caps=[4, 2])
    shallow = grown(TreePlan("dynamic", 2, 3, 8), scores)
    assert found(tree, 1) == found(shallow, 1)


def test_no_depth_left_is_the_root_alone() -> None:
    tree = grown(TreePlan("dynamic", 3, 2, 4), table(3, 3, 2, 0), caps=[0, 0])
    assert tree.num_nodes == 1


@given(seed=st.integers(0, 10_000))
def test_forbidden_candidates_are_never_nodes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, 3, 5, 5, generator=generator).log()
    scores[torch.rand(scores.shape, generator=generator) < 0.6] = -torch.inf
    plans = (TreePlan("dynamic", 3, 3, 20), TreePlan.static(((0,), (1,), (0, 0), (0, 2), (1, 1))))
    for plan in plans:
        tree = grown(plan, scores)
        for row in range(2):
            allowed = everything(scores[row], 3)
            assert all(path in allowed for path in found(tree, row))
