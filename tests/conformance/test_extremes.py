"""Extreme drafters and disturbed batches: what a cycle emits, and that rows do not feel each
other (DESIGN 8.3 and 8.5)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jakiro.drafters.feature import FeatureDrafter
from jakiro.drafters.none import NoDrafter
from jakiro.drafters.prompt_lookup import PromptLookup
from jakiro.sampling.params import SamplingParams
from jakiro.sampling.process import NodeView
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify import Rule
from jakiro.verify.match import match
from tests.conformance import world
from tests.conformance.doubles import EVERY_PLAN, PoisonedTarget, Scripted, TargetDrafter
from tests.conformance.guided import Guided
from tests.families import FAMILIES

ROWS = world.ROWS[3]


def texts(setting: str, family: str = "llama") -> list[list[int]]:
    return [[*world.prompt(row), *world.truth(family, setting, row)] for row in ROWS]


def prompts(rows: tuple[int, ...] = ROWS) -> list[list[int]]:
    return [list(world.prompt(row)) for row in rows]


# -- the noise a drafter may look at -----------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        SamplingParams(),
        SamplingParams(temperature=1.3, top_p=0.9),
        SamplingParams(temperature=1.3, top_k=5, logit_bias={3: 1.0, 9: -2.0}),
        SamplingParams(temperature=0.8, min_p=0.05),
        SamplingParams(temperature=1.0),
    ],
    ids=["greedy", "top_p", "top_k", "min_p", "free"],
)
@pytest.mark.parametrize(
    "plan",
    [TreePlan.chain(4), TreePlan("dynamic", depth=3, width=5, budget=40)],
    ids=["chain", "dynamic"],
)
def test_the_target_as_drafter_is_always_right(plan: TreePlan, settings: SamplingParams) -> None:
    """An offset of one in the position of the noise is invisible in the text and fatal here."""
    target = world.target("llama")
    cycles: list[tuple[int, int]] = []

    def spy(tree: TokenTree, nodes: NodeView) -> Verdict:
        verdict = match(tree, nodes)
        deepest = (tree.depth * tree.valid).amax(-1).tolist()
        cycles.extend(zip((len(path) - 1 for path in verdict.paths), deepest, strict=True))
        return verdict

    engine = world.make_engine(
        target, TargetDrafter(target), plan, rule=Rule("spy", "exact", spy), max_batch_size=3
    )
    each = [replace(settings, seed=row, max_new_tokens=16 + row) for row in ROWS]
    engine.generate(prompts(), each)
    assert len(cycles) > 12
    assert all(accepted == deepest for accepted, deepest in cycles)
    assert max(deepest for _, deepest in cycles) == plan.depth


# -- extreme drafters --------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 4, 9])
@pytest.mark.parametrize("setting", world.SETTINGS)
def test_perfect_drafts_give_depth_plus_one_tokens_per_cycle(setting: str, depth: int) -> None:
    num_new = 1 + 2 * (depth + 1)
    engine = world.make_engine(
        world.target("llama"), Scripted(texts(setting)), TreePlan.chain(depth), max_batch_size=3
    )
    each = [replace(world.params(setting, row), max_new_tokens=num_new) for row in ROWS]
    done = engine.generate(prompts(), each)
    for row, completion in zip(ROWS, done, strict=True):
        assert completion.token_ids == list(world.truth("llama", setting, row)[:num_new])
        assert completion.stats.tau == depth + 1
        assert completion.stats.num_forwards == 2
    assert engine.stats.alpha == [1.0] * depth


@pytest.mark.parametrize("setting", world.SETTINGS)
def test_wrong_drafts_cost_forwards_and_nothing_else(setting: str) -> None:
    def wrong(right: list[int]) -> list[int]:
        return [(token + 1) % 60 for token in right]

    engine = world.make_engine(
        world.target("llama"), Scripted(texts(setting), wrong), TreePlan.chain(4), max_batch_size=3
    )
    done = engine.generate(prompts(), [world.params(setting, row) for row in ROWS])
    for row, completion in zip(ROWS, done, strict=True):
        assert completion.token_ids == list(world.truth("llama", setting, row))
        assert completion.stats.tau == 1
    assert engine.stats.alpha == [0.0] * 4
    assert engine.stats.offered_by_depth[1:] == [0, 0, 0]


def test_empty_drafts_are_plain_decoding() -> None:
    engine = world.make_engine(
        world.target("llama"), Scripted(texts("greedy"), lambda right: []), max_batch_size=3
    )
    done = engine.generate(prompts(), [world.params("greedy", row) for row in ROWS])
    for row, completion in zip(ROWS, done, strict=True):
        assert completion.token_ids == list(world.truth("llama", "greedy", row))
    assert engine.stats.tau == 1
    assert engine.stats.alpha == []


# -- shapes do not matter ----------------------------------------------------------------------


@pytest.mark.parametrize("plan", EVERY_PLAN, ids=range(len(EVERY_PLAN)))
@pytest.mark.parametrize("setting", ["greedy", "penalised"])
@pytest.mark.parametrize("case", ["jakiro/wide", "eagle2/narrow", "prompt_lookup"])
def test_text_does_not_depend_on_the_tree(case: str, setting: str, plan: TreePlan) -> None:
    target = world.target("llama")
    drafter = Guided(world.make_drafter(case, target), texts(setting), seed=1)
    engine = world.make_engine(target, drafter, plan, max_batch_size=3)
    done = engine.generate(prompts(), [world.params(setting, row) for row in ROWS])
    assert [c.token_ids for c in done] == [list(world.truth("llama", setting, row)) for row in ROWS]
    assert sum(engine.stats.accepted_by_depth) > 0


# -- rows do not feel each other ---------------------------------------------------------------


@pytest.mark.parametrize("case", ["jakiro/wide", "eagle2/wide", "prompt_lookup", "none"])
def test_a_row_alone_equals_the_row_in_a_batch(case: str) -> None:
    def run(rows: tuple[int, ...], size: int) -> list[list[int]]:
        target = world.target("mistral")
        drafter = Guided(world.make_drafter(case, target), texts("top_p", "mistral"))
        engine = world.make_engine(target, drafter, world.TREES["static"], max_batch_size=size)
        done = engine.generate(prompts(rows), [world.params("top_p", row) for row in rows])
        return [completion.token_ids for completion in done]

    assert run(ROWS, 4) == [run((row,), 1)[0] for row in ROWS]


@pytest.mark.parametrize("when", [1, 3])
@pytest.mark.parametrize("case", world.kinds())
def test_nan_kills_one_row_only(case: str, when: int) -> None:
    family = world.home(case)
    target = PoisonedTarget(world.model(family)).poison(row=1, when=when)
    drafter = Guided(world.make_drafter(case, target), texts("top_p", family))
    engine = world.make_engine(target, drafter, world.TREES["dynamic"], max_batch_size=3)
    done = engine.generate(prompts(), [world.params("top_p", row) for row in ROWS])
    truths = [list(world.truth(family, "top_p", row)) for row in ROWS]
    assert [c.finish_reason for c in done] == ["length", "error", "length", "length"]
    assert "NaN" in (done[1].error or "")
    assert [c.token_ids for c in done if c.error is None] == [truths[0], *truths[2:]]
    assert done[1].token_ids == truths[1][: len(done[1].token_ids)]
    assert len(done[1].token_ids) < len(truths[1])


def test_nan_in_the_cache_dies_with_its_row() -> None:
    """The row is poisoned by a token whose embedding is NaN, so its keys and values are, too; the
    row that later takes its place must not see them."""
    model = FAMILIES["llama"]()
    with torch.no_grad():
        model.get_input_embeddings().weight[63] = torch.nan
    each = [replace(world.params("top_p", row), logit_bias={63: -90.0}) for row in ROWS]
    each[1] = replace(each[1], logit_bias={63: 90.0})
    engine = world.make_engine(Target(model), PromptLookup(), max_batch_size=2)
    done = engine.generate(prompts(), each)
    assert [c.finish_reason for c in done] == ["length", "error", "length", "length"]
    assert done[1].token_ids == [63]
    for row in (0, 2, 3):
        assert done[row].token_ids == world.answer(model, world.prompt(row), each[row])


def test_a_nan_prompt_fails_before_its_first_token() -> None:
    model = FAMILIES["llama"]()
    with torch.no_grad():
        model.get_input_embeddings().weight[63] = torch.nan
    engine = world.make_engine(Target(model), NoDrafter(), max_batch_size=2)
    fine, broken = engine.generate([[5, 6, 7], [5, 63, 7]], SamplingParams(max_new_tokens=4))
    assert (broken.finish_reason, broken.token_ids) == ("error", [])
    assert fine.token_ids == world.answer(model, [5, 6, 7], SamplingParams(max_new_tokens=4))


@pytest.mark.parametrize("case", world.kinds())
def test_a_cancelled_row_leaves_the_others_alone(case: str) -> None:
    family = world.home(case)
    target = world.target(family)
    drafter = Guided(world.make_drafter(case, target), texts("penalised", family))
    engine = world.make_engine(target, drafter, world.TREES["dynamic"], max_batch_size=3)
    requests = [
        engine.submit(list(world.prompt(row)), world.params("penalised", row)) for row in ROWS
    ]
    for _ in range(3):
        engine.step()
    requests[0].cancel()
    while engine.step():
        pass
    truths = [list(world.truth(family, "penalised", row)) for row in ROWS]
    assert [r.finish_reason for r in requests] == ["cancelled", "length", "length", "length"]
    assert [r.token_ids for r in requests[1:]] == truths[1:]
    given = requests[0].token_ids
    assert given and given == truths[0][: len(given)]
    assert len(given) < len(truths[0])


# -- caches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["jakiro", "eagle2"])
def test_caches_equal_a_fresh_prefill_after_every_step(method: str, family: str) -> None:
    """Both caches: the target's, and the stable one of the draft head (one row per committed
    pair, from true features)."""
    target = world.target(family)
    inner = world.make_feature_drafter(target, method)
    drafter = Guided(inner, texts("biased", family))
    engine = world.make_engine(target, drafter, world.TREES["dynamic"], max_batch_size=3)
    requests = [engine.submit(list(world.prompt(row)), world.params("biased", row)) for row in ROWS]
    num_steps = 0
    while engine.step():
        num_steps += 1
        for row, request in enumerate(engine._batch.rows):
            text = [*request.prompt_ids, *request.token_ids]
            assert_cache_is_fresh(engine._batch.cache, row, target, text[:-1])
            assert_draft_cache_is_fresh(inner, row, target, text)
    assert num_steps > 8
    assert all(request.finish_reason == "length" for request in requests)


def assert_cache_is_fresh(cache: object, row: int, target: Target, text: list[int]) -> None:
    fresh = target.new_cache()
    fresh.admit()
    with torch.inference_mode():
        target.prefill(text, fresh, 0)
    expected = fresh.content(0)
    for found, wanted in zip(cache.content(row), expected, strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)


def assert_draft_cache_is_fresh(
    drafter: FeatureDrafter, row: int, target: Target, text: list[int]
) -> None:
    """The pairs fed so far end before the root of the *last* cycle."""
    length = drafter._cache.lengths[row]
    waiting = torch.cat(drafter._pending._features[row])
    assert length + len(waiting) == len(text) - 1, "one row per pair, now or at the next catch-up"
    fresh, cache = FeatureDrafter(drafter.head, target), target.new_cache()
    with torch.inference_mode():
        cache.admit()
        out = target.prefill(text[:-1], cache, 0, drafter.needs)
        assert out.features is not None
        fresh.begin(text[: length + 1], out.features[0, : length + 1])
        fresh.save(0, length)
    torch.testing.assert_close(waiting, out.features[0, length:], atol=1e-9, rtol=0)
    if length:
        for found, wanted in zip(drafter._cache.content(row), fresh._cache.content(0), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)
