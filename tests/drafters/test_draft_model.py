"""A language model as drafter: right with the target's own weights, its cache always that of the
committed text, and harmless where it cannot follow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jakiro.drafters.draft_model import DraftModel
from jakiro.engine.limits import Limits
from jakiro.sampling.params import SamplingParams
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from tests.conformance import world
from tests.conformance.guided import Guided
from tests.drafters.reference import paths, request
from tests.families import llama_like

ROWS = world.ROWS[3]
PROMPTS = [list(world.prompt(row)) for row in ROWS]


def each(settings: SamplingParams, num_new: int = 16) -> list[SamplingParams]:
    """Rows of different seeds and lengths."""
    return [replace(settings, seed=row, max_new_tokens=num_new + row) for row in ROWS]


@pytest.mark.parametrize(
    "settings",
    [
        SamplingParams(),
        SamplingParams(temperature=1.3, top_p=0.9),
        SamplingParams(temperature=0.8, top_k=5, logit_bias={3: 1.0, 9: -2.0}),
    ],
    ids=["greedy", "top_p", "top_k"],
)
@pytest.mark.parametrize("tree", world.TREES)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_target_drafting_for_itself_is_always_right(
    family: str, tree: str, settings: SamplingParams
) -> None:
    """A wrong position, mask, kept entry or noise costs acceptance, and none is lost here: every
    level that was offered was accepted."""
    # Deeper, a dynamic tree may lose the best path to others that look better.
    shallow = TreePlan("dynamic", depth=2, width=6, budget=42)
    target, plan = world.target(family), shallow if tree == "dynamic" else world.TREES[tree]
    engine = world.make_engine(target, DraftModel(target, target), plan, max_batch_size=3)
    params = each(settings)
    done = engine.generate(PROMPTS, params)
    for ids, asked, completion in zip(PROMPTS, params, done, strict=True):
        assert completion.token_ids == world.answer(target.model, ids, asked)
    assert engine.stats.alpha == [1.0] * plan.depth


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_every_node_is_what_its_own_path_says(family: str) -> None:
    """Scores against a forward of the model over each node's own text, without a cache."""
    target = world.target(family)
    model = world.draft_model(target, "wide")
    drafter = DraftModel(model, target)
    prompts = [[7, 3, 9, 40, 11], [5], [8, 30, 12, 12, 9, 20, 33, 41, 2, 17, 10]]
    roots, plan = [4, 9, 6], TreePlan("dynamic", depth=5, width=3, budget=99)
    with torch.inference_mode():
        for ids in prompts:
            drafter.begin(ids, None)
        tree = drafter.draft(request(roots, prompts, plan))
    tree.check()
    assert tree.scores is not None
    for row, ids in enumerate(prompts):
        for node, path in paths(tree, row).items():
            if not node:
                continue
            text = torch.tensor([[*ids, roots[row], *path]])
            with torch.inference_mode():
                steps = model.model(text).logits[0, len(ids) : -1].log_softmax(-1)
            expected = steps.gather(1, torch.tensor(path)[:, None]).sum()
            assert float(tree.scores[row, node]) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_a_cycle_costs_one_forward_per_level(levels: int) -> None:
    target = world.target("llama")
    drafter = DraftModel(world.draft_model(target, "wide"), target)
    engine = world.make_engine(target, drafter, TreePlan("dynamic", levels, 3, 10))
    requests = [engine.submit(ids, SamplingParams(max_new_tokens=30)) for ids in PROMPTS]
    num_cycles = 0
    while min(request.num_left for request in requests) > levels:
        before = drafter.num_forwards
        engine.step()
        # In the first step every prompt is fed, by a forward of its own.
        assert drafter.num_forwards - before == levels + (len(PROMPTS) if num_cycles == 0 else 0)
        num_cycles += 1
    assert num_cycles > 3


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("tree", ["chain", "dynamic"])
def test_its_cache_is_that_of_a_fresh_prefill_after_every_step(tree: str, family: str) -> None:
    target = world.target(family)
    model = world.draft_model(target, "wide")
    inner = DraftModel(model, target)
    texts = [[*world.prompt(row), *world.truth(family, "biased", row)] for row in ROWS]
    engine = world.make_engine(target, Guided(inner, texts), world.TREES[tree], max_batch_size=3)
    requests = [
        engine.submit(ids, world.params("biased", row))
        for ids, row in zip(PROMPTS, ROWS, strict=True)
    ]
    kept_more_than_the_root = 0
    while engine.step():
        for row, running in enumerate(engine._batch.rows):
            text = [*running.prompt_ids, *running.token_ids][:-1]
            length = inner._cache.lengths[row]
            kept_more_than_the_root += len(inner._pending[row]) == 0
            assert text[length:] == inner._pending[row]
            fresh = model.new_cache()
            with torch.inference_mode():
                model.prefill(text[:length], fresh, fresh.admit())
            for found, wanted in zip(inner._cache.content(row), fresh.content(0), strict=True):
                torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)
    assert kept_more_than_the_root > 5
    assert all(each_.finish_reason == "length" for each_ in requests)


@pytest.mark.parametrize("vocab_size", [56, 72])
def test_a_vocabulary_of_another_length(vocab_size: int) -> None:
    """The prompts hold tokens past the shorter one; the answers are biased to hold some."""
    target = world.target("llama")
    model = Target(llama_like("Llama", vocab_size=vocab_size)())
    settings = SamplingParams(temperature=0.9, top_k=20, logit_bias={57: 2.0, 58: 2.0, 63: 2.0})
    engine = world.make_engine(target, DraftModel(model, target), max_batch_size=3)
    prompts, params = [[57, 3, 63], [61], [4, 60, 9, 8]], each(settings)[:3]
    done = engine.generate(prompts, params)
    texts = [completion.token_ids for completion in done]
    assert texts == [
        world.answer(target.model, ids, asked) for ids, asked in zip(prompts, params, strict=True)
    ]
    assert {token for text in texts for token in text} & {57, 58, 63}
    assert engine.stats.accepted_by_depth[0] > 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_beyond_its_context_are_decoded_plainly(family: str) -> None:
    """One row starts beyond it, one crosses the edge, one stays within."""
    target = world.target(family)
    model = Target(llama_like("Llama", max_position_embeddings=24)())
    prompts, lengths = [list(range(2, 32)), list(range(5, 20)), [7]], [12, 24, 10]
    engine = world.make_engine(target, DraftModel(model, target), max_batch_size=3)
    params = [SamplingParams(max_new_tokens=length) for length in lengths]
    done = engine.generate(prompts, params)
    for ids, asked, completion in zip(prompts, params, done, strict=True):
        assert completion.token_ids == world.answer(target.model, ids, asked)
    beyond, crossing, within = (completion.stats for completion in done)
    assert beyond.offered_by_depth == []
    # 15 tokens of prompt and 9 more fill the context; what comes then is not drafted for.
    assert 0 < sum(crossing.offered_by_depth[:1]) < crossing.num_forwards
    assert within.offered_by_depth[0] > 0


def test_nothing_is_taken_over_from_a_prompt_that_it_has_not_read() -> None:
    """Beside another row it is fed the answer alone."""
    target = world.target("llama")
    model = Target(llama_like("Llama", max_position_embeddings=24)())
    engine = world.make_engine(target, DraftModel(model, target), max_batch_size=2)
    engine.limits = Limits(2, prefix_bytes=1 << 20)
    long = list(range(2, 32))
    engine.generate([long, [7]], [SamplingParams(max_new_tokens=count) for count in (8, 16)])
    (again,) = engine.generate([long[:20]], SamplingParams(max_new_tokens=4))
    assert again.stats.num_reused == 0


def test_a_model_that_can_only_check_chains_drafts_chains() -> None:
    target, model = world.target("llama"), Target(world.model("llama"))
    model.route = "chain"
    plan = TreePlan("dynamic", depth=4, width=3, budget=12)
    engine = world.make_engine(target, DraftModel(model, target), plan, max_batch_size=3)
    params = each(SamplingParams(temperature=1.3, top_p=0.9))
    done = engine.generate(PROMPTS, params)
    for ids, asked, completion in zip(PROMPTS, params, done, strict=True):
        assert completion.token_ids == world.answer(target.model, ids, asked)
    assert engine.stats.alpha == [1.0] * 4, "the same model on both sides"


def test_a_cycle_cut_short_is_forgotten() -> None:
    """The next request wants no draft: nothing of the tree before may be kept as its own."""
    target = world.target("llama")
    drafter = DraftModel(world.draft_model(target, "wide"), target)
    engine = world.make_engine(target, drafter, max_batch_size=3)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "verify", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPTS, each(SamplingParams()))
    settings = SamplingParams(max_new_tokens=2)
    (done,) = engine.generate(PROMPTS[:1], settings)
    assert done.token_ids == world.answer(target.model, PROMPTS[0], settings)
