"""From a tree and a cache to the mask of one forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jakiro.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class Window:
    """How far a layer type may look back, in positions. ``sliding``: the last ``size`` positions,
    its own included; ``chunked``: only within its own block of ``size`` positions."""

    size: int
    chunked: bool = False


def positions(tree: TokenTree, lengths: Tensor) -> Tensor:
    """Absolute positions [B, N] of the nodes: ``lengths`` [B] plus depth."""
    return lengths[:, None] + tree.depth


def attendable(reach: Tensor, lengths: Tensor, span: int) -> Tensor:
    """Who may attend to what: bool [B, Q, S] with S = ``span``.

    Query q of row b sees the committed slots ``0 .. lengths[b]-1`` and, of the rows written
    behind them, those with ``reach[b, q, j]`` (slot ``lengths[b]+j``). ``reach`` is [B, Q, F].
    """
    rows, queries, written = reach.shape
    committed = torch.arange(span, device=lengths.device) < lengths[:, None]
    slots = lengths[:, None] + torch.arange(written, device=lengths.device)
    mask = committed[:, None].repeat(1, queries, 1)
    return mask.scatter_(2, slots[:, None].expand(rows, queries, written), reach)


def tree_mask(tree: TokenTree, lengths: Tensor, span: int, window: Window | None = None) -> Tensor:
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


def slot_positions(tree: TokenTree, lengths: Tensor, span: int) -> Tensor:
    """The absolute position [B, S] of what lies in each slot; meaningless past a row's nodes."""
    slots = torch.arange(span, device=lengths.device).expand(tree.num_rows, span)
    nodes = lengths[:, None] + torch.arange(tree.num_nodes, device=lengths.device)
    return slots.scatter(1, nodes, positions(tree, lengths))


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The boolean mask [B, N, S] as [B, 1, N, S] in ``dtype``: 0 where allowed, else the most
    negative finite number. Additive, because eager attention adds whatever it is given."""
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    return torch.where(mask, hidden.new_zeros(()), hidden)[:, None]
