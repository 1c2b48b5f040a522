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


def tree_mask(tree: TokenTree, lengths: Tensor, span: int, window: Window | None = None) -> Tensor:
    """Who may attend to what: bool [B, N, S] with S = ``span``.

    A node sees the committed slots ``0 .. lengths[b]-1`` of its row, its ancestors and itself;
    node j of row b lies in slot ``lengths[b]+j``. A window is applied by *position*: the slot of
    a tree node says nothing about how far away it is.
    """
    slots = torch.arange(span, device=lengths.device)
    offset = slots - lengths[:, None]
    committed = offset < 0
    node = offset.clamp(0, tree.num_nodes - 1)
    inside = ~committed & (offset < tree.num_nodes)
    index = node[:, None, :].expand(-1, tree.num_nodes, -1)
    mask = committed[:, None] | (tree.ancestors.gather(2, index) & inside[:, None])
    if window is None:
        return mask
    query = positions(tree, lengths)[:, :, None]
    key = torch.where(committed, slots, lengths[:, None] + tree.depth.gather(1, node))[:, None]
    if window.chunked:
        return mask & (query // window.size == key // window.size)
    return mask & (query - key < window.size)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The boolean mask [B, N, S] as [B, 1, N, S] in ``dtype``: 0 where allowed, else the most
    negative finite number. Additive, because eager attention adds whatever it is given."""
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill_(~mask, torch.finfo(dtype).min)[:, None]
