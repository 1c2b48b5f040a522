"""Top-k, top-p and min-p without sorting the vocabulary.

The filters keep the head of the sorted row, so the largest few logits nearly always decide them. A
shortlist is trusted only where every kept logit is strictly above its smallest one (nothing outside
can then be kept, ties included) and the probability mass that top-p measures is known. The nodes
where that fails are redone with longer shortlists, in the end with the whole row.

Semantics are those of ``transformers``: the filters act one after the other; top-k keeps all ties
of the k-th; top-p keeps the tokens with less than p of the mass before them, and of equal logits
those with the higher ids; min-p is relative to the best; the best token is always kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jakiro.tree.largest import largest

SHORTLIST = 64
GROWTH = 8
"""How much longer the next try is for nodes whose shortlist did not decide."""


@dataclass(frozen=True, eq=False)
class Filters:
    """The filters of X nodes, as tensors [X, 1] and what the host knows of them."""

    top_k: Tensor
    """int64; the size of the vocabulary, or more, where off."""
    top_p: Tensor
    """float64; infinite where off."""
    min_p: Tensor
    """float64; 0 where off."""
    needs_mass: bool
    """Some node has top-p without top-k: it measures the mass of the whole row."""

    def pick(self, nodes: Tensor) -> Filters:
        """The filters of ``nodes`` [Y], indices into X."""
        return Filters(self.top_k[nodes], self.top_p[nodes], self.min_p[nodes], self.needs_mass)


@dataclass(frozen=True, eq=False)
class Kept:
    """The candidates of some nodes: ``ids`` and ``logits`` [Y, M], ``keep`` [Y, M] bool.

    ``nodes`` says which of the X nodes these are: indices [Y], or ``slice(None)`` for all.
    """

    nodes: Tensor | slice
    ids: Tensor
    logits: Tensor
    keep: Tensor


def kept(logits: Tensor, filters: Filters, size: int = SHORTLIST) -> list[Kept]:
    """What the filters keep of ``logits`` [X, V] (temperature applied).

    Later entries replace earlier ones where they name the same nodes.
    """
    mass = None
    if filters.needs_mass:
        mass = (logits - logits.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True).double()
    parts: list[Kept] = []
    nodes: Tensor | slice = slice(None)
    while True:
        complete = size >= logits.shape[-1]
        ids, values = _largest(logits, size)
        keep, decided = _cut(values, mass, filters, logits.shape[-1])
        parts.append(Kept(nodes, ids, values, keep))
        if complete or bool(decided.all()):
            return parts
        rest = (~decided).nonzero()[:, 0]
        nodes = rest if isinstance(nodes, slice) else nodes[rest]
        logits, filters, size = logits[rest], filters.pick(rest), size * GROWTH
        mass = None if mass is None else mass[rest]


def dense(parts: list[Kept], values: list[Tensor], vocab_size: int) -> Tensor:
    """``values[i]`` [Y, M] of the candidates of ``parts[i]`` as rows [X, V], -inf elsewhere."""
    rows: Tensor | None = None
    for part, value in zip(parts, values, strict=True):
        value = value.masked_fill(~part.keep, -torch.inf)
        full = value.new_full((value.shape[0], vocab_size), -torch.inf)
        full.scatter_(1, part.ids, value)
        if rows is None:
            rows = full
        else:
            rows[part.nodes] = full
    assert rows is not None
    return rows


def _largest(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Ids and values [X, M] of the ``size`` largest logits, descending, higher ids first."""
    if size >= logits.shape[-1]:
        values, order = logits.flip(-1).sort(dim=-1, descending=True, stable=True)
        return logits.shape[-1] - 1 - order, values
    ids = largest(logits, size).indices.sort(descending=True).values
    values, order = logits.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return ids.gather(1, order), values


def _cut(
    values: Tensor, mass: Tensor | None, filters: Filters, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Which of the sorted ``values`` [X, M] are kept, and for which nodes [X] that is certain."""
    size = values.shape[-1]
    floor = values[:, -1:]
    kth = values.gather(1, filters.top_k.clamp(max=size) - 1)
    keep = (values >= kth) & (values > -torch.inf)
    weights = (values - values[:, :1]).double().exp()
    running = weights.masked_fill(~keep, 0).cumsum(-1)
    before = torch.nn.functional.pad(running[:, :-1], (1, 0))
    no_top_k = filters.top_k >= vocab_size
    total = running[:, -1:]
    if mass is not None:
        total = torch.where(no_top_k, mass, total)
    keep &= (before < filters.top_p * total) & (weights >= filters.min_p)
    keep[:, 0] = True
    mass_known = no_top_k | (kth > floor) | filters.top_p.isinf()
    inside = ~(keep & (values <= floor)).any(-1, keepdim=True)
    # With the floor at -inf nothing outside can be kept: those tokens are banned.
    decided = (inside & mass_known) | (floor == -torch.inf)
    return keep, decided[:, 0]
