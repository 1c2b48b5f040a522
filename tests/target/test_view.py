"""Views: the same weights in other modules, on the target's own cache."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from jakiro.cache.kv_cache import KVCache
from jakiro.errors import TargetRefused
from jakiro.target.target import Target
from jakiro.target.view import Gates, View
from jakiro.tree.token_tree import TokenTree
from tests.conformance import world
from tests.families import FAMILIES, build, llama_like

IDS = [5, 9, 33, 7, 21, 40, 8, 2, 17, 28, 51, 3]


def deep_llama() -> Target:
    return Target(llama_like("Llama", num_hidden_layers=5)())


def filled(target: Target, texts: list[list[int]]) -> KVCache:
    cache = target.new_cache()
    for text in texts:
        target.prefill(text, cache, cache.admit())
    return cache


def small_tree(rows: int) -> TokenTree:
    tokens = torch.tensor([[4, 11, 12, 13, 14]]).repeat(rows, 1)
    parents = torch.tensor([[-1, 0, 0, 1, 3]]).repeat(rows, 1)
    return TokenTree(tokens, parents, torch.ones_like(tokens).bool())


def logits_of(target: Target, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return target.forward(torch.tensor([ids]), torch.arange(len(ids))[None], None).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_open_gates_are_the_target_and_closed_ones_leave_layers_out(family: str) -> None:
    target = world.target(family)
    before = logits_of(target, IDS)
    gates = Gates(target)
    torch.testing.assert_close(logits_of(gates.view, IDS), before, atol=0, rtol=0)
    gates.close_layers({1})
    shorter = deepcopy(target.model)
    layers = next(m for m in shorter.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    del layers[1]
    shorter.config.num_hidden_layers = 1
    with torch.no_grad():
        expected = shorter(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits_of(gates.view, IDS), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(logits_of(target, IDS), before, atol=0, rtol=0)


def test_closing_both_parts_of_a_layer_closes_it_and_one_part_only_that() -> None:
    target, gates = deep_llama(), Gates(deep_llama())
    attention, mlp = gates.layers[2]
    results = []
    for parts in (set(), {attention}, {mlp}, {attention, mlp}):
        gates.close(parts)
        results.append(logits_of(gates.view, IDS))
    torch.testing.assert_close(results[0], logits_of(target, IDS))
    muted = deepcopy(target.model)
    with torch.no_grad():
        muted.model.layers[2].mlp.down_proj.weight.zero_()
        torch.testing.assert_close(results[2], muted(torch.tensor([IDS])).logits[0])
        muted.model.layers[2].self_attn.o_proj.weight.zero_()
        torch.testing.assert_close(results[3], muted(torch.tensor([IDS])).logits[0])
    assert not torch.allclose(results[1], results[3])


def test_closed_parts_answer_in_the_form_of_the_family() -> None:
    """Layers of GPT-J answer with tuples, and so does the MLP of GPT-OSS."""
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80}
    gptj = build(hf.GPTJForCausalLM, hf.GPTJConfig(**sizes, rotary_dim=4))
    gates = Gates(Target(gptj))
    gates.close_layers({1})
    del gptj.transformer.h[1]
    gptj.config.n_layer = 1
    with torch.no_grad():
        expected = gptj(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits_of(gates.view, IDS), expected, atol=1e-9, rtol=0)
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    oss = llama_like("GptOss", **experts)()
    gates = Gates(Target(oss))
    gates.close({gates.layers[1][1]})
    muted = deepcopy(oss)
    with torch.no_grad():
        muted.model.layers[1].mlp.experts.down_proj.zero_()
        muted.model.layers[1].mlp.experts.down_proj_bias.zero_()
        expected = muted(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits_of(gates.view, IDS), expected, atol=1e-9, rtol=0)


def test_what_a_view_writes_is_gone_after_the_verification() -> None:
    target, texts = deep_llama(), [IDS, IDS[:5]]
    gates = Gates(target)
    gates.close_layers({1, 3})
    tree, cache, fresh = small_tree(2), filled(target, texts), filled(target, texts)
    gates.view.verify(tree, cache)
    for row in range(2):
        for found, wanted in zip(cache.content(row), fresh.content(row), strict=True):
            torch.testing.assert_close(found, wanted, atol=0, rtol=0)
    found, wanted = target.verify(tree, cache), target.verify(tree, fresh)
    torch.testing.assert_close(found.logits, wanted.logits, atol=0, rtol=0)
    for one in (cache, fresh):
        one.commit_paths([[0, 1, 3, 4], [0, 2]])
    for row in range(2):
        for mine, other in zip(cache.content(row), fresh.content(row), strict=True):
            torch.testing.assert_close(mine, other, atol=0, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_replay_says_what_was_said_in_the_same_place(family: str) -> None:
    """With all gates open: the logits of the text itself, windows included."""
    target = world.target(family)
    cache = filled(target, [IDS[:7], IDS])
    before = [(k.clone(), v.clone()) for k, v in cache.content(1)]
    found = Gates(target).view.replay(IDS[-5:], cache, row=1)
    torch.testing.assert_close(found, logits_of(target, IDS)[-5:], atol=1e-9, rtol=0)
    for now, then in zip(cache.content(1), before, strict=True):
        torch.testing.assert_close(now, then, atol=0, rtol=0)


def test_the_model_is_not_changed() -> None:
    target = deep_llama()
    modules = {name: (id(m), type(m), set(vars(m))) for name, m in target.model.named_modules()}
    weights = {name: p.data_ptr() for name, p in target.model.named_parameters()}
    view = Gates(target).view
    after = {name: (id(m), type(m), set(vars(m))) for name, m in target.model.named_modules()}
    assert after == modules
    assert {name: p.data_ptr() for name, p in view.model.named_parameters()} == weights


def test_a_module_with_a_forward_bound_to_it_is_refused_by_name() -> None:
    target = deep_llama()
    layer = target.model.model.layers[1]
    layer.forward = layer.forward
    with pytest.raises(TargetRefused, match=r"llama.*layers\.1.*device_map"):
        Gates(target)


def test_layers_that_cannot_be_left_out_are_refused() -> None:
    def broken(module: nn.Module) -> None:
        module.__dict__["forward"] = lambda *args, **kwargs: None

    with pytest.raises(TargetRefused, match="changed modules it fails"):
        View(deep_llama(), {"model.layers.1": broken})
    target = deep_llama()
    target.num_layers = 7
    with pytest.raises(TargetRefused, match="no list of 7"):
        Gates(target)
