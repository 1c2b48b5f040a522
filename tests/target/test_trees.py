"""Trees in the cache say what plain text says: every family, ragged rows, step after step."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from jakiro.cache.kv_cache import KVCache
from jakiro.target.features import FeatureSpec
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from tests.families import FAMILIES, VOCAB_SIZE
from tests.tree.strategies import path_to, random_tree

NEEDS = FeatureSpec(last=True, layers=(0, 1))
PROMPTS = (23, 5, 31)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@cache
def target(family: str) -> Target:
    return Target(FAMILIES[family]())


def prompts() -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(VOCAB_SIZE) for _ in range(size)] for size in PROMPTS]


@torch.no_grad()
def plain(model: PreTrainedModel, text: list[int]) -> tuple[Tensor, Tensor]:
    """Logits [V] and features [3 H] after ``text``: one uncached call, none of our code."""
    out = model(torch.tensor([text]), output_hidden_states=True)
    states = [out.hidden_states[i][0, -1] for i in (0, 1, -1)]
    return out.logits[0, -1], torch.cat(states)


def agrees(target: Target, texts: list[list[int]], tree: TokenTree, out: TargetOutput) -> None:
    assert out.features is not None
    for row, text in enumerate(texts):
        for node in range(tree.num_nodes):
            path = tree.tokens[row, path_to(tree, row, node)].tolist()
            logits, features = plain(target.model, text + path)
            torch.testing.assert_close(out.logits[row, node], logits, **CLOSE)
            torch.testing.assert_close(out.features[row, node], features, **CLOSE)


def accept(generator: random.Random, tree: TokenTree, cache: KVCache) -> list[list[int]]:
    """Commit the path to a random node of every row; returns the tokens it adds."""
    ends = [generator.randrange(tree.num_nodes) for _ in range(tree.num_rows)]
    paths = [path_to(tree, row, end) for row, end in enumerate(ends)]
    cache.commit(Verdict(paths, [0] * len(paths)))
    return [tree.tokens[row, path].tolist() for row, path in enumerate(paths)]


@torch.no_grad()
def is_a_fresh_prefill(target: Target, texts: list[list[int]], cache: KVCache) -> None:
    for row, text in enumerate(texts):
        fresh = DynamicCache()
        target.model(torch.tensor([text]), past_key_values=fresh)
        for (keys, values), layer in zip(cache.content(row), fresh.layers, strict=True):
            torch.testing.assert_close(keys, layer.keys[0], **CLOSE)
            torch.testing.assert_close(values, layer.values[0], **CLOSE)


def drive(target: Target, sizes: tuple[int, ...], branching: bool = True) -> None:
    """Prefill ragged rows, then verify and commit a tree of each size, checking everything."""
    generator = random.Random(1)
    texts, cache = prompts(), target.new_cache()
    for text in texts:
        out = target.prefill(text, cache, cache.admit(), NEEDS)
        logits, features = plain(target.model, text)
        assert out.features is not None and out.features.shape[1] == len(text)
        torch.testing.assert_close(out.logits[0, 0], logits, **CLOSE)
        torch.testing.assert_close(out.features[0, -1], features, **CLOSE)
    for size in sizes:
        tree = random_tree(generator, len(texts), size, VOCAB_SIZE, branching)
        agrees(target, texts, tree, target.verify(tree, cache, NEEDS))
        added = accept(generator, tree, cache)
        texts = [text + tokens for text, tokens in zip(texts, added, strict=True)]
    is_a_fresh_prefill(target, texts, cache)


@pytest.mark.parametrize("family", FAMILIES)
def test_tree_equals_text(family: str) -> None:
    subject = target(family)
    assert subject.route == "mask"
    assert subject.feature_refusal is None
    drive(subject, (7, 1, 9, 4))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "phi3"])
def test_registered_route_equals_text(family: str) -> None:
    """The fallback route, forced where the mask route would do."""
    subject = Target(FAMILIES[family]())
    subject.route = "registered"
    before = subject.model.config._attn_implementation
    drive(subject, (7, 1, 9))
    assert subject.model.config._attn_implementation == before


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_chain_route_equals_text(family: str) -> None:
    subject = Target(FAMILIES[family]())
    subject.route = "chain"
    drive(subject, (5, 1, 4), branching=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_lm_head_turns_last_features_into_logits(family: str) -> None:
    subject, cache = target(family), target(family).new_cache()
    out = subject.prefill([3, 1, 4, 1, 5], cache, cache.admit(), FeatureSpec(last=True))
    assert out.features is not None
    torch.testing.assert_close(subject.lm_head(out.features[:, -1:]), out.logits, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_a_row_in_a_batch_equals_the_row_alone(family: str) -> None:
    subject = target(family)
    tree = random_tree(random.Random(5), len(PROMPTS), 6, VOCAB_SIZE)
    together = subject.new_cache()
    for text in prompts():
        subject.prefill(text, together, together.admit())
    batched = subject.verify(tree, together).logits
    for row, text in enumerate(prompts()):
        alone = subject.new_cache()
        subject.prefill(text, alone, alone.admit())
        parts = (part[row : row + 1] for part in (tree.tokens, tree.parents, tree.valid))
        torch.testing.assert_close(
            subject.verify(TokenTree(*parts), alone).logits[0], batched[row], **CLOSE
        )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_padding_may_lie_past_the_context_edge(family: str) -> None:
    """Learned positions end at the edge; a padded node there must neither fail nor disturb."""
    subject = target(family)
    text = [7] * (subject.context_length - 1)
    cache = subject.new_cache()
    subject.prefill(text, cache, cache.admit())
    tree = TokenTree(
        torch.tensor([[9, 0, 0]]), torch.tensor([[-1, 0, 1]]), torch.tensor([[True, False, False]])
    )
    logits, _ = plain(subject.model, [*text, 9])
    torch.testing.assert_close(subject.verify(tree, cache).logits[0, 0], logits, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_training_features_ignore_the_padding(family: str) -> None:
    subject, texts = target(family), prompts()
    width = max(PROMPTS)
    ids = torch.tensor([text + [61] * (width - len(text)) for text in texts])
    features = subject.features(ids, torch.tensor(PROMPTS), NEEDS)
    for row, text in enumerate(texts):
        expected = plain(subject.model, text)[1]
        torch.testing.assert_close(features[row, len(text) - 1], expected, **CLOSE)


def test_gradients_are_not_recorded() -> None:
    subject = target("llama")
    cache = subject.new_cache()
    assert not subject.prefill([1, 2], cache, cache.admit()).logits.requires_grad
    assert not subject.verify(TokenTree.root_only(torch.tensor([3])), cache).logits.requires_grad
