"""The test double answers from its table, through the same doors as a real target."""

from __future__ import annotations

import random

import pytest
import torch

from jakiro.errors import PromptError
from jakiro.target.features import LAST_FEATURE
from jakiro.target.toy import ToyTarget
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from tests.tree.strategies import path_to, random_tree


@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_reads_its_table_at_every_node(order: int) -> None:
    toy = ToyTarget.random(vocab_size=6, order=order, seed=1)
    generator, cache = random.Random(2), toy.new_cache()
    texts = [[1, 2, 3, 4, 5], [3], [5, 0]]
    for text in texts:
        out = toy.prefill(text, cache, cache.admit(), LAST_FEATURE)
        assert torch.equal(out.logits[0, 0], toy.table[tuple(([0] * order + text)[-order:])])
        assert out.features is not None and out.features.shape == (1, len(text), 6)
    for _ in range(4):
        tree = random_tree(generator, 3, 6, 6)
        out = toy.verify(tree, cache)
        for row, text in enumerate(texts):
            for node in range(6):
                path = tree.tokens[row, path_to(tree, row, node)].tolist()
                run = tuple(([0] * order + text + path)[-order:])
                assert torch.equal(out.logits[row, node], toy.table[run])
        paths = [path_to(tree, row, generator.randrange(6)) for row in range(3)]
        cache.commit(Verdict(paths, [0] * len(paths)))
        for row, (text, path) in enumerate(zip(texts, paths, strict=True)):
            text.extend(tree.tokens[row, path].tolist())
        assert cache.lengths == [len(text) for text in texts]


def test_a_planted_nan_stays_in_its_row() -> None:
    toy = ToyTarget.random(vocab_size=6, order=1)
    toy.table[4] = torch.nan
    cache = toy.new_cache()
    for text in ([1, 2], [3]):
        toy.prefill(text, cache, cache.admit())
    logits = toy.verify(TokenTree.root_only(torch.tensor([4, 5])), cache).logits
    assert logits[0].isnan().all() and logits[1].isfinite().all()


def test_the_rest_of_the_interface() -> None:
    toy = ToyTarget.random(vocab_size=6, context_length=10)
    assert (toy.vocab_size, toy.hidden_size, toy.num_layers, toy.context_length) == (6, 6, 1, 10)
    assert (toy.device.type, toy.dtype) == ("cpu", torch.float64)
    toy.check_features()
    assert toy.embed(torch.tensor([2])).tolist() == [[0, 0, 1, 0, 0, 0]]
    ids, lengths = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1])
    features = toy.features(ids, lengths, LAST_FEATURE)
    assert torch.equal(toy.lm_head(features)[0, 2], toy.table[2, 3])
    assert torch.equal(features[1, 0], toy.table[0, 4])
    assert toy.fingerprint() == ToyTarget.random(vocab_size=6).fingerprint()
    assert toy.fingerprint() != ToyTarget.random(vocab_size=6, seed=1).fingerprint()
    with pytest.raises(PromptError, match="10 tokens"):
        toy.check_prompt([1] * 10)
