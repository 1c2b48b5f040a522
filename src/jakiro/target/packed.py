"""Faster float32 linear layers on a CPU, without touching the user's model."""

from __future__ import annotations

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jakiro.target.machine import cpu_name
from jakiro.target.modules import Module, shared_copy

MAX_PACKED_BYTES = 2 << 30
"""Packing keeps a second copy of the weights; beyond this size memory matters more."""
TYPICAL_ROWS = 16
LEAST_ON_INTEL = 1 << 20
"""Weights with fewer numbers are not packed on processors of Intel, for which the usual product of
``torch`` is made: 6 to 60 rows mostly take 0.4 to 1 times as long through it, from here on 1.1 to 2
times as long, and on an AMD EPYC at all sizes."""


class PackedLinear(nn.Linear):
    """Shares the parameters of an ``nn.Linear`` and adds its weight in oneDNN's blocked layout.

    The product ``torch`` calls for float32 is tuned for one row and for hundreds of them; for the
    dozen rows of a tree the blocked layout takes half the time. One row, anything that needs a
    gradient, and autocast, which wants other dtypes, still go the usual way.
    """

    blocked: Tensor

    def forward(self, input: Tensor, is_warm: bool = False) -> Tensor:
        """``is_warm``: the blocked weight was read a moment ago, so one row takes it as well."""
        usual = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        if usual or (input.numel() == self.in_features and not is_warm):
            return F.linear(input, self.weight, self.bias)
        return self.blockwise(input)

    def blockwise(self, input: Tensor) -> Tensor:
        """The product by the blocked weight, whatever the rows."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.blocked, self.bias, "none", [], ""
        )
        return out


def packed_view(module: Module) -> Module:
    """``module`` with its float32 CPU linear layers packed: a copy of the module *tree* that shares
    every parameter and buffer. The module itself is returned where packing cannot help.

    The blocked weights are those of now: a module whose weights change needs a new view.
    """
    linears = [child for child in module.modules() if _pays(child)]
    num_bytes = sum(4 * child.weight.numel() for child in linears)
    if not linears or num_bytes > MAX_PACKED_BYTES or not torch.backends.mkldnn.is_available():
        return module
    return shared_copy(module, _pack)


def _pays(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Exactly ``nn.Linear`` with a plain float32 weight that is large enough: no adapter, no
    quantised weight."""
    if type(module) is not nn.Linear or type(module.weight.data) is not Tensor:
        return False
    weight = module.weight
    can = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return can and weight.numel() >= _least()


def _least() -> int:
    """The fewest numbers of a weight that is packed on this machine."""
    return LEAST_ON_INTEL if "Intel" in cpu_name() else 0


def _pack(_: str, module: nn.Module) -> None:
    if _pays(module):
        blocked = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), TYPICAL_ROWS)
        module.__class__ = PackedLinear
        module.__dict__["blocked"] = blocked
