"""Views that attend to a part of the cache, head by head, against forwards without a cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from jakiro.drafters.double_sparsity import DoubleSparsity, important
from jakiro.drafters.duo_attention import DuoAttention, retrieval
from jakiro.errors import ConfigError, TargetRefused
from jakiro.sampling.params import SamplingParams
from jakiro.target.selective import SelectiveView
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.tree.token_tree import TokenTree
from tests.conformance import world
from tests.engine.test_routes import chain_only
from tests.families import llama_like
from tests.target.test_view import IDS, filled, small_tree

LOWEST = torch.finfo(torch.float64).min
LENGTHS = {"aligned": (12, 12), "ragged": (12, 9), "one is short": (4, 12)}


def paths(tree: TokenTree, lengths: tuple[int, ...]) -> Iterator[tuple[int, int, list[int]]]:
    """Row, node, and the text of the row down to that node."""
    for row, length in enumerate(lengths):
        for node in range(tree.num_nodes):
            own = tree.tokens[row, tree.ancestors[row, node]].tolist()
            yield row, node, IDS[:length] + own


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=list(LENGTHS))
@pytest.mark.parametrize("scores", ["given", "file"])
def test_streaming_heads_see_the_ends_and_the_others_everything(
    lengths: tuple[int, ...], scores: str, tmp_path: Path
) -> None:
    """The second head of keys streams in both layers, its two query heads with it."""
    target, sinks, recent = world.target("mistral"), 2, 3
    table = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    file = tmp_path / "full_attention_heads.tsv"
    file.write_text("0.9\t0.1\n0.8\t0.2\n")
    drafter = DuoAttention(target, 0.5, sinks, recent, table if scores == "given" else file)
    tree, cache = small_tree(2), filled(target, [IDS[:n] for n in lengths])
    with torch.no_grad():
        found = drafter.model.verify(tree, cache).logits
    for row, node, text in paths(tree, lengths):
        back = torch.arange(len(text))[:, None] - torch.arange(len(text))
        seen = ((back >= 0) & (back < 8)).repeat(4, 1, 1)
        seen[2:, lengths[row] :, sinks : lengths[row] - recent] = False
        mask = torch.zeros_like(seen, dtype=torch.float64).masked_fill(~seen, LOWEST)
        with torch.no_grad():
            expected = target.model(torch.tensor([text]), attention_mask=mask[None]).logits[0, -1]
        torch.testing.assert_close(found[row, node], expected, atol=1e-9, rtol=0)


def by_labels(labels: Tensor, count: int, length: int) -> Callable[..., tuple[Tensor, None]]:
    """Attention by plain loops: before ``length`` all tokens, behind it those of the ``count`` best
    of all before ``length``, best by the products of their ``labels``, and all behind."""

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        size, group = query.shape[2], query.shape[1] // key.shape[1]
        mixed = torch.zeros_like(query[0])
        for head in range(query.shape[1]):
            keys, values = key[0, head // group], value[0, head // group]
            members = range(head // group * group, (head // group + 1) * group)
            own = labels[module.layer_idx, head // group]
            for place in range(size):
                slots = list(range(place + 1))
                if place >= length:
                    short = [query[0, m, place, own] @ keys[:length, own].T for m in members]
                    worth = (torch.stack(short) * module.scaling).softmax(-1).amax(0)
                    slots = [
                        *worth.topk(min(count, length)).indices.tolist(),
                        *range(length, place + 1),
                    ]
                scores = query[0, head, place] @ keys[slots].T * module.scaling
                mixed[head, place] = scores.softmax(-1) @ values[slots]
        return mixed.transpose(0, 1)[None], None

    return attend


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=list(LENGTHS))
def test_queries_see_the_tokens_that_their_labels_promise(lengths: tuple[int, ...]) -> None:
    model = llama_like("Llama", max_position_embeddings=64)()
    target = Target(model)
    labels = torch.tensor([[[0, 3, 5], [1, 2, 7]], [[4, 6, 7], [0, 1, 2]]])
    drafter = DoubleSparsity(target, share=8 / 64, labels=labels)
    cache = filled(target, [IDS[:n] for n in lengths])
    assert drafter._labels is not None
    drafter._labels.extend(cache, 2)
    by_loops = copy.deepcopy(model)
    by_loops.config._attn_implementation = "test_by_labels"
    chain = torch.tensor([[4, 11, 12]] * 2)
    for size in (1, 2, 3):
        parents = torch.arange(-1, size - 1).expand(2, -1)
        tree = TokenTree(chain[:, :size], parents, torch.ones(2, size).bool())
        with torch.no_grad():
            found = drafter.model.verify(tree, cache, num_known=size - 1).logits[:, -1]
        for row, length in enumerate(lengths):
            AttentionInterface.register("test_by_labels", by_labels(labels, 8, length))
            text = [*IDS[:length], *chain[row, :size].tolist()]
            with torch.no_grad():
                expected = by_loops(torch.tensor([text])).logits[0, -1]
            torch.testing.assert_close(found[row], expected, atol=1e-9, rtol=0)


def test_what_is_measured_of_heads_is_in_their_attention() -> None:
    """Against the attention weights of an eager model, and the products of its projections."""
    target, sinks, recent, count = world.target("llama"), 2, 3, 4
    view = SelectiveView(target, lambda asked: None)
    cache = filled(target, [IDS[:5], IDS])
    asked = view.observe(IDS[-count:], cache, 1)
    eager = llama_like("Llama")()
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        weights = eager(torch.tensor([IDS]), output_attentions=True).attentions
    assert len(asked) == len(weights) == 2
    for one, weight in zip(asked, weights, strict=True):
        far = torch.zeros(2, dtype=torch.float64)
        for head in range(4):
            for place in range(len(IDS) - count, len(IDS)):
                far[head // 2] += weight[0, head, place, sinks : place - recent].sum()
        found = retrieval(one, sinks, recent)
        torch.testing.assert_close(found, (far / (2 * count)).float(), atol=1e-5, rtol=0)
        products = [
            [
                (one.queries[0, 2 * head : 2 * head + 2, :, dim].abs().mean())
                * one.keys[0, head, :, dim].abs().mean()
                for dim in range(8)
            ]
            for head in range(2)
        ]
        best = torch.tensor(products).topk(2).indices
        assert important(one, 0.25).tolist() == best.tolist() == important(one, 2).tolist()


def test_labels_follow_rows_that_join_and_leave() -> None:
    target = world.target("qwen3")
    drafter = DoubleSparsity(target)
    engine = world.make_engine(target, drafter, TreePlan.chain(3), max_batch_size=2)
    asked = [
        engine.submit(list(world.prompt(row)), SamplingParams(max_new_tokens=count, seed=row))
        for row, count in ((2, 6), (0, 12), (3, 9), (1, 10))
    ]
    num_checked = 0
    while engine.step():
        if drafter._labels is None:
            continue
        for row, known in enumerate(drafter._labels._known):
            for layer, (keys, _) in enumerate(engine._batch.cache.content(row)):
                labels, places = drafter._labels.of(layer)
                index = places[:, None].expand(-1, known, -1)
                wanted = keys[:, :known].gather(-1, index)
                torch.testing.assert_close(labels[row, :, :known], wanted, atol=0, rtol=0)
                num_checked += known
    assert num_checked > 300
    assert all(request.finish_reason == "length" for request in asked)


def test_labels_of_no_rows_are_none() -> None:
    """The batch was empty once; of the next two requests one leaves before its first draft."""
    target = world.target("llama")
    engine = world.make_engine(target, DoubleSparsity(target), TreePlan.chain(3), max_batch_size=2)
    prompt = list(world.prompt(3))
    for counts in ((6,), (1, 6)):
        params = [SamplingParams(max_new_tokens=count, ignore_eos=True) for count in counts]
        done = engine.generate([prompt] * len(counts), params)
        assert [len(each.token_ids) for each in done] == list(counts)


LAST = torch.full((2, 2, 3), 7)
"""Labels in range, of keys of 8 channels."""


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: DuoAttention(world.target("llama"), share=1.5), "share from 0 to 1"),
        (lambda: DuoAttention(world.target("llama"), scores=torch.zeros(2, 3)), "2 layers and 2 h"),
        (lambda: DuoAttention(world.target("llama"), scores=Path(__file__)), "no table"),
        (lambda: DoubleSparsity(world.target("llama"), share=0), "share must be over 0"),
        (lambda: DoubleSparsity(world.target("llama"), labels=torch.zeros(1, 2, 3)), "labels must"),
        (lambda: DoubleSparsity(world.target("llama"), labels=torch.zeros(2, 2, 3)), "float32"),
        (lambda: DoubleSparsity(world.target("llama"), labels=LAST + 1), "from 0 to 7"),
        (lambda: DoubleSparsity(Target(chain_only())), "gpt_neo.*no masks"),
        (lambda: DuoAttention(eager()), "attends by code of its own"),
        (lambda: DoubleSparsity(latent()), "deepseek_v3.*does not keep the keys of every"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], reason: str) -> None:
    with pytest.raises((ConfigError, TargetRefused), match=reason):
        make()


def latent() -> Target:
    """Its cache holds what the keys of all heads are made from."""
    sizes = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
    dense = {"v_head_dim": 8, "first_k_dense_replace": 2, "num_key_value_heads": 4}
    return Target(llama_like("DeepseekV3", **sizes, **dense)())


def eager() -> Target:
    model = llama_like("Llama")()
    model.set_attn_implementation("eager")
    return Target(model)
