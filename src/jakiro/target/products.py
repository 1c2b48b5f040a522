"""Linear layers of a compiled forward, whose rows are few.

One row is a sum over products, which the compiler makes a single pass over the weight of; the
library's product of one row reads memory half as fast and less. A dozen rows go through oneDNN's
blocked layout, which the compiler does not choose for float32 by itself: an operator it does not
look into.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jakiro.target.modules import Module, shared_copy
from jakiro.target.packed import PackedLinear

MOST_SUMMED = 3
"""Rows. Four and more are faster blocked."""

_layers: ContextVar[Sequence[PackedLinear]] = ContextVar("jakiro_layers")


@contextmanager
def multiplying(layers: Sequence[PackedLinear]) -> Iterator[None]:
    """Within, ``product`` is by these layers."""
    token = _layers.set(layers)
    try:
        yield
    finally:
        _layers.reset(token)


torch.library.define("jakiro::product", "(Tensor states, int layer, int width) -> Tensor")


@torch.library.impl("jakiro::product", "CPU")
def product(states: Tensor, layer: int, width: int) -> Tensor:
    """[.., width] of ``states`` [.., in] by one of the layers of ``multiplying``."""
    out: Tensor = _layers.get()[layer].blockwise(states)
    return out


@torch.library.register_fake("jakiro::product")  # type: ignore[untyped-decorator]
def _(states: Tensor, layer: int, width: int) -> Tensor:
    return states.new_empty(*states.shape[:-1], width)


class FewRowsLinear(PackedLinear):
    """Shares the parameters of an ``nn.Linear``, and what is packed of it. ``number``: among the
    layers of ``multiplying``; None: not packed."""

    number: int | None

    def forward(self, input: Tensor, is_warm: bool = False) -> Tensor:
        rows = input.numel() // self.in_features
        if rows <= MOST_SUMMED and torch.compiler.is_compiling():
            flat = input.reshape(rows, self.in_features).unbind()
            out = torch.stack([(self.weight * row).sum(-1) for row in flat])
            out = out.view(*input.shape[:-1], self.out_features)
            return out if self.bias is None else out + self.bias
        if self.number is None:
            return F.linear(input, self.weight, self.bias)
        return torch.ops.jakiro.product(input, self.number, self.out_features)  # type: ignore[no-any-return]


def for_few_rows(module: Module) -> tuple[Module, list[PackedLinear]]:
    """``module`` for compiling: a copy of the module *tree* that shares every parameter, its linear
    layers made for few rows, and the packed ones among them."""
    layers: list[PackedLinear] = []

    def change(_: str, child: nn.Module) -> None:
        is_packed = isinstance(child, PackedLinear)
        if not (is_packed or type(child) is nn.Linear) or type(child.weight.data) is not Tensor:
            return
        weight = child.weight
        if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
            return
        number = None
        if isinstance(child, PackedLinear):
            number = len(layers)
            layers.append(child)
        child.__class__ = FewRowsLinear
        child.__dict__["number"] = number

    return shared_copy(module, change), layers
