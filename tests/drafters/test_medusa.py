"""Independent heads on one feature: which feature, which head, and what the tree makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from jakiro.api import load
from jakiro.drafters.medusa import Medusa, MedusaConfig, MedusaHeads
from jakiro.errors import CheckpointError, ConfigError
from jakiro.hub import checkpoint
from jakiro.sampling.params import SamplingParams
from jakiro.target.features import LAST_FEATURE
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from tests.conformance import world
from tests.conformance.guided import Guided
from tests.drafters.reference import PlainScores, paths

PLANS = [world.TREES["static"], TreePlan("dynamic", 4, 3, 99), TreePlan.chain(9)]


def guesses(heads: MedusaHeads, target: Target, text: list[int]) -> Tensor:
    """Log probabilities [K, V] of the heads after ``text``, whose last token is the root: from the
    feature of the token before it, in a forward without a cache."""
    ids = torch.tensor([text[:-1]])
    features = target.features(ids, torch.tensor([ids.shape[1]]), LAST_FEATURE)
    with torch.inference_mode():
        return heads(features[0, -1], target.lm_head).log_softmax(-1)


def assert_tree_is_the_product(tree: TokenTree, row: int, expected: Tensor, plan: TreePlan) -> None:
    assert tree.scores is not None
    found = paths(tree, row)
    assert max(map(len, found.values())) == min(plan.depth, len(expected))
    for node, path in found.items():
        score = sum(expected[level, token] for level, token in enumerate(path))
        assert float(tree.scores[row, node]) == pytest.approx(float(score), abs=1e-4)
    if plan.kind == "static":
        order = expected.argsort(-1, descending=True).tolist()
        ranks = {tuple(order[i].index(token) for i, token in enumerate(p)) for p in found.values()}
        assert ranks == {(), *(p for p in plan.paths if len(p) <= len(expected))}


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_every_level_is_the_guess_of_its_head_on_the_feature_before_the_root(
    family: str, plan: TreePlan
) -> None:
    """Throughout a ragged run: a feature one token off, or of a sibling, would show."""
    target = world.target(family)
    heads = world.head(target, "medusa")
    texts = [[*world.prompt(row), *world.truth(family, "greedy", row)] for row in range(3)]
    guided = Guided(Medusa(heads, target), texts)
    engine = world.make_engine(target, guided, plan, noise=PlainScores(), max_batch_size=3)
    requests = [
        engine.submit(list(world.prompt(row)), world.params("greedy", row)) for row in range(3)
    ]
    engine.step()
    for _ in range(4):
        texts_now = [[*request.prompt_ids, *request.token_ids] for request in requests]
        with torch.inference_mode():
            tree = guided.inner.draft(engine._batch.request())
        tree.check()
        for row, text in enumerate(texts_now):
            assert_tree_is_the_product(tree, row, guesses(heads, target, text), plan)
        engine.step()
    assert max(len(request.token_ids) for request in requests) > 8


def test_one_forward_per_cycle_whatever_the_depth() -> None:
    target = world.target("llama")
    drafter = Medusa(world.head(target, "medusa"), target)
    engine = world.make_engine(target, drafter, TreePlan("dynamic", 4, 3, 20))
    requests = [
        engine.submit(list(world.prompt(row)), world.params("top_p", row)) for row in (0, 1)
    ]
    for cycle in range(1, 5):
        engine.step()
        assert drafter.num_forwards == cycle
    assert all(request.finish_reason is None for request in requests)


def test_published_names_and_shapes() -> None:
    heads = MedusaHeads(MedusaConfig("medusa", 8, 20, num_heads=2, num_layers=1))
    assert {name: tuple(tensor.shape) for name, tensor in heads.state_dict().items()} == {
        f"{head}.{name}": shape
        for head in (0, 1)
        for name, shape in {
            "0.linear.weight": (8, 8),
            "0.linear.bias": (8,),
            "1.weight": (20, 8),
        }.items()
    }
    shared = MedusaHeads(MedusaConfig("medusa", 8, 20, num_heads=2, num_layers=2, own_head=False))
    assert sorted(shared.state_dict()) == [
        f"{head}.{block}.linear.{part}"
        for head in (0, 1)
        for block in (0, 1)
        for part in ("bias", "weight")
    ]


@pytest.mark.parametrize("own_head", [True, False])
def test_an_untrained_head_says_what_the_target_says(own_head: bool) -> None:
    """Its blocks are the identity, so with the target's head it repeats the root's prediction."""
    target = world.target("llama")
    config = MedusaConfig("medusa", target.hidden_size, target.vocab_size, 3, 2, own_head)
    heads = MedusaHeads(config).to(target.dtype)
    if own_head:
        for head in heads.children():
            head[-1].weight.data.copy_(target.model.get_output_embeddings().weight)
    features = torch.randn(5, target.hidden_size, dtype=target.dtype)
    with torch.inference_mode():
        logits, wanted = heads(features, target.lm_head), target.lm_head(features)
    torch.testing.assert_close(logits, wanted[:, None].expand(-1, 3, -1))


@pytest.mark.parametrize("own_head", [True, False])
def test_a_checkpoint_opens_with_its_tree(own_head: bool, tmp_path: Path) -> None:
    target = world.target("llama")
    config = MedusaConfig("medusa", target.hidden_size, target.vocab_size, 3, own_head=own_head)
    heads = MedusaHeads(config)
    notes = {"tree": "static:0,1,0.0,0.1,1.0,0.0.0"}
    checkpoint.save(heads, tmp_path, target.fingerprint(), notes, torch.float32)
    engine = load(target.model, tmp_path)
    assert isinstance(engine.drafter, Medusa)
    assert str(engine.plan) == notes["tree"]
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    (done,) = engine.generate([[3, 4, 5]], params)
    assert done.token_ids == world.answer(target.model, [3, 4, 5], params)


def test_options_of_a_checkpoint_reach_the_drafter(tmp_path: Path) -> None:
    target = world.target("llama")
    config = MedusaConfig("medusa", target.hidden_size, target.vocab_size, 3, own_head=False)
    notes = {"options": {"window": 64}}
    checkpoint.save(MedusaHeads(config), tmp_path, target.fingerprint(), notes, torch.float32)
    with pytest.raises(CheckpointError, match=r"cannot have the options.*window"):
        load(target.model, tmp_path)


def test_the_published_tree() -> None:
    assert (Medusa.plan.budget, Medusa.plan.depth, Medusa.plan.width) == (63, 4, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_heads": 0}, "num_heads must be at least 1"), ({"num_layers": -1}, "num_layers must")],
)
def test_impossible_sizes_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MedusaConfig("medusa", 8, 20, **changes)
