"""What a rule says about a tree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Verdict:
    """The accepted path of every row and the token the target adds after it.

    ``path`` [B, P] holds node indices from the root (always accepted) downwards, padded by
    repeating the last one; ``num_accepted`` [B] counts the accepted drafted nodes, root excluded;
    ``bonus`` [B] is the target's own token after the path. The host copies are made once per
    cycle: everything later that needs Python numbers reads ``paths`` and ``bonuses``.
    """

    path: Tensor
    num_accepted: Tensor
    bonus: Tensor

    @cached_property
    def _host(self) -> list[list[int]]:
        """[bonus, num_accepted, path ...] per row, in one transfer."""
        ends = torch.stack([self.bonus, self.num_accepted], 1)
        return torch.cat([ends, self.path], 1).tolist()

    @cached_property
    def paths(self) -> list[list[int]]:
        """Per row the accepted node indices, root first, without padding."""
        return [path[: count + 1] for _, count, *path in self._host]

    @cached_property
    def bonuses(self) -> list[int]:
        return [row[0] for row in self._host]


def accepted_path(accepted: Tensor) -> tuple[Tensor, Tensor]:
    """``path`` and ``num_accepted`` of a verdict, from the nodes it keeps.

    ``accepted`` [B, N] bool marks the nodes of one path per row, root included. Parents precede
    children, so sorted by index they are sorted by depth.
    """
    num_accepted = accepted.sum(-1) - 1
    order = torch.sort(accepted, dim=-1, descending=True, stable=True).indices
    steps = torch.arange(accepted.shape[1], device=order.device)
    # The padding repeats the last of them.
    return order.gather(1, torch.minimum(steps, num_accepted[:, None])), num_accepted
