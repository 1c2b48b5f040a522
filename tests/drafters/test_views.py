"""Drafters that are views of their target: what each view computes, and when it stops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import jakiro
from jakiro.cache.kv_cache import KVCache
from jakiro.drafters.base import DraftRequest
from jakiro.drafters.duo_attention import DuoAttention
from jakiro.drafters.early_exit import EarlyExit
from jakiro.drafters.fewer_experts import FewerExperts
from jakiro.drafters.layer_skip import LayerSkip, kept_layers
from jakiro.drafters.low_bit import LowBit, _rounded_to, nested_codes
from jakiro.drafters.self_drafter import SelfDrafter
from jakiro.drafters.sparse_kv import SparseKV
from jakiro.drafters.swift import GOOD_ENOUGH, SetSearch, Swift
from jakiro.drafters.token_skip import RIDGE, Router, TokenSkip
from jakiro.errors import ConfigError, TargetRefused
from jakiro.sampling.params import SamplingParams
from jakiro.target.target import Target
from jakiro.target.toy import ToyTarget
from jakiro.tree.shapes import TreePlan
from tests.conformance import world
from tests.conformance.test_extremes import assert_cache_is_fresh
from tests.drafters.host import PlainScores
from tests.engine.test_routes import chain_only
from tests.families import llama_like
from tests.target.test_view import IDS, filled, small_tree

WHOLE: dict[str, Callable[[Target], SelfDrafter]] = {
    "layer_skip": lambda target: LayerSkip(target, speedup=1.0),
    "swift": lambda target: Swift(target, skip_ratio=0.0, confidence=0.0),
    "early_exit": lambda target: EarlyExit(target, target.num_layers, confidence=0.0),
    "sparse_kv": lambda target: SparseKV(target, recent=90),
    "fewer_experts": lambda target: FewerExperts(target, top_k=2),
    "token_skip": lambda target: TokenSkip(target, sparsity=0.0, window=4),
    "duo_attention": lambda target: DuoAttention(target, share=1.0, recent=2),
}
"""Every view that leaves nothing out."""


@pytest.mark.parametrize("name", WHOLE)
def test_a_view_of_everything_is_never_refused(name: str) -> None:
    target = world.target("mixtral" if name == "fewer_experts" else "llama")
    engine = world.make_engine(target, WHOLE[name](target), TreePlan.chain(4), max_batch_size=2)
    params = SamplingParams(temperature=1.3, top_p=0.9, seed=1, max_new_tokens=16)
    engine.generate([list(world.prompt(row)) for row in (0, 3, 2)], params)
    assert engine.stats.alpha == [1.0] * 4


@pytest.mark.parametrize("case", ["layer_skip", "sparse_kv", "swift"])
def test_the_cache_of_the_target_is_that_of_a_fresh_prefill_after_every_step(case: str) -> None:
    target = world.target("mistral")
    engine = world.make_engine(target, world.make_drafter(case, target), world.TREES["dynamic"])
    each = [replace(world.params("top_p", row), max_new_tokens=9) for row in (0, 2, 3)]
    asked = [
        engine.submit(list(world.prompt(row)), own)
        for row, own in zip((0, 2, 3), each, strict=True)
    ]
    while engine.step():
        for row, request in enumerate(engine._batch.rows):
            text = [*request.prompt_ids, *request.token_ids]
            assert_cache_is_fresh(engine._batch.cache, row, target, text[:-1])
    assert all(request.finish_reason == "length" for request in asked)


def test_an_early_exit_is_the_norm_and_head_over_a_middle_layer() -> None:
    target = Target(llama_like("Llama", num_hidden_layers=4)())
    view = EarlyExit(target, exit_layer=2).model
    with torch.no_grad():
        states = target.model(torch.tensor([IDS]), output_hidden_states=True).hidden_states[2]
        expected = target.model.lm_head(target.model.model.norm(states))
        found = view.forward(torch.tensor([IDS]), torch.arange(len(IDS))[None], None).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "lengths", [(12, 12), (12, 9), (4, 12)], ids=["aligned", "ragged", "one is short"]
)
def test_a_sparse_view_sees_sinks_and_recent_tokens_only(lengths: tuple[int, ...]) -> None:
    """Against an uncached forward whose mask hides the middle from the nodes."""
    target, sinks, recent = world.target("mistral"), 2, 3
    view = SparseKV(target, sinks, recent).model
    tree = small_tree(2)
    with torch.no_grad():
        found = view.verify(tree, filled(target, [IDS[:n] for n in lengths])).logits
    for row, length in enumerate(lengths):
        for node in range(tree.num_nodes):
            path = tree.tokens[row, tree.ancestors[row, node]].tolist()
            size = length + len(path)
            back = torch.arange(size)[:, None] - torch.arange(size)
            seen = (back >= 0) & (back < 8)
            seen[length:, sinks : length - recent] = False
            mask = torch.zeros(size, size).double().masked_fill(~seen, -1e300)[None, None]
            with torch.no_grad():
                ids = torch.tensor([IDS[:length] + path])
                expected = target.model(ids, attention_mask=mask).logits[0, -1]
            torch.testing.assert_close(found[row, node], expected, atol=1e-9, rtol=0)


def test_fewer_experts_are_those_of_a_model_configured_so() -> None:
    target = world.target("mixtral")
    make = llama_like("Mixtral", num_local_experts=4, num_experts_per_tok=1)
    fewer = make()
    fewer.load_state_dict(target.model.state_dict())
    where = torch.arange(len(IDS))[None]
    with torch.no_grad():
        expected = fewer(torch.tensor([IDS])).logits
        found = FewerExperts(target).model.forward(torch.tensor([IDS]), where, None).logits
        whole = FewerExperts(target, 2).model.forward(torch.tensor([IDS]), where, None).logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, whole)


def test_codes_of_fewer_bits_are_nested_in_those_of_eight() -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    codes, scale = nested_codes(weight, 8)
    assert ((codes * scale - weight).abs() <= 0.5001 * scale).all()
    four, same = nested_codes(weight, 4)
    assert torch.equal(scale, same)
    assert set((four.int() % 16).flatten().tolist()) == {0}
    assert ((four.int() - codes.int()).abs() <= torch.where(codes > 119, 15, 8)).all()


def test_the_kernel_of_a_low_bit_view_agrees_with_its_codes() -> None:
    exact, fast = llama_like("Llama")(), llama_like("Llama")().float()
    where, ids = torch.arange(len(IDS))[None], torch.tensor([IDS])
    logits = [
        LowBit(Target(model), bits=6).model.forward(ids, where, None).logits.double()
        for model in (exact, fast)
    ]
    assert (logits[0] - logits[1]).std() < 0.05 * logits[0].std()


def test_a_row_ends_below_a_token_that_is_not_likely_enough() -> None:
    """Each row on its own, and no forward once all have ended."""
    table = torch.zeros(6, 6, dtype=torch.float64)
    for token, top in ((1, 9.0), (2, 9.0), (3, 0.5), (4, 9.0), (5, 0.5)):
        table[token, (token + 1) % 6] = top  # token 3 is unsure of 4, 5 of 0
    target = ToyTarget(table)
    cache = filled(target, [[0, 0], [0], [0, 0, 0]])
    drafter = SelfDrafter(target, confidence=0.6)
    roots = torch.tensor([1, 4, 3])
    plan = TreePlan.chain(6)
    request = DraftRequest(roots, cache.lengths, [6, 6, 6], plan, PlainScores(), False, cache)
    tree = drafter.draft(request)
    chains = [t[v].tolist() for t, v in zip(tree.tokens, tree.valid, strict=True)]
    assert chains == [[1, 2, 3, 4], [4, 5, 0], [3, 4]]
    assert drafter.num_forwards == 3
    eager = SelfDrafter(target, confidence=0.0).draft(request)
    assert eager.valid.all() and eager.num_nodes == 7


def test_even_spacing_keeps_both_ends() -> None:
    for count in (2, 3, 7, 16, 33):
        assert kept_layers(count, 1.0) == list(range(count))
        for speedup in (1.3, 2.0, 3.0):
            kept = kept_layers(count, speedup)
            assert kept == sorted(set(kept)) and kept[0] == 0
            assert len(kept) == max(1, round(count / speedup))
            assert len(kept) == 1 or kept[-1] == count - 1


def test_the_search_finds_a_good_set_and_ends() -> None:
    """Scores fall with the places that differ from a hidden set."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.zeros(14, dtype=torch.bool)
    hidden[torch.randperm(14, generator=generator)[:6]] = True
    search = SetSearch(14, 6)
    guided, random = [], []
    while not search.is_over:
        proposed = search.propose()
        assert int(proposed.sum()) == 6
        score = float((proposed & hidden).sum() / 6)
        trial = len(search._scores)
        (guided if trial and trial % 25 == 0 else random).append(score)
        search.tell(proposed, score)
    assert search.best_score > GOOD_ENOUGH or len(guided) + len(random) >= 300
    assert sum(guided) / len(guided) > sum(random) / len(random) + 0.2
    assert SetSearch(0, 0).is_over


def test_swift_scores_sets_on_the_text_and_takes_the_best() -> None:
    target = Target(llama_like("Llama", num_hidden_layers=4)())
    drafter = Swift(target, skip_ratio=0.5, confidence=0.3, window=8)
    engine = world.make_engine(target, drafter, TreePlan.chain(3), max_batch_size=2)
    params = SamplingParams(max_new_tokens=40, seed=0)
    with_search = engine.generate([IDS, IDS[:4]], params)
    plain = world.make_engine(target, world.make_drafter("none", target))
    truth = plain.generate([IDS, IDS[:4]], params)
    assert [d.token_ids for d in with_search] == [t.token_ids for t in truth]
    assert drafter.search.best_score >= max(drafter.search._scores)
    assert len(drafter.search._scores) > 10
    assert int(drafter.search.best.sum()) == 2


def test_tokens_leave_out_the_mlps_that_a_plain_fit_expects_to_change_them_least() -> None:
    """Fitted by numpy to what hooks see of the model, then every token on its own."""
    model = llama_like("Llama", num_hidden_layers=4)()
    target = Target(model)
    drafter = TokenSkip(target, sparsity=0.5, window=8)
    text, count = IDS * 2, 8
    cache = filled(target, [text])
    drafter.begin(text, None)
    root = torch.tensor([4])
    request = DraftRequest(root, [len(text)], [2], TreePlan.chain(2), PlainScores(), cache=cache)
    drafted = drafter.draft(request).tokens[0, 1:].tolist()
    seen = mlps_of(model, text)
    known = []
    for number, (size, given, out) in enumerate(seen):
        below = 0 * size if not number else known[-1][2]
        mean = given[-count:].mean(0)
        like = (given @ mean) / (np.linalg.norm(given, axis=-1) * np.linalg.norm(mean))
        factors = np.stack([np.ones_like(size), np.log(size), below, like], -1)
        change = np.linalg.norm(out, axis=-1) / size
        ridge = factors[-count:].T @ factors[-count:] + RIDGE * np.eye(4)
        weights = np.linalg.solve(ridge, factors[-count:].T @ change[-count:])
        known.append((mean, weights, change, (factors @ weights)[-count:]))
    threshold = np.quantile(np.concatenate([one[3] for one in known]), 0.5)
    assert drafter._view.routers[0].threshold == pytest.approx(threshold, rel=1e-6)
    for router, (mean, weights, *_) in zip(drafter._view.routers, known, strict=True):
        np.testing.assert_allclose(router.mean.numpy(), mean, rtol=1e-6)
        np.testing.assert_allclose(router.weights.numpy(), weights, rtol=1e-5)
    assert len(drafted) == 2
    every = Router(torch.ones(32).double(), torch.zeros(4).double(), 1.0)
    drafter._view.routers = [every] * 3
    muted = copy.deepcopy(model)
    with torch.no_grad():
        for layer in muted.model.layers[1:]:
            layer.mlp.down_proj.weight.zero_()
        expected = muted(torch.tensor([IDS])).logits
        found = drafter.model.forward(torch.tensor([IDS]), torch.arange(len(IDS))[None], None)
    torch.testing.assert_close(found.logits, expected)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: FewerExperts(world.target("llama")), "no routers.*mixtral"),
        (lambda: SparseKV(Target(chain_only())), "gpt_neo.*no masks"),
        (lambda: LowBit(world.target("llama"), bits=9), "bits must be from 2 to 8, got 9"),
        (lambda: EarlyExit(world.target("llama"), exit_layer=3), "from 1 to 2, got 3"),
        (lambda: LayerSkip(world.target("llama"), kept=[0, 5]), r"0 to 1, got \[0, 5\]"),
        (lambda: LayerSkip(world.target("llama"), speedup=0.5), "at least 1"),
        (lambda: SparseKV(world.target("llama"), sinks=-1), "sinks must be at least 0"),
        (lambda: Swift(world.target("llama"), skip_ratio=1.0), "under 1"),
        (lambda: Swift(world.target("llama"), confidence=-0.5), "confidence must be at least 0"),
        (lambda: FewerExperts(world.target("mixtral"), top_k=3), "from 1 to 2, got 3"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], reason: str) -> None:
    with pytest.raises((ConfigError, TargetRefused), match=reason):
        make()


def mlps_of(model: Any, text: list[int]) -> list[tuple[Any, Any, Any]]:
    """Per layer above the first, as numpy: size of the stream that enters it [T], what its MLP is
    given and what it adds [T, H]."""
    found, hooks = [], []
    streams: dict[int, Any] = {}

    def note(index: int) -> Callable[..., None]:
        return lambda _, given: streams.update({index: given[0]})

    def record(index: int) -> Callable[..., None]:
        def seen(_: Any, given: Any, out: Any) -> None:
            size = streams[index][0].norm(dim=-1)
            found.append(tuple(each.numpy() for each in (size, given[0][0], out[0])))

        return seen

    for index, layer in enumerate(model.model.layers):
        hooks.append(layer.register_forward_pre_hook(note(index)))
        if index:
            hooks.append(layer.mlp.register_forward_hook(record(index)))
    with torch.no_grad():
        model(torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    return found


def test_a_function_of_the_target_is_a_drafter() -> None:
    engine = jakiro.load(world.model("llama"), lambda target: EarlyExit(target, exit_layer=1))
    assert engine.drafter.name == "early_exit"
    (done,) = engine.generate(
        [list(world.prompt(2))], SamplingParams(max_new_tokens=8, ignore_eos=True)
    )
    assert done.token_ids == list(world.truth("llama", "greedy", 2)[:8])


@pytest.mark.parametrize("case", ["layer_skip", "kangaroo/wide"])
def test_a_view_that_breaks_down_ends_no_request(case: str) -> None:
    """What it leaves behind the tree that is verified is shown, under a mask, to attention."""
    target, rows = world.target("llama"), (0, 3, 1)
    drafter: Any = world.make_drafter(case, target)
    grow, left = drafter._grow, []

    def poisoned(request: DraftRequest, cache: KVCache, *rest: Any) -> Any:
        tree, fed = grow(request, cache, *rest)
        left.append(fed.num_nodes - tree.num_nodes)
        for row, length in enumerate(cache.lengths):
            for store in cache._stores:
                store.data[:, row, :, length : length + fed.num_nodes] = torch.nan
        return tree, fed

    drafter._grow = poisoned
    plan = TreePlan.parse("dynamic:4,4,2")
    engine = world.make_engine(target, drafter, plan, max_batch_size=3)
    prompts = [list(world.prompt(row)) for row in rows]
    assert len({*map(len, prompts)}) > 1
    done = engine.generate(prompts, [world.params("top_p", row) for row in rows])
    truths = [list(world.truth("llama", "top_p", row)) for row in rows]
    assert [each.token_ids for each in done] == truths
    assert max(left) > 0


def test_sums_of_codes_stay_in_the_range_of_float16() -> None:
    layer = torch.nn.Linear(8, 4, bias=False).half()
    rows = torch.full((1, 8), 3e4, dtype=torch.float16)
    with torch.no_grad():
        layer.weight.fill_(0.02)
        wanted = layer(rows)
        _rounded_to(8)(layer)
        found = layer(rows)
    assert torch.allclose(found, wanted, rtol=0.01)
