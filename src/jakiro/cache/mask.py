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
    offset = torch.arange(span, device=lengths.device) - lengths[:, None]
    written = reach.shape[2]
    inside = (offset >= 0) & (offset < written)
    index = offset.clamp(0, written - 1)[:, None, :].expand(-1, reach.shape[1], -1)
    return (offset < 0)[:, None] | (reach.gather(2, index) & inside[:, None])


def tree_mask(tree: TokenTree, lengths: Tensor, span: int, window: Window | None = None) -> Tensor:
    """``attendable`` for the nodes of a tree: bool [B, N, S]. Node j lies in slot ``lengths[b]+j``.

    A window is applied by *position*: the slot of a tree node does not say how far away it is.
    """
    mask = attendable(tree.ancestors, lengths, span)
    if window is None:
        return mask
    slots = torch.arange(span, device=lengths.device)
    node = (slots - lengths[:, None]).clamp(0, tree.num_nodes - 1)
    query = positions(tree, lengths)
    key = torch.where(slots < lengths[:, None], slots, query.gather(1, node))[:, None]
    if window.chunked:
        return mask & (query[:, :, None] // window.size == key // window.size)
    return mask & (query[:, :, None] - key < window.size)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The boolean mask [B, N, S] as [B, 1, N, S] in ``dtype``: 0 where allowed, else the most
    negative finite number. Additive, because eager attention adds whatever it is given."""
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill_(~mask, torch.finfo(dtype).min)[:, None]
