"""The judge: rounding is told from bugs by moving one logit, whatever the sampling setting."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from jakiro.bench.equality import Divergence, Judge, first_difference, rounding_bound
from jakiro.sampling.noise import gumbel, noise_keys
from jakiro.sampling.params import SamplingParams

VOCABULARY = 12
PROMPT = [3, 4]
GREEDY = SamplingParams(seed=5)
SAMPLED = SamplingParams(seed=5, temperature=0.8)


class Table:
    """A model whose logits depend on the last token only; ``rows`` [V, V]."""

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.dtype = rows, rows.dtype

    def get_input_embeddings(self) -> Any:
        return SimpleNamespace(weight=self.rows)

    def __call__(self, input_ids: Tensor, use_cache: bool) -> Any:
        assert not use_cache
        return SimpleNamespace(logits=self.rows[input_ids])


def table(dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(VOCABULARY, VOCABULARY, generator=generator).to(dtype)


def noise(position: int) -> Tensor:
    words = [torch.tensor([word]) for word in (5, 0, position)]
    return gumbel(noise_keys(*words), VOCABULARY)[0]


@pytest.mark.parametrize(
    ("one", "other", "position"),
    [
        ([1, 2], [1, 2], None),
        ([1, 2], [1, 3], 1),
        ([1], [1, 3], 1),
        ([1, 2], [], 0),
        ([], [], None),
    ],
)
def test_first_difference(one: list[int], other: list[int], position: int | None) -> None:
    assert first_difference(one, other) == position


def test_half_precisions_have_wider_bounds() -> None:
    logits = torch.tensor([20.0, -3.0])
    bounds = [
        rounding_bound(dtype, logits)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    ]
    assert bounds == sorted(bounds)
    assert bounds[1] == 1e-4
    assert bounds[3] == 4 * 2**-7 * 20


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("gap", "is_near_tie"), [(5e-5, True), (3e-4, False)])
def test_a_gap_below_the_bound_is_a_near_tie(
    params: SamplingParams, gap: float, is_near_tie: bool
) -> None:
    """Tokens 6 and 7 lead by far after token 4, with noise; 6 is ahead by ``gap``."""
    temperature = params.temperature or 1.0
    base = torch.zeros(VOCABULARY, dtype=torch.float64)
    if not params.is_greedy:
        base = -temperature * noise(position=2)
    base[6] += 30 + gap
    base[7] += 30
    rows = table().double()
    rows[4] = base
    model = Table(rows)
    model.dtype = torch.float32  # the bound of float32, on exact logits
    found = Judge(model).compare(PROMPT, params, [6, 1], [7, 1])
    assert found is not None
    assert (found.position, found.expected, found.found) == (0, 6, 7)
    assert found.margin == pytest.approx(gap / temperature, rel=1e-3)
    assert found.is_near_tie is is_near_tie


def at_the_edge(logits: dict[int, float], top_k: int, expected: int, found: int) -> Divergence:
    """What is said of ``found`` for ``expected`` where top-k chooses by ``logits`` after token 4,
    with the bound of float32."""
    rows = table().double()
    rows[4] = -50.0
    rows[4, list(logits)] = torch.tensor(list(logits.values()), dtype=torch.float64)
    model = Table(rows)
    model.dtype = torch.float32
    params = replace(SAMPLED, top_k=top_k)
    judged = Judge(model).compare(PROMPT, params, [expected], [found])
    assert judged is not None
    return judged


@pytest.mark.parametrize(("gap", "is_near_tie"), [(5e-5, True), (3e-4, False)])
def test_a_token_at_the_edge_of_a_filter_is_a_near_tie(gap: float, is_near_tie: bool) -> None:
    """Top-k 1 keeps token 6 alone; the noise would take 7, which misses the list by ``gap``."""
    found = at_the_edge({6: gap, 7: 0.0}, 1, 6, 7)
    assert found.margin is None
    assert found.is_near_tie is is_near_tie


@pytest.mark.parametrize(("gap", "is_near_tie"), [(5e-5, True), (3e-4, False)])
def test_a_token_that_only_another_one_keeps_from_the_choice(gap: float, is_near_tie: bool) -> None:
    """Top-k 2 keeps the likeliest token and, by ``gap``, the one that the noise takes; without that
    one the likeliest is chosen."""
    ranked = noise(len(PROMPT)).argsort().tolist()
    likeliest, taken, left_out = ranked[5], ranked[-1], ranked[0]
    logits = {likeliest: 0.01, taken: 0.0, left_out: -gap}
    assert at_the_edge(logits, 2, taken, likeliest).is_near_tie is is_near_tie


@pytest.mark.parametrize(("gap", "is_near_tie"), [(5e-5, True), (3e-4, False)])
def test_two_tokens_at_the_edge_of_a_filter(gap: float, is_near_tie: bool) -> None:
    """As above, but the next in the list would be chosen, too, if it came in: a third one is as
    likely, and with that the likeliest is chosen."""
    ranked = noise(len(PROMPT)).argsort().tolist()
    likeliest, taken, second, left_out = ranked[5], ranked[-1], ranked[-2], ranked[0]
    logits = {likeliest: 0.01, taken: 0.0, second: -gap, left_out: -1.5 * gap}
    assert at_the_edge(logits, 2, taken, likeliest).is_near_tie is is_near_tie


def test_what_a_model_masks_widens_no_bound() -> None:
    """In half precision a multiple of the largest logit would excuse everything."""
    for masked in (-torch.inf, torch.finfo(torch.bfloat16).min, -1e4):
        rows = table(torch.bfloat16)
        rows[4] = 0.0
        rows[4, 6], rows[4, 7], rows[4, 8] = 10.0, 1.0, masked
        found = Judge(Table(rows)).compare(PROMPT, GREEDY, [6], [7])
        assert found is not None and not found.is_near_tie


def test_a_text_that_ends_early_is_a_bug() -> None:
    found = Judge(Table(table())).compare(PROMPT, GREEDY, [6, 1], [6])
    assert found is not None
    assert (found.position, found.expected, found.found) == (1, 1, None)
    assert not found.is_near_tie


def test_equal_texts_are_not_judged() -> None:
    assert Judge(None).compare(PROMPT, GREEDY, [6, 1], [6, 1]) is None


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SAMPLED,
        replace(SAMPLED, temperature=1.3, top_k=4, repetition_penalty=1.5),
        replace(SAMPLED, presence_penalty=0.7, logit_bias={2: 1.0}),
    ],
    ids=["greedy", "sampled", "repetition", "presence"],
)
def test_recomputing_finds_the_planted_token(params: SamplingParams) -> None:
    """The text is built token by token with the oracle's processors, then one token is changed."""
    from tests.oracles import plain

    names = ("temperature", "top_k", "repetition_penalty", "presence_penalty", "logit_bias", "seed")
    settings = {name: getattr(params, name) for name in names}
    chain = plain.processors_of(plain.Settings(**settings), len(PROMPT))
    rows = table(torch.float64)
    text: list[int] = []
    for _ in range(10):
        ids = torch.tensor([[*PROMPT, *text]])
        text.append(int(chain(ids, rows[ids[:, -1]])[0].argmax()))
    judge = Judge(Table(rows))
    assert judge.recompute(PROMPT, params, text) is None
    wrong = [*text[:6], (text[6] + 1) % VOCABULARY, *text[7:]]
    found = judge.recompute(PROMPT, params, wrong)
    assert found is not None
    assert (found.position, found.expected, found.found) == (6, text[6], wrong[6])
    assert not found.is_near_tie
