"""Another tree of modules over the same parameters, or a copy of a part of one: how a model is run
differently and not changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
Change = Callable[[str, nn.Module], None]
"""Told the name of a module and its copy, may change that copy: its class, its own attributes, a
``forward`` of its own. Parameters and buffers are shared and stay as they are."""


def shared_copy(module: Module, change: Change) -> Module:
    """A copy of the module *tree*, every module of it given to ``change``, with the parameters and
    buffers of the original. Where somebody bound a ``forward`` to one very object, a copy would
    still call the original: such a module and all below it stay what they are."""
    return _copied(module, change, "", {})


def _copied(module: Module, change: Change, name: str, done: dict[int, nn.Module]) -> Module:
    """A shallow copy with its own dicts of children and hooks; shared modules stay shared."""
    if id(module) in done:
        return done[id(module)]  # type: ignore[return-value]
    if "forward" in vars(module):
        return module
    made = copy.copy(module)
    done[id(module)] = made
    for attribute, value in vars(module).items():
        if isinstance(value, dict):
            made.__dict__[attribute] = value.copy()
    for key, child in module._modules.items():
        below = f"{name}.{key}" if name else key
        made._modules[key] = None if child is None else _copied(child, change, below, done)
    change(name, made)
    return made


def rows_of(linear: Any, ids: Tensor) -> nn.Linear:
    """The rows ``ids`` [D] of a linear layer, copied: from [.., in] to [.., D]."""
    weight, bias = linear.weight, linear.bias
    place = {"device": weight.device, "dtype": weight.dtype}
    sizes = (weight.shape[1], len(ids), bias is not None)
    rows: nn.Linear = nn.utils.skip_init(nn.Linear, *sizes, **place)
    with torch.no_grad():
        rows.weight.copy_(weight[ids])
        if bias is not None:
            rows.bias.copy_(bias[ids])
    rows.requires_grad_(False)
    return rows
