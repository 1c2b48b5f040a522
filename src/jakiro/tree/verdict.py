"""What a rule says about a tree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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
    def paths(self) -> list[list[int]]:
        """Per row the accepted node indices, root first, without padding."""
        counts = self.num_accepted.tolist()
        return [row[: n + 1] for row, n in zip(self.path.tolist(), counts, strict=True)]

    @cached_property
    def bonuses(self) -> list[int]:
        return self.bonus.tolist()
