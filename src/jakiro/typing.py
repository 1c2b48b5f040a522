"""Dimension letters and shared aliases.

Letters in shapes: B rows of a batch, N nodes of a tree (root included), K nodes of a frontier,
D depth, P path positions, V vocabulary, H hidden size, L layers, S cache slots, T text positions.
Masks are boolean with True = may attend, until the one place that hands them to a model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

TokenIds = list[int]
LogitsProcessor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(ids [B, T] int64, logits [B, V]) -> logits [B, V]``: the protocol of ``transformers``."""
