"""From a tree and a cache to the mask of one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jakiro.tree.numbers import counting
from jakiro.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class Window:
    """How far a layer type may look back, in positions. ``sliding``: the last ``size`` positions,
    its own included; ``chunked``: only within its own block of ``size`` positions."""

    size: int
    chunked: bool = False


def positions(tree: TokenTree, lengths: Sequence[int]) -> Tensor:
    """Absolute positions [B, N] of the nodes: their row's of ``lengths`` plus their depth."""
    return torch.tensor(lengths, device=tree.depth.device)[:, None] + tree.depth


def attendable(reach: Tensor, lengths: Sequence[int], span: int) -> Tensor:
    """Who may attend to what: [B, Q, S] with S = ``span``, boolean or additive like ``reach``.

    Query q of row b sees the committed slots ``0 .. lengths[b]-1`` and, of the rows written
    behind them, those that ``reach`` [B, Q, F] shows (slot ``lengths[b]+j``), nothing else.
    """
    rows, queries, written = reach.shape
    is_bool = reach.dtype == torch.bool
    shown, hidden = (1.0, 0.0) if is_bool else (0.0, torch.finfo(reach.dtype).min)
    first = min(lengths)
    if max(lengths) == first:
        room = span - first - written
        mask = F.pad(reach, (first, 0), value=shown)
        return F.pad(mask, (0, room), value=hidden) if room else mask
    starts = torch.tensor(lengths, device=reach.device)[:, None]
    mask = reach.new_full((rows, span), hidden)
    mask.masked_fill_(torch.arange(span, device=reach.device) < starts, shown)
    slots = starts + counting(written, reach.device)
    mask = mask[:, None].repeat(1, queries, 1)
    return mask.scatter_(2, slots[:, None].expand(rows, queries, written), reach)


def below(mask: Tensor, parents: Tensor, own: Tensor, ends: Sequence[int]) -> Tensor:
    """Additive masks [B, K, S + K] of K nodes further down, which lie in the slots from ``ends[b]``
    on: what their ``parents`` [B, K] see by ``mask`` [B, R, S], and what they see of each other,
    ``own`` [1, K, K]."""
    (rows, new), span = parents.shape, mask.shape[2]
    seen = mask.gather(1, parents[:, :, None].expand(-1, -1, span))
    own = own.expand(rows, -1, -1)
    if min(ends) == span:
        return torch.cat([seen, own], 2)
    slots = torch.tensor(ends, device=seen.device)[:, None] + counting(new, seen.device)
    wide = F.pad(seen, (0, new), value=torch.finfo(seen.dtype).min)
    return wide.scatter_(2, slots[:, None].expand(rows, new, new), own)


def tree_mask(
    tree: TokenTree, lengths: Sequence[int], span: int, window: Window | None = None
) -> Tensor:
    """``attendable`` for the nodes of a tree: bool [B, N, S]. Node j lies in slot ``lengths[b]+j``.

    A window is applied by *position*: the slot of a tree node does not say how far away it is.
    """
    mask = attendable(tree.ancestors, lengths, span)
    if window is None:
        return mask
    query = positions(tree, lengths)[:, :, None]
    key = slot_positions(tree, lengths, span)[:, None]
    return mask & in_window(query, key, window)


def in_window(query: Tensor, key: Tensor, window: Window | None) -> Tensor:
    """Whether a query at a position may look as far back as a key; positions broadcast."""
    if window is None:
        return torch.ones((), dtype=torch.bool, device=query.device)
    if window.chunked:
        return query // window.size == key // window.size
    return query - key < window.size


def slot_positions(tree: TokenTree, lengths: Sequence[int], span: int) -> Tensor:
    """The absolute position [B, S] of what lies in each slot; meaningless past a row's nodes."""
    where = positions(tree, lengths)
    slots = torch.arange(span, device=where.device).expand(tree.num_rows, span)
    starts = torch.tensor(lengths, device=where.device)[:, None]
    return slots.scatter(1, starts + counting(tree.num_nodes, where.device), where)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The boolean mask [B, N, S] as [B, 1, N, S] in ``dtype``: 0 where allowed, else the most
    negative finite number. Additive, because eager attention adds whatever it is given."""
    shown = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask[:, None], shown, torch.finfo(dtype).min)
