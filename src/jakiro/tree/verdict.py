"""What a rule says about a tree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Verdict:
    """The accepted path of every row and the token the target adds after it.

    ``paths`` [B][P] holds node indices from the root (always accepted) downwards; ``bonuses`` [B]
    the target's own token after each path. Both are numbers of the host: what is done with them,
    row by row, would be a dozen operations on tensors of a few elements.
    """

    paths: list[list[int]]
    bonuses: list[int]

    @classmethod
    def of(cls, accepted: Tensor, bonus: Tensor) -> Verdict:
        """From the nodes that are kept: ``accepted`` [B, N] bool marks those of one path per row,
        root included; ``bonus`` [B]. Parents precede children, so ascending indices are a path.
        """
        # One transfer to the host.
        rows = torch.cat([bonus[:, None], accepted], 1).tolist()
        paths = [[node for node, is_kept in enumerate(row[1:]) if is_kept] for row in rows]
        return cls(paths, [row[0] for row in rows])
