"""The rules for sampled drafts: their law by exact enumeration, what they accept,
and how far classical mistakes take them off."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from tests.oracles import rules
from tests.oracles.plain import KeyedGumbel, Settings, processors_of
from tests.oracles.rules import Law, LawAt, Pick, Probs, Text, law, total_variation

VOCAB, LENGTH = 4, 4
PROCESSED: dict[str, Any] = {"temperature": 0.6, "top_k": 3, "top_p": 0.9}
WARM: dict[str, Any] = {"temperature": 1.4, "min_p": 0.1}
RAW: dict[str, Any] = {"temperature": 1.0}
Tree = tuple[list[int], list[int], list[bool]]
Scalar = Callable[[Tree, tuple[LawAt, LawAt], Pick], tuple[list[int], int]]


def flip(pick: Pick) -> rules.Accept:
    return lambda node, prob: pick([1 - prob, prob]) == 1


def scalar(rule: Callable[..., tuple[list[int], int]]) -> Scalar:
    """A rule of the oracle, its coins and draws made by ``pick``."""
    return lambda tree, laws, pick: rule(*tree, laws, (flip(pick), lambda node, probs: pick(probs)))


def scalar_block(tree: Tree, laws: tuple[LawAt, LawAt], pick: Pick) -> tuple[list[int], int]:
    return rules.block(tree[0], laws, (flip(pick), lambda node, probs: pick(probs)))


scalar_rrs, scalar_multi_round = scalar(rules.recursive_rejection), scalar(rules.multi_round)
scalar_kseq, scalar_hybrid = scalar(rules.kseq), scalar(rules.hybrid)
scalar_traversal = scalar(rules.traversal)
DISTINCT, INDEPENDENT = rules.without_replacement, rules.with_replacement
BEAM = None
"""Two levels of two nodes, by stochastic beam search."""
CASES = {
    "token": (scalar_rrs, DISTINCT, [0, 1]),
    "rrs": (scalar_rrs, DISTINCT, [0, 0, 1, 1]),
    "rrs wide": (scalar_rrs, DISTINCT, [0, 0, 0, 1]),
    "rrs beam": (scalar_rrs, BEAM, []),
    "block": (scalar_block, DISTINCT, [0, 1, 2]),
    "traversal": (scalar_traversal, DISTINCT, [0, 0, 1, 1]),
    "traversal deep": (scalar_traversal, DISTINCT, [0, 1, 1, 2]),
    "traversal beam": (scalar_traversal, BEAM, []),
    "multi-round": (scalar_multi_round, INDEPENDENT, [0, 0, 1, 1]),
    "multi-round wide": (scalar_multi_round, INDEPENDENT, [0, 0, 0]),
    "k-seq paths": (scalar_kseq, INDEPENDENT, [0, 0, 1, 2]),
    "k-seq wide": (scalar_kseq, INDEPENDENT, [0, 0, 0, 1]),
    "hybrid": (scalar_hybrid, rules.best_and_one, [0, 0, 0, 1, 1, 3]),
    "hybrid chain": (scalar_hybrid, rules.best_and_one, [0, 1]),
}
"""Rule, how siblings are drawn, and the shape: the parents of the nodes below the root."""
Case = tuple[Scalar, Any, list[int]]


# -- the law, exactly --------------------------------------------------------------------------


@cache
def processed(context: Text, settings: tuple[tuple[str, float], ...]) -> list[float]:
    """What follows ``context`` under random logits, by the processors of ``transformers``."""
    state = sum(token * (VOCAB + 1) ** place for place, token in enumerate(context))
    generator = torch.Generator().manual_seed(70 + 100 * state + len(context))
    scores = torch.randn(1, VOCAB, generator=generator).double() * 0.8
    for stage in processors_of(Settings(**dict(settings)), 0):  # type: ignore[arg-type]
        if not isinstance(stage, KeyedGumbel):
            scores = stage(torch.tensor([context]), scores)
    return scores[0].softmax(-1).tolist()


def target(text: Text, settings: dict[str, Any]) -> list[float]:
    """It looks at the last two tokens."""
    return processed(text[-2:], tuple(settings.items()))


def draft(text: Text, settings: dict[str, Any]) -> list[float]:
    """It looks at the last token."""
    return processed(text[-1:], tuple(settings.items()))


def drawn_tree(
    pick: Pick, text: Text, shape: list[int], siblings: Any, settings: dict[str, Any]
) -> Tree:
    """Node by node in index order, the children of each at once; a missing one is padding."""
    tokens, valid, paths = [text[-1]], [True], [text]
    for node in range(len(shape) + 1):
        wanted = shape.count(node)
        found = []
        if wanted and valid[node]:
            found = siblings(pick, draft(paths[node], settings), wanted)
        valid += [True] * len(found) + [False] * (wanted - len(found))
        tokens += found + [0] * (wanted - len(found))
        paths += [(*paths[node], token) for token in [*found, *[0] * (wanted - len(found))]]
    return tokens, [-1, *shape], valid


def beam_tree(pick: Pick, text: Text, settings: dict[str, Any]) -> Tree:
    levels = rules.first_paths(pick, lambda path: draft((*text, *path), settings), 2, 2)
    first = [1, 1 + len(levels[0])]
    nodes = [
        (path, place + (first[0] if depth else 0))
        for depth in range(2)
        for path, place in levels[depth]
    ]
    return (
        [text[-1], *(path[-1] for path, _ in nodes)],
        [-1, *(parent for _, parent in nodes)],
        [True] * (1 + len(nodes)),
    )


def one_cycle(pick: Pick, text: Text, case: Case, settings: dict[str, Any], leaf: Any) -> Text:
    """What a cycle emits; ``leaf`` are the target's settings where nothing was drafted."""
    rule, siblings, shape = case
    if siblings is BEAM:
        tree = beam_tree(pick, text, settings)
    else:
        tree = drawn_tree(pick, text, shape, siblings, settings)
    paths = [text]
    for token, parent in zip(tree[0][1:], tree[1][1:], strict=True):
        paths.append((*paths[parent], token))
    laws = (
        lambda node: target(paths[node], settings if node in tree[1] else leaf),
        lambda node: draft(paths[node], settings),
    )
    path, bonus = rule(tree, laws, pick)
    return (*(tree[0][node] for node in path[1:]), bonus)


def law_of_texts(case: Case, settings: dict[str, Any], leaf: Any) -> Law:
    """The law of the first ``LENGTH`` tokens: cycles are independent given the text."""
    cycles: dict[Text, Law] = {}
    texts: Law = {(0, 0): 1.0}
    while any(len(text) < LENGTH + 2 for text in texts):
        longer: Law = defaultdict(float)
        for text, weight in texts.items():
            if len(text) == LENGTH + 2:
                longer[text] += weight
                continue
            seen = text[-2:]
            if seen not in cycles:
                cycles[seen] = law(lambda p, s=seen: one_cycle(p, s, case, settings, leaf))
            for block_, prob in cycles[seen].items():
                longer[(*text, *block_)[: LENGTH + 2]] += weight * prob
        texts = longer
    return texts


def law_of_target(settings: dict[str, Any]) -> Law:
    def plain(pick: Pick) -> Text:
        text: Text = (0, 0)
        while len(text) < LENGTH + 2:
            text = (*text, pick(target(text, settings)))
        return text

    return law(plain)


SETTINGS = {"processed": PROCESSED, "warm": WARM, "raw": RAW}
MANY = ("k-seq paths", "k-seq wide", "rrs beam", "traversal beam", "traversal deep")
"""Cases of very many outcomes, enumerated where the filters leave few tokens."""
CELLS = [(case, "processed") for case in CASES]
CELLS += [(case, "warm") for case in CASES if case not in MANY]
CELLS += [(case, "raw") for case in ("token", "rrs", "block")]


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_emitted_text_has_the_law_of_the_target(cell: tuple[str, str]) -> None:
    case, settings = cell[0], SETTINGS[cell[1]]
    expected = law_of_target(settings)
    assert sum(expected.values()) == pytest.approx(1)
    assert len(expected) > 20
    assert total_variation(law_of_texts(CASES[case], settings, settings), expected) < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_a_bonus_from_raw_logits_is_caught(case: str) -> None:
    """And only away from T = 1 without filters."""
    wrong = law_of_texts(CASES[case], PROCESSED, RAW)
    assert total_variation(wrong, law_of_target(PROCESSED)) > 1e-3


# -- one node: published values and classical mistakes -----------------------------------------

TARGET, DRAFT = (0.5, 0.3, 0.15, 0.05), (0.4, 0.4, 0.1, 0.1)
Chooser = Callable[[Pick, Probs, int], list[int]]


def one_node(rule: Scalar, target: Probs, draft: Probs, count: int, chosen: Chooser) -> Law:
    """Of one cycle with ``count`` candidates: ``(1 if one was accepted, first token)``."""

    def program(pick: Pick) -> Text:
        tokens = chosen(pick, draft, count)
        tree = ([0, *tokens], [-1, *[0] * len(tokens)], [True] * (1 + len(tokens)))
        path, bonus = rule(tree, (lambda node: target, lambda node: draft), pick)
        return (len(path) - 1, tree[0][path[1]] if len(path) > 1 else bonus)

    return law(program)


def best(pick: Pick, draft: Probs, count: int) -> list[int]:
    """The most probable tokens, ties by the lower index."""
    return sorted(range(len(draft)), key=lambda token: -draft[token])[:count]


def first_tokens(found: Law) -> Law:
    tokens: Law = defaultdict(float)
    for (_, token), weight in found.items():
        tokens[(token,)] += weight
    return tokens


def accepted(found: Law) -> float:
    return sum(weight for (hit, _), weight in found.items() if hit)


@pytest.mark.parametrize(("count", "golden"), [(1, 0.85), (2, 0.961111), (3, 0.98)])
def test_recursive_rejection_accepts_the_published_share(count: int, golden: float) -> None:
    found = one_node(scalar_rrs, TARGET, DRAFT, count, rules.without_replacement)
    assert accepted(found) == pytest.approx(golden, abs=1e-6)
    expected = {(token,): prob for token, prob in enumerate(TARGET)}
    assert total_variation(first_tokens(found), expected) < 1e-12


@pytest.mark.parametrize(("count", "golden"), [(1, 0.5), (2, 0.8), (3, 0.95)])
def test_a_list_of_the_best_is_accepted_at_the_published_share(count: int, golden: float) -> None:
    def walked(tree: Tree, laws: tuple[LawAt, LawAt], pick: Pick) -> tuple[list[int], int]:
        return rules.walk(*tree, lambda node: pick(laws[0](node)))

    assert accepted(one_node(walked, TARGET, DRAFT, count, best)) == pytest.approx(golden)


@pytest.mark.parametrize("seed", range(20))
def test_any_pair_of_laws(seed: int) -> None:
    """With zeros on either side; one drafted token makes the block rule the token rule."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(2, 5, generator=generator).double() ** 3
    weights[torch.rand(2, 5, generator=generator) < 0.25] = 0
    weights += 1e-300 + (weights.sum(-1, keepdim=True) == 0).double()
    left, right = (
        rules.normalised([w if w > 1e-9 else 0.0 for w in row]) for row in weights.tolist()
    )
    expected = {(token,): prob for token, prob in enumerate(left)}
    for count in (1, 2, 3):
        found = one_node(scalar_rrs, left, right, count, rules.without_replacement)
        assert total_variation(first_tokens(found), expected) < 1e-12
    one = one_node(scalar_rrs, left, right, 1, rules.without_replacement)
    whole = one_node(scalar_block, left, right, 1, rules.without_replacement)
    assert total_variation(one, whole) < 1e-12


def stale(tree: Tree, laws: tuple[LawAt, LawAt], pick: Pick) -> tuple[list[int], int]:
    """Siblings tried by the law of the first: the draft is not normalised after a rejection."""
    left, right = laws[0](0), laws[1](0)
    for node, token in enumerate(tree[0][1:], start=1):
        if pick(
            [1 - rules.ratio(left[token], right[token]), rules.ratio(left[token], right[token])]
        ):
            return [0, node], token
        left, _ = rules.rejected(left, right, token)
    return [0], pick(left)


def test_classical_mistakes_change_the_law_by_as_much_as_published() -> None:
    expected = {(token,): prob for token, prob in enumerate(TARGET)}

    def distance(rule: Scalar, chosen: Chooser) -> float:
        return total_variation(first_tokens(one_node(rule, TARGET, DRAFT, 2, chosen)), expected)

    assert distance(stale, rules.without_replacement) == pytest.approx(0.0096, abs=1e-4)
    assert distance(scalar_rrs, best) == pytest.approx(0.5)

    def pruned(pick: Pick, draft: Probs, count: int) -> list[int]:
        """A drawn token that is improbable is not proposed."""
        return [token for token in rules.without_replacement(pick, draft, 1) if draft[token] >= 0.2]

    found = one_node(scalar_rrs, TARGET, TARGET, 1, pruned)
    assert total_variation(first_tokens(found), expected) == pytest.approx(0.16)


def test_a_block_is_accepted_at_least_as_far_as_token_by_token() -> None:
    def mean(rule: Scalar) -> float:
        emitted = law(lambda pick: one_cycle(pick, (0, 1), (rule, DISTINCT, [0, 1, 2]), WARM, WARM))
        return sum(weight * (len(text) - 1) for text, weight in emitted.items())

    assert mean(scalar_block) > mean(scalar_rrs) + 1e-3
