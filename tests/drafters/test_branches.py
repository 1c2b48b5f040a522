"""What nodes say of their children: mixtures, proposals in turn, restricted vocabularies."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from jakiro.drafters.branches import Decoupled, Union
from jakiro.drafters.experts import Experts
from jakiro.drafters.feature import FeatureDrafter
from jakiro.drafters.nn import DraftHead
from jakiro.drafters.vocabulary import DraftVocabulary
from jakiro.errors import ConfigError
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from tests.conformance import world
from tests.drafters.reference import PlainScores, begun, paths, request

PROMPTS = [[7, 3, 9, 40, 11], [5]]
PLAN = TreePlan("dynamic", depth=4, width=4, budget=40)


def spoken(
    laws: list[list[float]],
    weights: list[float],
    kind: type[Decoupled],
    ids: list[int] | None = None,
) -> Decoupled:
    """One node whose experts say ``laws``; the feature of expert j is the logarithm of its law.
    ``ids``: those tokens alone are scored."""
    target = SimpleNamespace(
        lm_head=lambda features: features,
        lm_head_of=lambda ids: lambda features: features[..., ids],
        vocab_size=len(laws[0]),
    )
    features = torch.tensor(laws).log()[None, None]
    places = None if ids is None else torch.tensor(ids)
    vocabulary = DraftVocabulary(target, places)  # type: ignore[arg-type]
    return kind(Experts(features, torch.tensor(weights)[None, None]), vocabulary)


LAWS = [[0.5, 0.3, 0.1, 0.06, 0.04], [0.05, 0.3, 0.02, 0.4, 0.23]]


def carried(nodes: Decoupled, tokens: list[int]) -> list[int]:
    """Which expert's feature each of ``tokens`` carries."""
    given = nodes.carried(torch.tensor([tokens]), torch.zeros(1, len(tokens), dtype=torch.int64))
    return [
        int((given[0, i] == nodes.experts.features[0, 0]).all(-1).nonzero())
        for i in range(len(tokens))
    ]


def test_children_come_from_the_mixture_and_carry_who_explains_them_best() -> None:
    nodes = spoken(LAWS, [0.6, 0.4], Decoupled)
    mixture = 0.6 * torch.tensor(LAWS[0]) + 0.4 * torch.tensor(LAWS[1])
    torch.testing.assert_close(nodes.law()[0, 0].exp(), mixture)
    torch.testing.assert_close(nodes.scores(PlainScores(), 1, 3)[0, 0].exp(), mixture)
    assert carried(nodes, [0, 1, 2, 3, 4]) == [0, 0, 0, 1, 1]
    assert carried(spoken(LAWS, [0.1, 0.9], Decoupled), [0, 1, 2, 3, 4]) == [0, 1, 1, 1, 1]


def test_experts_propose_in_turn() -> None:
    nodes = spoken(LAWS, [0.4, 0.6], Union)
    # In turn 3, 0, 1, (1), 4, ...: expert 1 has the larger gate and begins.
    for width, expected in ((1, {3}), (2, {3, 0}), (3, {3, 0, 1}), (4, {3, 0, 1, 4})):
        scores = nodes.scores(PlainScores(), 1, width)[0, 0]
        assert set(scores.isfinite().nonzero()[:, 0].tolist()) == expected
    assert carried(nodes, [3, 0, 1, 4]) == [1, 0, 1, 1]
    torch.testing.assert_close(scores[3].exp(), torch.tensor(0.4 * 0.06 + 0.6 * 0.4))
    assert nodes.scores(PlainScores(), 1, 9)[0, 0].isfinite().all()


@pytest.mark.parametrize("kind", [Decoupled, Union])
def test_scored_tokens_alone_are_mixed_and_proposed(kind: type[Decoupled]) -> None:
    """As of experts that know no other tokens: what is left out takes no turn and no mass."""
    for ids in ([0, 2, 3], [1, 2, 4], [0, 1, 3, 4]):
        kept = torch.tensor(LAWS)[:, ids]
        alone = spoken((kept / kept.sum(1, keepdim=True)).tolist(), [0.4, 0.6], kind)
        among = spoken(LAWS, [0.4, 0.6], kind, ids)
        for width in (1, 2, 3):
            scores = [nodes.scores(PlainScores(), 1, width) for nodes in (among, alone)]
            torch.testing.assert_close(*scores)
            rows = torch.zeros(1, len(ids), dtype=torch.int64)
            tokens = torch.arange(len(ids))[None]
            assert torch.equal(*(nodes.chosen(tokens, rows) for nodes in (among, alone)))


def tree_of(head: DraftHead, contrast_levels: int | None = None) -> TokenTree:
    target = world.target("llama")
    drafter = FeatureDrafter(head, target, contrast_levels)
    roots, _ = begun(drafter, target, PROMPTS)
    with torch.inference_mode():
        return drafter.draft(request(roots, PROMPTS, PLAN))


def variant(**settings: object) -> DraftHead:
    """A head of the weights of ``jakiro/wide``, of another kind."""
    target = world.target("llama")
    source = world.head(target, "jakiro")
    config = type(source.config)(**{**vars(source.config), **settings})
    head = DraftHead(config).to(target.dtype)
    weights = {**head.state_dict(), **source.state_dict()}
    gate = "layers.0.mlp_moe.gate.weight"
    weights[gate] = weights[gate][: len(head.get_parameter(gate))]
    head.load_state_dict(weights)
    return head


@pytest.mark.parametrize("branches", ["sum", "decoupled", "union"])
def test_a_draft_vocabulary_of_everything_changes_nothing(branches: str) -> None:
    whole = tree_of(variant(branches=branches))
    size = world.target("llama").vocab_size
    same = tree_of(variant(branches=branches, draft_vocab_size=size))
    assert torch.equal(whole.tokens, same.tokens) and torch.equal(whole.parents, same.parents)
    few = variant(branches=branches, draft_vocab_size=9)
    few.get_buffer("draft_ids").copy_(torch.arange(3, 30, 3))
    tokens = tree_of(few)
    drafted = tokens.tokens[:, 1:][tokens.valid[:, 1:]]
    assert set(drafted.tolist()) <= set(range(3, 30, 3)) and len(drafted.unique()) > 3


@pytest.mark.parametrize("branches", ["sum", "decoupled", "union"])
def test_fewer_scored_tokens_than_places(branches: str) -> None:
    """The places left over are never nodes, whatever token stands there."""
    few = variant(branches=branches, draft_vocab_size=2)
    tree = tree_of(few)
    tree.check()
    assert set(tree.tokens[:, 1:][tree.valid[:, 1:]].tolist()) == {0, 1}


def test_ids_must_be_ascending_ids_of_the_target() -> None:
    for ids in ([3, 2], [4, 4], [-1, 2], [5, 10_000]):
        head = variant(draft_vocab_size=2)
        head.get_buffer("draft_ids").copy_(torch.tensor(ids))
        with pytest.raises(ConfigError, match="ascending ids"):
            FeatureDrafter(head, world.target("llama"))


def test_equal_experts_need_no_decoupling() -> None:
    heads = [variant(branches=branches, contrast_levels=0) for branches in ("sum", "decoupled")]
    for head in heads:
        experts = head.layers[0].mlp_moe.experts  # type: ignore[union-attr]
        experts[1].load_state_dict(experts[0].state_dict())  # type: ignore[index,union-attr]
    one, two = map(tree_of, heads)
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.parents, two.parents)


def test_siblings_are_continued_from_different_features() -> None:
    trees = [tree_of(variant(branches=branches)) for branches in ("sum", "decoupled")]
    assert not torch.equal(trees[0].tokens, trees[1].tokens)


@pytest.mark.parametrize("plan", [PLAN, world.TREES["static"]], ids=str)
@pytest.mark.parametrize("branches", ["sum", "decoupled", "union"])
def test_who_stands_behind_every_node(branches: str, plan: TreePlan) -> None:
    """Of single experts the one that makes the token likeliest, or names it first, by the laws of
    its path alone, among the tokens of the draft vocabulary."""
    target = world.target("llama")
    head = variant(branches=branches, draft_vocab_size=12)
    head.get_buffer("draft_ids").copy_(torch.arange(3, 39, 3))
    drafter = FeatureDrafter(head, target)
    roots, references = begun(drafter, target, PROMPTS)
    assert max(roots) >= 12, "roots are no tokens of the draft vocabulary"
    with torch.inference_mode():
        tree = drafter.draft(replace(request(roots, PROMPTS, plan), is_traced=True))
    seen = set()
    for row, reference in enumerate(references):
        for node, path in paths(tree, row).items():
            if node:
                wanted = "contrast" if len(path) == plan.depth else "experts"
                if wanted == "experts" and branches != "sum":
                    wanted = f"expert {reference.expert_behind(path)}"
                assert drafter.origin(row, node, len(path)) == wanted
                seen.add(wanted)
    known = {"experts"} if branches == "sum" else {"expert 0", "expert 1"}
    assert seen == known | {"contrast"}


@pytest.mark.parametrize(
    "sharpness",
    [[1.0, 1.0, 1.0], [0.0], [1.0, torch.nan], [torch.inf], [(1.0, 0.0)], [(1.0, 1.0, 1.0)], [()]],
)
def test_an_impossible_sharpness_is_refused(sharpness: list[Any]) -> None:
    with pytest.raises(ConfigError, match="sharpness must be at most 2 positive numbers"):
        FeatureDrafter(variant(), world.target("llama"), sharpness=sharpness)


def test_unused_contrasts_are_refused_where_there_are_none() -> None:
    with pytest.raises(ConfigError, match="contrast_levels must lie between 0 and 1"):
        tree_of(variant(), 2)
    assert isinstance(tree_of(variant(), 0).tokens, Tensor)
