"""Constants that every cycle needs."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache
def counting(size: int, device: torch.device) -> Tensor:
    """[size] int64: 0, 1, 2, ... Made once: nobody writes to it."""
    return torch.arange(size, device=device)
