"""The shortlist decides exactly what the whole sorted row decides."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from jakiro.sampling.shortlist import Filters, dense, kept

OFF = (0, 1.0, 0.0)
Setting = tuple[int, float, float]

settings_of_a_node = st.tuples(
    st.integers(0, 12),
    st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0]),
    st.sampled_from([0.0, 0.05, 0.4, 0.9, 1.0]),
)


def filters(settings: list[Setting], vocab_size: int) -> Filters:
    top_k, top_p, min_p = (torch.tensor(column)[:, None] for column in zip(*settings, strict=True))
    return Filters(
        torch.where(top_k == 0, vocab_size, top_k),
        torch.where(top_p == 1, torch.inf, top_p.double()),
        min_p.double(),
        any(p < 1 and not 0 < k < vocab_size for k, p, _ in settings),
    )


def supports(logits: Tensor, settings: list[Setting], size: int) -> Tensor:
    """[X, V] bool: what is kept."""
    parts = kept(logits, filters(settings, logits.shape[1]), size)
    rows = dense(parts, [part.logits for part in parts], logits.shape[1])
    support = rows > -torch.inf
    assert torch.equal(rows[support], logits[support])
    return support


def reference(row: list[float], setting: Setting) -> set[int]:
    """The same in words: plain Python over one row."""
    top_k, top_p, min_p = setting
    order = sorted(range(len(row)), key=lambda token: (row[token], token), reverse=True)
    keep = [token for token in order if row[token] > -math.inf]
    if top_k:
        keep = [token for token in keep if row[token] >= row[order[min(top_k, len(row)) - 1]]]
    weights = [math.exp(row[token] - row[order[0]]) for token in keep]
    if top_p < 1:
        total, before, nucleus = sum(weights), 0.0, [keep[0]]
        for token, weight in zip(keep, weights, strict=True):
            if before < top_p * total and token != keep[0]:
                nucleus.append(token)
            before += weight
        keep = nucleus
    best = row[order[0]]
    return {token for token in keep if math.exp(row[token] - best) >= min_p}


@st.composite
def nodes(draw: st.DrawFn) -> tuple[Tensor, list[Setting]]:
    vocab_size = draw(st.integers(2, 14))
    # Few different values, so that ties sit on every boundary; some tokens are banned.
    value = st.sampled_from([-math.inf, -1.7, 0.0, 0.0, 0.6, 0.6, 2.9])
    row = st.lists(value, min_size=vocab_size, max_size=vocab_size).filter(
        lambda row: max(row) > -math.inf
    )
    rows = draw(st.lists(st.tuples(row, settings_of_a_node), min_size=1, max_size=4))
    return torch.tensor([row for row, _ in rows], dtype=torch.float64), [s for _, s in rows]


@given(nodes(), st.integers(1, 13))
def test_shortlist_equals_whole_row_equals_reference(
    case: tuple[Tensor, list[Setting]], size: int
) -> None:
    logits, settings = case
    short = supports(logits, settings, size)
    assert torch.equal(short, supports(logits, settings, logits.shape[1]))
    for row, setting, support in zip(logits.tolist(), settings, short.tolist(), strict=True):
        assert {token for token, is_in in enumerate(support) if is_in} == reference(row, setting)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "setting", [(0, 0.9, 0.0), (50, 0.9, 0.0), (5, 1.0, 0.0), (0, 1.0, 0.1), (100, 0.5, 0.02)]
)
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_equals_transformers(setting: Setting, scale: float, dtype: torch.dtype) -> None:
    logits = torch.randn(20, 700, dtype=dtype) * scale
    top_k, top_p, min_p = setting
    expected = logits
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    assert torch.equal(supports(logits, [setting] * 20, 64), expected > -torch.inf)


def test_undecided_nodes_only_are_done_again() -> None:
    logits = torch.zeros(3, 5000)
    logits[:, :100] = torch.linspace(9, 1, 100)
    logits[1] = 0
    settings = [(5, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.9, 0.0)]
    first, *later = kept(logits, filters(settings, 5000), 64)
    assert first.nodes == slice(None)
    assert first.ids.shape == (3, 64)
    assert [part.ids.shape[1] for part in later] == [512, 4096, 5000]
    assert all(torch.equal(part.nodes, torch.tensor([1])) for part in later)
    support = supports(logits, settings, 64)
    assert support.sum(-1)[:2].tolist() == [5, 5000]
