"""The vectorised rules against their scalar references, coin by coin.

The coins and draws of the references are computed with Python integers from the documented streams,
so this also checks what each verdict is keyed by.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jakiro.sampling.draws import RuleDraws
from jakiro.sampling.noise import request_keys
from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify import RuleFunction
from jakiro.verify.block import block
from jakiro.verify.hybrid import hybrid
from jakiro.verify.kseq import kseq
from jakiro.verify.rejection import multi_round, recursive_rejection
from jakiro.verify.traversal import traversal
from jakiro.verify.typical import typical
from tests.oracles import rules
from tests.oracles.plain import gumbel_noise, splitmix64
from tests.oracles.rules import Probs

VOCAB = 4
PUBLISHED = (0.5, 0.3, 0.15, 0.05), (0.4, 0.4, 0.1, 0.1)
Tree = tuple[list[int], list[int], list[bool]]
Drawn = tuple[list[Tree], Tensor, Tensor]


@st.composite
def drafts(draw: st.DrawFn, is_chain: bool, has_twins: bool = False) -> Drawn:
    """Trees [B] of one shape, target laws [B, N, V] and draft laws [B, M, V]. Some rows are greedy
    or filtered; siblings are distinct unless they may be twins, which share their laws, but not
    always possible under their law."""
    size, rows = draw(st.integers(2, 7)), draw(st.integers(1, 3))
    parents = [-1] + [n - 1 if is_chain else draw(st.integers(0, n - 1)) for n in range(1, size)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    trees = []
    for _ in range(rows):
        tokens, valid = [0], [True]
        for node in range(1, size):
            taken = [tokens[i] for i in range(1, node) if parents[i] == parents[node]]
            free = [token for token in range(VOCAB) if has_twins or token not in taken]
            tokens.append(draw(st.sampled_from(free)) if free else 0)
            whole = all(
                valid[i] for i in range(node) if parents[i] == parents[node] or i == parents[node]
            )
            valid.append(bool(free) and whole and draw(st.integers(0, 7)) > 0)
        trees.append((tokens, parents, valid))

    def laws(count: int) -> Tensor:
        weights = torch.rand(rows, count, VOCAB, generator=generator).double()
        weights[torch.rand(weights.shape, generator=generator) < 0.2] = 0
        best = torch.nn.functional.one_hot(weights.argmax(-1), VOCAB).double()
        weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, best)
        is_greedy = torch.rand(rows, 1, 1, generator=generator) < 0.2
        weights = torch.where(is_greedy, best, weights)
        return weights / weights.sum(-1, keepdim=True)

    targets, drawn_from, inner = laws(size), laws(size), sorted({*parents} - {-1})
    for row, (tokens, _, _) in enumerate(trees if has_twins else ()):
        texts = rules.texts_of(tokens, parents)
        first = [texts.index(text) for text in texts]
        targets[row], drawn_from[row] = targets[row, first], drawn_from[row, first]
    return trees, targets, drawn_from[:, inner]


def verdicts(
    function: RuleFunction,
    trees: list[Tree],
    laws: tuple[Tensor, Tensor],
) -> tuple[TokenTree, Verdict]:
    tokens, parents, valid = (torch.tensor(column) for column in zip(*trees, strict=True))
    expanded = torch.tensor(sorted({*parents[0].tolist()} - {-1}))
    tree = TokenTree(tokens, parents, valid, laws=laws[1], expanded=expanded)
    seeds = torch.arange(len(trees))
    draws = RuleDraws(request_keys(seeds, torch.tensor(3)), 10 + seeds)
    at = tree.depth.T
    choice = torch.stack(
        [draws.draw(probs, d) for probs, d in zip(laws[0].unbind(1), at, strict=True)], 1
    )
    failed = torch.zeros_like(tree.valid)
    return tree, function(tree, NodeView(choice, failed, lambda: laws[0], draws))


def keyed(row: int, tree: TokenTree) -> tuple[rules.Accept, rules.Draw]:
    """The coins and draws of a row, in Python integers: the streams of its request."""
    request = splitmix64(splitmix64(row, 0), 3)
    coins = splitmix64(splitmix64(request, -2), 10 + row)

    def accept(node: int, prob: float) -> bool:
        return ((splitmix64(coins, node) >> 12) + 0.5) / 2.0**52 < prob

    def draw(node: int, probs: Probs) -> int:
        noise = gumbel_noise(row, 3, 10 + row + int(tree.depth[row, node]), VOCAB)
        return int((torch.tensor(probs).double().log() + torch.tensor(noise)).argmax())

    return accept, draw


def assert_equal(verdict: Verdict, row: int, path: list[int], bonus: int) -> None:
    assert verdict.paths[row] == path
    assert verdict.bonuses[row] == bonus


TREE_RULES = {
    recursive_rejection: rules.recursive_rejection,
    multi_round: rules.multi_round,
    kseq: rules.kseq,
    hybrid: rules.hybrid,
    traversal: rules.traversal,
}


@pytest.mark.parametrize("function", TREE_RULES, ids=lambda function: function.__name__)
@given(data=st.data())
def test_a_rule_for_trees_equals_the_scalar_rule(
    function: RuleFunction, data: st.DataObject
) -> None:
    has_twins = function in (multi_round, kseq)
    trees, *laws = data.draw(drafts(is_chain=False, has_twins=has_twins))
    tree, verdict = verdicts(function, trees, (laws[0], laws[1]))
    for row, scalar in enumerate(trees):
        at = tree.law_index[row].tolist()
        both = (
            lambda i, r=row: laws[0][r, i].tolist(),
            lambda i, r=row, at=at: laws[1][r, at[i]].tolist(),
        )
        assert_equal(verdict, row, *TREE_RULES[function](*scalar, both, keyed(row, tree)))


@given(drafts(is_chain=True))
def test_traversal_of_a_chain_is_block_verification(drawn: Drawn) -> None:
    trees, *laws = drawn
    _, whole = verdicts(block, trees, (laws[0], laws[1]))
    _, upwards = verdicts(traversal, trees, (laws[0], laws[1]))
    assert (whole.paths, whole.bonuses) == (upwards.paths, upwards.bonuses)


def test_recursive_rejection_accepts_the_published_share() -> None:
    """And emits the target's law: 200 000 rows of two siblings, drawn without replacement."""
    rows = 200_000
    target, draft = (torch.tensor(law).double() for law in (PUBLISHED[0], PUBLISHED[1]))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(draft.expand(rows, -1), 2, generator=generator)
    keys = request_keys(torch.arange(rows), torch.tensor(0))
    draws = RuleDraws(keys, torch.full_like(keys, 7))
    probs = target.expand(rows, 3, -1)
    choice = draws.draw(probs[:, 0], torch.zeros_like(keys))[:, None].expand(-1, 3)
    tree = TokenTree(
        torch.nn.functional.pad(drawn, (1, 0)),
        torch.tensor([[-1, 0, 0]]).expand(rows, -1),
        torch.ones(rows, 3, dtype=torch.bool),
        laws=draft.expand(rows, 1, -1),
        expanded=torch.zeros(1, dtype=torch.int64),
    )
    view = NodeView(choice, torch.zeros(rows, 3, dtype=torch.bool), lambda: probs, draws)
    verdict = recursive_rejection(tree, view)
    hits = torch.tensor([len(path) > 1 for path in verdict.paths])
    assert abs(float(hits.double().mean()) - 0.961111) < 0.002
    nodes = torch.tensor([path[-1] for path in verdict.paths])[:, None]
    first = torch.where(hits, tree.tokens.gather(1, nodes)[:, 0], torch.tensor(verdict.bonuses))
    assert float((first.bincount(minlength=VOCAB) / rows - target).abs().max()) < 0.005


@given(drafts(is_chain=True))
def test_block_equals_the_scalar_rule(drawn: Drawn) -> None:
    trees, *laws = drawn
    tree, verdict = verdicts(block, trees, (laws[0], laws[1]))
    for row, (tokens, _, valid) in enumerate(trees):
        drafted = [token for token, is_valid in zip(tokens, valid, strict=True) if is_valid]
        both = (lambda i, r=row: laws[0][r, i].tolist(), lambda i, r=row: laws[1][r, i].tolist())
        assert_equal(verdict, row, *rules.block(drafted, both, keyed(row, tree)))


@given(drafts(is_chain=False))
def test_typical_equals_the_scalar_rule(drawn: Drawn) -> None:
    trees, *laws = drawn
    _, verdict = verdicts(typical, trees, (laws[0], laws[1]))
    for row, scalar in enumerate(trees):
        path = rules.typical(*scalar, lambda i, r=row: laws[0][r, i].tolist())
        assert verdict.paths[row] == path


def test_typical_acceptance_is_lossy() -> None:
    """A token of probability 0.3 is always accepted where plain sampling emits it in 3 of 10."""
    target = torch.tensor([[[0.6, 0.3, 0.1, 0.0]] * 2]).double()
    _, verdict = verdicts(typical, [([0, 1], [-1, 0], [True, True])], (target, target[:, :1]))
    assert verdict.paths == [[0, 1]]


def test_a_token_that_the_target_does_not_know_is_not_typical() -> None:
    target = torch.tensor([[[1.0, 0.0, 0.0, 0.0]] * 2]).double()
    _, verdict = verdicts(typical, [([0, VOCAB], [-1, 0], [True, True])], (target, target[:, :1]))
    assert verdict.paths == [[0]]
