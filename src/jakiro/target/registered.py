"""The second route: hand the tree to ``transformers`` as a mask function.

Some models refuse or ignore a ready 4-D mask (flash attention does; so do models with several
layer types that take no dict). They still build their masks through the registry of
``transformers``, and the function found there receives each layer type's own rule. Asked at the
*positions* of a tree's nodes and joined with the tree's visibility, it gives the windowed mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_NAME = "jakiro_tree"
_tree: ContextVar[tuple[Tensor, Tensor, Tensor]] = ContextVar(_NAME)


def _mask(
    mask_function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], **_unused: Any
) -> Tensor:
    """The mask [B, 1, N, S] of one layer type for the tree in flight."""
    visible, query, key = _tree.get()
    row = torch.arange(len(visible), device=visible.device)[:, None, None, None]
    head = torch.zeros((), dtype=torch.int64, device=visible.device)
    allowed = mask_function(row, head, query[:, None, :, None], key[:, None, None, :])
    return allowed & visible[:, None]


AttentionMaskInterface.register(_NAME, _mask)
AttentionInterface.register(_NAME, sdpa_attention_forward)


@contextmanager
def tree_attention(
    model: PreTrainedModel, visible: Tensor, query: Tensor, key: Tensor
) -> Iterator[None]:
    """Within, ``model`` masks by ``visible`` [B, N, S] and its own windows between the positions
    ``query`` [B, N] and ``key`` [B, S]. Its attention implementation is restored on leaving."""
    before = model.config._attn_implementation
    token = _tree.set((visible, query, key))
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _tree.reset(token)
