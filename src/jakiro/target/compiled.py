"""Forwards under ``torch.compile``, one graph for each shape of their rows.

The uncompiled path stays the reference: a compiled forward computes the same in another order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from jakiro.cache.deferred import Deferred, attending

MAX_GRAPHS = 64
"""Of one module; beyond, ``torch`` goes on uncompiled."""


def bucket(rows: int) -> int:
    """``rows`` rounded up to a size that graphs are made for: 1, multiples of 8 up to 64, then of
    32. A few rows more cost less than another graph."""
    if rows == 1:
        return 1
    step = 8 if rows <= 64 else 32
    return -(-rows // step) * step


class Compiled:
    """``module``, whose attention is ``deferred``, compiled by ``backend`` of ``torch.compile``;
    ``cache``: which argument of its forward is the cache.

    On a GPU its pieces between the attentions become CUDA graphs (written for it, not run on one).
    ``compile_ms``: what the first call of each shape has taken so far, in all.
    """

    def __init__(self, module: nn.Module, backend: str, cache: str) -> None:
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, MAX_GRAPHS)
        is_cpu = next(module.parameters()).device.type == "cpu"
        # On a CPU constant weights can be packed; on a GPU launches are what costs.
        choice: dict[str, Any] = {"options": {"freezing": True}} if is_cpu else {}
        if not is_cpu:
            choice = {"mode": "reduce-overhead"}
        if backend != "inductor":
            choice = {}
        self._run = torch.compile(module.forward, backend=backend, dynamic=False, **choice)
        self._stand_in = {cache: Deferred()}
        self._seen: set[Any] = set()
        self.compile_ms = 0.0

    def __call__(self, **inputs: Any) -> Any:
        """Call the module with a cache of this package that is aimed."""
        (name,) = self._stand_in
        cache: Cache = inputs.pop(name)
        shape = tuple(map(_kind, inputs.values()))
        began = time.perf_counter()
        for mask in _masks(inputs):
            # The text grows with every cycle; that must not be another graph.
            torch._dynamo.maybe_mark_dynamic(mask, 3)
        torch.compiler.cudagraph_mark_step_begin()
        with attending(cache):
            out = self._run(**inputs, **self._stand_in)
        if shape not in self._seen:
            self._seen.add(shape)
            self.compile_ms += 1e3 * (time.perf_counter() - began)
        return out


def _kind(value: Any) -> Any:
    """What of an argument makes another graph."""
    if isinstance(value, Tensor):
        return value.shape[:3], value.dtype
    return tuple(value) if isinstance(value, dict) else value


def _masks(inputs: dict[str, Any]) -> Iterator[Tensor]:
    for value in inputs.values():
        for each in value.values() if isinstance(value, dict) else (value,):
            if isinstance(each, Tensor) and each.dim() == 4:
                yield each
