"""Compiled forwards beside the uncompiled ones.

The backend only records graphs (``eager``), which shows that a graph needs nothing of the cache and
that padding is invisible; ``make compiled`` runs the same through the compiler of ``torch``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import jakiro
from jakiro.cache.deferred import Deferred, attend
from jakiro.cache.kv_cache import KVCache
from jakiro.cli.session import plain
from jakiro.drafters.feature import FeatureDrafter
from jakiro.drafters.none import NoDrafter
from jakiro.errors import ConfigError
from jakiro.target import compiled
from jakiro.target.features import LAST_FEATURE, FeatureSpec
from jakiro.target.target import Target
from jakiro.tree.token_tree import TokenTree
from tests.conformance import world
from tests.conformance.guided import Guided

# The compiler imports what torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BACKEND = os.environ.get("JAKIRO_COMPILE_BACKEND", "eager")


@pytest.mark.parametrize(
    ("family", "is_bucketed"), [("llama", False), ("gemma3", False), ("gemma3", True)]
)
def test_compiled_texts_are_the_plain_ones(
    family: str, is_bucketed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows of different length, sampled; some drafts are right, some wrong. One family has a
    mask, one has two."""
    monkeypatch.setattr(compiled, "_is_on_cpu", lambda module: not is_bucketed)
    source = world.target(family)
    target = Target(source.model)
    rows = (0, 1)
    texts = [[*world.prompt(row), *world.truth(family, "top_p", row)] for row in rows]
    head = FeatureDrafter(world.head(source, "jakiro"), target)
    target.compile(BACKEND)
    head.compile(BACKEND)
    target.meet(head.needs)
    runs = (target._compiled, head._compiled)
    met = [list(run._graphs) for run in runs if run is not None]
    engine = world.make_engine(
        target, Guided(head, texts), world.TREES["dynamic"], max_batch_size=2
    )
    params = [replace(world.params("top_p", row), max_new_tokens=12) for row in rows]
    done = engine.generate([list(world.prompt(row)) for row in rows], params)
    assert [tuple(each.token_ids) for each in done] == [
        world.truth(family, "top_p", row)[:12] for row in rows
    ]
    assert engine.stats.tau > 1.2, "nothing was accepted"
    assert target.compile_ms > 0
    if is_bucketed:
        assert met == [[], []]
    else:
        assert met == [list(run._graphs) for run in runs if run is not None]
        assert list(map(len, met)) == [2, 1 + head.free_levels]


def test_load_compiles_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first answer; and what plain decoding is compared with is compiled as well."""
    for kind in (Target, FeatureDrafter):

        def compile(self: Any, _: str, own: Any = kind.compile) -> None:
            own(self, BACKEND)

        monkeypatch.setattr(kind, "compile", compile)
    engine = jakiro.load(
        world.model("llama"),
        lambda target: FeatureDrafter(world.head(target, "jakiro"), target),
        compile=True,
    )
    head: Any = engine.drafter
    assert engine.target._compiled is not None
    assert len(engine.target._compiled._graphs) == 2
    assert len(head._compiled._graphs) == 1 + head.free_levels
    assert plain(engine).target is engine.target


@pytest.mark.parametrize("most", [1, 64])
def test_graphs_are_for_kinds_and_kinds_beyond_run_uncompiled(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that grows makes no graph, nor does a batch; one row beside several does."""
    monkeypatch.setattr(compiled, "MAX_GRAPHS", most)
    target = Target(world.target("llama").model)
    target.compile(BACKEND)
    engine = world.make_engine(target, NoDrafter(), world.TREES["chain"], max_batch_size=3)
    rows = (0, 1, 2)
    params = [world.params("greedy", row) for row in rows]
    # One row, then three that become two and one.
    for some in (rows[:1], rows):
        done = engine.generate(
            [list(world.prompt(row)) for row in some], [params[row] for row in some]
        )
        assert [tuple(each.token_ids) for each in done] == [
            world.truth("llama", "greedy", row) for row in some
        ]
    assert target._compiled is not None
    assert len(target._compiled._graphs) == min(2, most)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_a_row_has_the_same_bits_alone_and_in_any_tree(dtype: torch.dtype) -> None:
    """So a text is that of plain decoding where rounding would tell, too."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 96, "vocab_size": 97}
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)
    target = Target(LlamaForCausalLM(config).eval().to(dtype))
    try:
        target.compile("inductor")
    except ConfigError as error:
        pytest.skip(str(error))

    def filled(prompts: list[list[int]]) -> KVCache:
        cache = target.new_cache()
        for row, prompt in enumerate(prompts):
            cache.admit()
            target.prefill(prompt, cache, row)
        return cache

    prompts = [list(range(3, 40)), list(range(50, 61))]
    tokens = torch.randint(97, (2, 9))
    parents = torch.tensor([[-1, 0, 0, 1, 1, 2, 3, 5, 6], [-1, 0, 1, 2, 0, 4, 4, 6, 6]])
    tree = TokenTree(tokens, parents, torch.ones_like(tokens, dtype=torch.bool))
    logits = target.verify(tree, filled(prompts), LAST_FEATURE).logits
    for row, prompt in enumerate(prompts):
        for leaf in (7, 8):
            path = tree.ancestors[row, leaf].nonzero()[:, 0].tolist()
            cache = filled([prompt])
            for node in path:
                root = TokenTree.root_only(tokens[row, [node]])
                alone = target.verify(root, cache, LAST_FEATURE).logits
                assert torch.equal(alone[0, 0], logits[row, node])
                cache.advance(0, 1)


class Shapes(nn.Module):
    """Says what a graph took for constant: how many rows there are, and how the states lie."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, states: Tensor, where: Tensor, cache: object) -> tuple[Tensor, Tensor]:
        return states * where[..., None] + states.stride(1), states.sum(1) * states.shape[1]


def test_sizes_are_those_of_each_call() -> None:
    """Rows of all texts come as rows of one, whatever they are handed in as."""
    run = compiled.Compiled(Shapes(), BACKEND, "cache")
    for batch, rows in ((1, 2), (1, 4), (3, 2), (1, 1), (2, 1), (1, 3)):
        states = torch.arange(5.0 * batch * rows).view(batch, rows, 5)
        where = torch.arange(1.0, 1.0 + batch)[:, None]
        for lying in (states.mT.contiguous().mT, states):
            each, whole = run(states=lying, where=where, cache=None)
            assert torch.equal(each, states * where[..., None] + 5)
            assert torch.equal(whole, states.sum((0, 1))[None] * batch * rows)
    assert len(run._graphs) == 2, "neither a text that grows nor a batch makes a graph"


class Masked(nn.Module):
    """An attention, and what it does to its masks before."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self._change = change

    def forward(self, states: Tensor, mask: dict[str, Tensor], cache: object) -> Tensor:
        heads = states[:, None]
        near, far = (self._change(mask[name]) for name in ("near", "far"))
        mixed = [attend(heads, heads, heads, each, 0, 1.0) for each in (near, far)]
        return torch.cat(mixed, -1)[:, :, 0]


def _same(mask: Tensor) -> Tensor:
    return mask


def _shown(mask: Tensor) -> Tensor:
    return mask[:, :, :, :7].expand(-1, -1, 3, -1)


def _smaller(mask: Tensor) -> Tensor:
    return mask - 1.0


@pytest.mark.parametrize("change", [_same, _shown])
def test_every_layer_has_the_mask_that_it_was_handed(change: Callable[[Tensor], Tensor]) -> None:
    run = compiled.Compiled(Masked(change), BACKEND, "cache")
    generator = torch.Generator().manual_seed(0)
    for batch, rows in ((1, 4), (3, 2), (1, 1)):
        states = torch.randn(batch, rows, 8, generator=generator)
        masks = {
            name: torch.randn(batch, 1, rows, rows, generator=generator) for name in ("near", "far")
        }
        found = run(states=states, mask=masks, cache=Deferred())
        wanted = [
            F.scaled_dot_product_attention(states, states, states, mask[:, 0], scale=1.0)
            for mask in masks.values()
        ]
        torch.testing.assert_close(found, torch.cat(wanted, -1))


def test_a_model_that_computes_with_its_mask_is_refused() -> None:
    run = compiled.Compiled(Masked(_smaller), BACKEND, "cache")
    mask = torch.zeros(1, 1, 3, 3)
    with pytest.raises(ConfigError, match="computes with its attention mask; leave out compile"):
        run(states=torch.zeros(1, 3, 8), mask={"near": mask, "far": mask}, cache=Deferred())


class Layers(nn.Module):
    """Products by panels, beside one by a matrix that is in none."""

    def __init__(self, is_mixed: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 40)
        self.matrix = nn.Parameter(torch.randn(40, 8)) if is_mixed else None

    def forward(self, states: Tensor, cache: object) -> Tensor:
        found: Tensor = self.linear(states)
        return found if self.matrix is None else found @ self.matrix


@pytest.mark.parametrize("is_mixed", [False, True], ids=["all in panels", "mixed"])
@torch.no_grad()
def test_a_graph_that_is_found_again_has_weights_of_its_own(is_mixed: bool) -> None:
    """The compiler keeps finished graphs on disk, by their form."""
    states = torch.randn(1, 3, 24)
    for _ in range(2):
        module = Layers(is_mixed)
        run = compiled.Compiled(compiled.for_compiling(module, BACKEND), BACKEND, "cache")
        torch.testing.assert_close(run(states=states, cache=None), module(states, None))


class Branches(nn.Module):
    """Does one thing with a few rows and another with many, and with narrow ones all their own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, states: Tensor, cache: object) -> Tensor:
        if states.shape[1] > 4:
            states = states * 2
        return states if states.shape[2] > 3 else states * sum(range(states.shape[1]))


def test_what_depends_on_sizes_is_seen() -> None:
    module = Branches()
    run = compiled.Compiled(module, BACKEND, "cache")

    def check(sizes: list[tuple[int, int]]) -> None:
        for size in sizes:
            states = torch.randn(1, *size)
            assert torch.equal(run(states=states, cache=None), module(states, None))

    check([(2, 4), (5, 4), (6, 5), (3, 5), (9, 4), (2, 4)])
    assert len(run._graphs) == 2
    # More graphs than the compiler makes of one function.
    with pytest.warns(UserWarning, match="not compiled"):
        check([(rows, 3) for rows in range(2, 20)])


def test_what_is_no_single_graph_runs_uncompiled() -> None:
    """The experts of this model are looped over as tokens choose them."""
    target = Target(world.target("mixtral").model)
    target.compile(BACKEND)
    engine = world.make_engine(target, NoDrafter(), world.TREES["chain"])
    with pytest.warns(UserWarning, match="not compiled, as it cannot be one graph"):
        (done,) = engine.generate([list(world.prompt(0))], [world.params("top_p", 0)])
    assert tuple(done.token_ids) == world.truth("mixtral", "top_p", 0)


def test_what_cannot_be_compiled_is_refused() -> None:
    model = world.FAMILIES["llama"]()
    model.set_attn_implementation("eager")
    with pytest.raises(ConfigError, match="'eager'"):
        Target(model).compile(BACKEND)


def test_features_that_are_not_there_are_refused_before_anything_is_compiled() -> None:
    target = Target(world.target("llama").model)
    target.compile(BACKEND)
    with pytest.raises(ConfigError, match="name others"):
        target.meet(FeatureSpec(layers=(99,)))
    assert target.compile_ms == 0


def test_a_window_changes_drafts_only() -> None:
    target = world.target("llama")
    inner = FeatureDrafter(world.head(target, "jakiro"), target, window=6, sinks=2)
    full = FeatureDrafter(world.head(target, "jakiro"), target)
    texts = [[*world.prompt(row), *world.truth("llama", "greedy", row)] for row in (2, 0)]
    shares = []
    for drafter in (inner, full):
        engine = world.make_engine(
            target, Guided(drafter, texts), world.TREES["dynamic"], max_batch_size=2
        )
        params = [world.params("greedy", row) for row in (2, 0)]
        done = engine.generate([list(world.prompt(row)) for row in (2, 0)], params)
        assert [tuple(each.token_ids) for each in done] == [
            world.truth("llama", "greedy", row) for row in (2, 0)
        ]
        shares.append(engine.stats.tau)
    assert min(shares) > 1.2
