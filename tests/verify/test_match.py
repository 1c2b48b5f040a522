"""``match`` against its scalar reference, and its law against the target's, exactly."""

from __future__ import annotations

import itertools
from collections import defaultdict
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jakiro.sampling.draws import RuleDraws
from jakiro.sampling.params import SamplingParams
from jakiro.sampling.process import NodeView, Sampler
from jakiro.tree.token_tree import TokenTree
from jakiro.verify.match import match
from tests.oracles.plain import KeyedGumbel, Settings, processors_of
from tests.oracles.rules import Law, Pick, Text, law, total_variation, walk

VOCAB = 4
LENGTH = 4
Row = tuple[list[int], list[int], list[bool]]

# Tokens and parents; the tree of a context is one of these, by its last token.
TREES: list[tuple[list[int], list[int]]] = [
    ([0, 1, 2, 0, 1], [-1, 0, 0, 1, 3]),
    ([0, 3, 0, 3, 1], [-1, 0, 0, 1, 1]),
    ([0, 2, 2, 2, 2], [-1, 0, 1, 2, 3]),
    ([0, 0, 1, 2, 3], [-1, 0, 0, 0, 0]),
]
PROCESSED: dict[str, Any] = {"temperature": 0.6, "top_k": 3, "top_p": 0.9}
UNPROCESSED: dict[str, Any] = {"temperature": 1.0}


def view_of(choice: Tensor) -> NodeView:
    words = torch.zeros(len(choice), dtype=torch.int64)
    failed = torch.zeros_like(choice, dtype=torch.bool)
    return NodeView(choice, failed, lambda: choice, RuleDraws(words, words))


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[Row, list[int]]]:
    """Trees of one size, and a choice at every node."""
    size = draw(st.integers(1, 9))
    batch = []
    for _ in range(draw(st.integers(1, 4))):
        tokens, parents, valid = [0], [-1], [True]
        twins: set[tuple[int, int]] = set()
        for node in range(1, size):
            parent = draw(st.integers(0, node - 1))
            token = draw(st.integers(0, 2))
            fits = valid[parent] and (parent, token) not in twins
            valid.append(fits and draw(st.integers(0, 5)) > 0)
            if valid[-1]:
                twins.add((parent, token))
            tokens.append(token)
            parents.append(parent)
        choice = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
        batch.append(((tokens, parents, valid), choice))
    return batch


@given(rows())
def test_vectorised_equals_scalar(batch: list[tuple[Row, list[int]]]) -> None:
    trees = [tree for tree, _ in batch]
    tokens, parents, valid = (torch.tensor(column) for column in zip(*trees, strict=True))
    tree = TokenTree(tokens, parents, valid)
    tree.check()
    verdict = match(tree, view_of(torch.tensor([choice for _, choice in batch])))
    for row, (scalar, choice) in enumerate(batch):
        path, bonus = walk(*scalar, choice.__getitem__)
        assert verdict.paths[row] == path
        assert verdict.bonuses[row] == bonus


@cache
def raw_logits(context: Text) -> Tensor:
    """A target that looks at its last two tokens; both filters bite somewhere."""
    state = sum(token * (VOCAB + 1) ** place for place, token in enumerate(context[-2:]))
    return (
        torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(500 + state)).double() * 0.8
    )


def target_probs(context: Text, settings: dict[str, Any]) -> list[float]:
    """The processed law at ``context``, by ``transformers``."""
    scores = raw_logits(context)
    for stage in processors_of(Settings(**settings), 0):
        if not isinstance(stage, KeyedGumbel):
            scores = stage(torch.tensor([context]), scores)
    return scores[0].softmax(-1).tolist()


def plain(pick: Pick, settings: dict[str, Any]) -> Text:
    text: Text = (0,)
    while len(text) < LENGTH + 1:
        text = (*text, pick(target_probs(text, settings)))
    return text[1:]


def one_cycle(pick: Pick, text: Text, settings: dict[str, Any], leaf: dict[str, Any]) -> Text:
    """What one cycle of the scalar rule emits; ``leaf`` are the settings at leaves."""
    tokens, parents = TREES[text[-1]]
    tokens = [text[-1], *tokens[1:]]
    paths: list[Text] = [()]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        paths.append((*paths[parent], token))

    def choose(node: int) -> int:
        return pick(target_probs(text + paths[node], settings if node in parents else leaf))

    path, bonus = walk(tokens, parents, [True] * len(tokens), choose)
    return (*paths[path[-1]], bonus)


def speculative(pick: Pick, settings: dict[str, Any], leaf: dict[str, Any]) -> Text:
    text: Text = (0,)
    while len(text) < LENGTH + 1:
        text += one_cycle(pick, text, settings, leaf)
    return text[1 : LENGTH + 1]


@pytest.mark.parametrize("settings", [PROCESSED, UNPROCESSED], ids=["processed", "unprocessed"])
def test_emitted_text_has_the_law_of_the_target(settings: dict[str, Any]) -> None:
    expected = law(lambda pick: plain(pick, settings))
    assert sum(expected.values()) == pytest.approx(1)
    assert len(expected) > 20
    drafted = law(lambda pick: speculative(pick, settings, settings))
    assert total_variation(drafted, expected) < 1e-12


def test_a_bonus_from_raw_logits_is_caught() -> None:
    """The commonest bug: after a fully accepted path the next token ignores the processors."""
    expected = law(lambda pick: plain(pick, PROCESSED))
    wrong = law(lambda pick: speculative(pick, PROCESSED, UNPROCESSED))
    assert total_variation(wrong, expected) > 0.01
    blind = law(lambda pick: speculative(pick, UNPROCESSED, {"temperature": 1.0, "top_k": 0}))
    assert total_variation(blind, law(lambda pick: plain(pick, UNPROCESSED))) < 1e-12


@pytest.mark.parametrize("last", range(VOCAB))
def test_match_and_sampler_have_the_law_of_the_scalar_rule(last: int) -> None:
    """One row per possible outcome of all choices, weighted by the sampler's own distribution."""
    text = (1, last)
    tokens, parents = TREES[last]
    tree = TokenTree(
        torch.tensor([[last, *tokens[1:]]]),
        torch.tensor([parents]),
        torch.ones(1, len(tokens), dtype=torch.bool),
    )
    contexts: list[Text] = [text]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        contexts.append((*contexts[parent], token))
    sampler = Sampler(VOCAB, torch.device("cpu"))
    sampler.admit(SamplingParams(**PROCESSED), list(text), seed=0, eos_ids=())
    logits = torch.stack([raw_logits(context)[0] for context in contexts])[None]
    probs = sampler.view(tree, logits).probs[0]

    choices = torch.tensor(list(itertools.product(range(VOCAB), repeat=len(tokens))))
    weights = probs.gather(1, choices.T).prod(0).tolist()
    whole = (part.expand(len(choices), -1) for part in (tree.tokens, tree.parents, tree.valid))
    verdict = match(TokenTree(*whole), view_of(choices))
    emitted: Law = defaultdict(float)
    for path, bonus, weight in zip(verdict.paths, verdict.bonuses, weights, strict=True):
        emitted[(*(tokens[node] for node in path[1:]), bonus)] += weight
    expected = law(lambda pick: one_cycle(pick, text, PROCESSED, PROCESSED))
    assert max(map(len, expected)) >= 2
    assert total_variation(emitted, expected) < 1e-12
