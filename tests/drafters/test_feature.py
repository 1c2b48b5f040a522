"""The drafting cycle of the feature heads against whole-sequence recomputation, path by path."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from jakiro.api import _DeterministicScores
from jakiro.drafters.feature import FeatureDrafter
from jakiro.engine.engine import Engine
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from tests.conformance import world
from tests.conformance.doubles import OnAndOff
from tests.conformance.guided import Guided
from tests.drafters.reference import PathReference, begun, paths, request

PROMPTS = [[7, 3, 9, 40, 11], [5], [8, 30, 12, 12, 9, 20, 33, 41, 2, 17, 10]]
METHODS = ("jakiro", "eagle2", *(f"jakiro/{name}" for name in world.VARIANTS))


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("method", METHODS)
def test_number_of_draft_forwards(method: str, levels: int) -> None:
    """Per cycle one catch-up forward and one per further level; every contrast saves one."""
    target = world.target("llama")
    drafter = world.make_feature_drafter(target, method)
    texts = [[*world.prompt(row), *world.truth("llama", "greedy", row)] for row in (0, 2)]
    plan = TreePlan("dynamic", depth=levels, width=3, budget=60)
    engine = world.make_engine(target, Guided(drafter, texts), plan)
    requests = [
        engine.submit(list(world.prompt(row)), world.params("greedy", row)) for row in (0, 2)
    ]
    expected = levels - min(drafter.head.config.contrast_levels, levels - 1)
    num_cycles = 0
    while min(request.num_left for request in requests) > levels:
        before = drafter.num_forwards
        engine.step()
        assert drafter.num_forwards - before == expected
        num_cycles += 1
    assert num_cycles > 3


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("levels", [1, 2, 3, 5])
def test_every_node_is_what_its_own_path_says(method: str, levels: int, family: str) -> None:
    """Candidates and scores of all levels: those that no forward made come from the contrasts of
    the last node that was fed."""
    target = world.target(family)
    drafter = world.make_feature_drafter(target, method)
    width = 3
    plan = TreePlan("dynamic", depth=levels, width=width, budget=500)
    roots, references = begun(drafter, target, PROMPTS)
    with torch.inference_mode():
        tree = drafter.draft(request(roots, PROMPTS, plan))
    follows(tree, references, levels, width)


@pytest.mark.parametrize("rows", [[0, 1, 2], [2]], ids=["ragged", "alone"])
def test_a_window_holds_for_the_rows_that_are_longer(
    rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the three prompts only the last is longer than window and sinks together."""
    monkeypatch.setattr("jakiro.drafters.feature.MAX_PENDING", 1)
    target = world.target("llama")
    drafter = FeatureDrafter(world.head(target, "jakiro", "wide"), target, window=4, sinks=2)
    prompts = [PROMPTS[row] for row in rows]
    plan = TreePlan("dynamic", depth=4, width=3, budget=500)
    roots, references = begun(drafter, target, prompts)
    with torch.inference_mode():
        tree = drafter.draft(request(roots, prompts, plan))
    follows(tree, references, 4, 3)
    whole = FeatureDrafter(drafter.head, target)
    begun(whole, target, prompts)
    with torch.inference_mode():
        seen = whole.draft(request(roots, prompts, plan))
    is_same = [torch.equal(one, other) for one, other in zip(tree.tokens, seen.tokens, strict=True)]
    assert is_same == [row != 2 for row in rows]


def follows(tree: TokenTree, references: list[PathReference], levels: int, width: int) -> None:
    """Every node of a tree that no budget has cut has the score of its own path."""
    tree.check()
    assert tree.scores is not None
    for row, reference in enumerate(references):
        all_paths = paths(tree, row)
        assert max(map(len, all_paths.values())) == levels
        children: dict[tuple[int, ...], set[int]] = {}
        for node, path in all_paths.items():
            if node:
                children.setdefault(tuple(path[:-1]), set()).add(path[-1])
                above = tree.scores[row, tree.parents[row, node]]
                step = reference.scores(path[:-1], levels)[path[-1]]
                assert float(tree.scores[row, node] - above) == pytest.approx(float(step), abs=1e-4)
        for path_above, tokens in children.items():
            best = reference.scores(list(path_above), levels).topk(width).indices.tolist()
            assert tokens == set(best)
        expanded = [1] + [width] * (levels - 1)
        for level, count in enumerate(expanded):
            assert sum(len(path) == level for path in children) == count


@pytest.mark.parametrize("method", METHODS)
def test_static_trees_take_the_candidates_of_each_rank(method: str) -> None:
    target = world.target("llama")
    drafter = world.make_feature_drafter(target, method)
    plan = world.TREES["static"]
    roots, references = begun(drafter, target, PROMPTS)
    with torch.inference_mode():
        tree = drafter.draft(request(roots, PROMPTS, plan))
    for row, reference in enumerate(references):
        ranks: set[tuple[int, ...]] = set()
        known: dict[int, tuple[int, ...]] = {0: ()}
        for node, path in paths(tree, row).items():
            if node:
                order = reference.scores(path[:-1], plan.depth).argsort(descending=True).tolist()
                parent = int(tree.parents[row, node])
                known[node] = (*known[parent], order.index(path[-1]))
                ranks.add(known[node])
        assert ranks == set(plan.paths)


@pytest.mark.parametrize("method", METHODS)
def test_a_head_that_is_fed_committed_tokens_drafts_as_if_prefilled(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U5 through the front door: after some cycles, in most of which nothing was drafted, the tree
    equals that of a fresh drafter."""
    target = world.target("llama")
    drafter = world.make_feature_drafter(target, method)
    text = [*world.prompt(0), *world.truth("llama", "greedy", 0)]
    plan = TreePlan("dynamic", depth=4, width=3, budget=12)
    guided = Guided(drafter, [text])
    engine = world.make_engine(
        target, guided, plan, noise=_DeterministicScores(), policy=OnAndOff.of((plan, None, None))
    )
    ongoing = engine.submit(list(world.prompt(0)), world.params("greedy", 0))
    monkeypatch.setattr("jakiro.drafters.feature.MAX_PENDING", 4)
    for _ in range(9):
        engine.step()
        so_far = [*ongoing.prompt_ids, *ongoing.token_ids]
        fresh = world.make_feature_drafter(target, method)
        begun(fresh, target, [so_far[:-1]])
        asked = request([so_far[-1]], [so_far[:-1]], plan)
        with torch.inference_mode():
            expected = fresh.draft(asked)
            stable = list(drafter._cache.lengths)
            pending = copy.deepcopy(drafter._pending)
            found = drafter.draft(asked)
        # That was a draft too many: take it back, so that the engine's own can be compared next.
        drafter._cache.lengths = stable
        drafter._pending = pending
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.parents.tolist() == expected.parents.tolist()
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("caps", [[3] * 5, [0] * 5], ids=["drafting", "off"])
def test_rows_remember_their_prompts_in_one_call(
    caps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call, without padding, for the long ones of five, and what every row then drafts is what
    its own path says. Of a short prompt no pair is fed before something is drafted."""
    monkeypatch.setattr("jakiro.drafters.feature.MAX_PENDING", 5)
    target = world.target("llama")
    drafter = world.make_feature_drafter(target)
    prompts = [PROMPTS[2], PROMPTS[2][:7], PROMPTS[0], PROMPTS[1], PROMPTS[2][3:]]
    calls: list[tuple[int, ...]] = []
    entries = drafter.head.entries

    def spied(embeddings: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(tuple(embeddings.shape[:2]))
        return entries(embeddings, *others)

    monkeypatch.setattr(drafter.head, "entries", spied)
    plan = TreePlan("dynamic", depth=3, width=3, budget=500)
    roots, references = begun(drafter, target, prompts)
    assert drafter._cache.lengths == [0] * 5 and not calls
    with torch.inference_mode():
        tree = drafter.draft(request(roots, prompts, plan, caps))
    assert calls == [(1, 10 + 6 + 7)]
    if any(caps):
        follows(tree, references, 3, 3)
        assert drafter._cache.lengths == [len(prompt) for prompt in prompts]
    else:
        assert drafter._cache.lengths == [10, 6, 0, 0, 7]


def test_without_contrast_a_tied_jakiro_head_is_an_eagle2_head() -> None:
    """U4: same weights in both experts, the last level by one more forward."""

    target = world.target("llama")
    jakiro, eagle2 = world.head(target, "jakiro"), world.head(target, "eagle2")
    single = dict(eagle2.state_dict())
    tied = dict(jakiro.state_dict()) | {k: v for k, v in single.items() if ".mlp." not in k}
    for name, tensor in single.items():
        for expert in (0, 1):
            if ".mlp." in name:
                tied[name.replace(".mlp.", f".mlp_moe.experts.{expert}.")] = tensor
    jakiro.load_state_dict(tied, strict=True)
    plan = TreePlan("dynamic", depth=5, width=4, budget=60)
    trees = []
    for head, contrasts in ((jakiro, 0), (eagle2, None), (jakiro, None)):
        drafter = FeatureDrafter(head, target, contrasts)
        roots, _ = begun(drafter, target, PROMPTS)
        before = drafter.num_forwards
        with torch.inference_mode():
            trees.append(drafter.draft(request(roots, PROMPTS, plan)))
        assert drafter.num_forwards - before == (4 if len(trees) == 3 else 5)
    off, builder, on = trees
    assert off.tokens.tolist() == builder.tokens.tolist()
    assert off.parents.tolist() == builder.parents.tolist()
    assert on.tokens.tolist() != builder.tokens.tolist(), "contrast changes the last level"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "plan",
    [world.TREES["chain"], world.TREES["static"], TreePlan("dynamic", depth=4, width=3, budget=99)],
    ids=world.TREES,
)
def test_no_node_lies_deeper_than_its_rows_cap(method: str, plan: TreePlan) -> None:
    target = world.target("llama")
    drafter = world.make_feature_drafter(target, method)
    roots, _ = begun(drafter, target, PROMPTS)
    caps = [0, 2, 9]
    with torch.inference_mode():
        tree = drafter.draft(request(roots, PROMPTS, plan, caps))
    tree.check()
    deepest = (tree.depth * tree.valid).amax(-1).tolist()
    assert deepest == [0, 2, plan.depth]


@pytest.mark.parametrize("method", METHODS)
def test_where_no_row_wants_more_the_tree_is_the_root(method: str) -> None:
    target = world.target("llama")
    drafter = world.make_feature_drafter(target, method)
    roots, _ = begun(drafter, target, PROMPTS)
    with torch.inference_mode():
        tree = drafter.draft(request(roots, PROMPTS, TreePlan.chain(3), [0, 0, 0]))
    assert tree.tokens.tolist() == [[root] for root in roots]


@pytest.mark.parametrize("method", METHODS)
def test_noise_aware_and_deterministic_trees_give_the_same_text(method: str) -> None:
    target = world.target("llama")
    texts, trees = [], []
    for noise in (None, _DeterministicScores()):
        truths = [[*world.prompt(row), *world.truth("llama", "top_p", row)] for row in range(4)]
        guided = Guided(world.make_feature_drafter(target, method), truths)
        engine = Engine(
            target, guided, world.find_rule("match"), plan=world.TREES["dynamic"], noise=noise
        )
        done = engine.generate(
            [list(world.prompt(row)) for row in range(4)],
            [replace(world.params("top_p", row)) for row in range(4)],
        )
        texts.append([completion.token_ids for completion in done])
        trees.append(guided.trees[0].tokens.tolist())
    assert texts[0] == texts[1] == [list(world.truth("llama", "top_p", r)) for r in range(4)]
    assert trees[0] != trees[1], "the noise is looked at"
