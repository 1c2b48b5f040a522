"""Forwards under ``torch.compile``, one graph for each shape of their rows.

The uncompiled path stays the reference: a compiled forward computes the same in another order.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported, UserError
from transformers.cache_utils import Cache

from jakiro.cache.deferred import Deferred, attending
from jakiro.errors import ConfigError
from jakiro.target.products import MOST_SUMMED, for_few_rows, multiplying

MAX_GRAPHS = 64
"""Of one module; shapes beyond run uncompiled."""


def bucket(rows: int) -> int:
    """``rows`` rounded up to a size that graphs are made for: 1 to 3, multiples of 8 up to 64, then
    of 32. A few rows more cost less than another graph, but for sums."""
    if rows <= MOST_SUMMED:
        return rows
    step = 8 if rows <= 64 else 32
    return -(-rows // step) * step


class Compiled:
    """``module``, whose attention is ``deferred``, compiled by ``backend`` of ``torch.compile``;
    ``cache``: which argument of its forward is the cache.

    A graph is chosen by the shapes of the arguments, and not by the guards of the compiler: those
    look at every parameter in every call, which took a tenth of a forward. What they would see
    does not change: the tree of modules is a copy of its own, its weights those of now.
    Raises ``ConfigError`` where the compiler needs another, of C++, that is not there.

    On a GPU its pieces between the attentions become CUDA graphs (written for it, not run on one).
    ``compile_ms``: what the first call of each shape has taken so far, in all.
    """

    def __init__(self, module: nn.Module, backend: str, cache: str) -> None:
        is_cpu = next(module.parameters()).device.type == "cpu"
        self._module, self._layers = for_few_rows(module)
        self._backend = backend
        self._options: dict[str, str | int | bool | Callable[..., Any]] = {}
        if backend == "inductor":
            if is_cpu:
                _check_compiler()
            # On a CPU constant weights need not be handed in; on a GPU launches are what costs.
            self._options = {"freezing" if is_cpu else "triton.cudagraphs": True}
        self._stand_in = {cache: Deferred()}
        self._graphs: dict[Any, Callable[..., Any]] = {}
        self.compile_ms = 0.0

    def __call__(self, **inputs: Any) -> Any:
        """Call the module with a cache of this package that is aimed."""
        (name,) = self._stand_in
        cache: Cache = inputs.pop(name)
        inputs = {key: _laid_out(value) for key, value in inputs.items()}
        shape = tuple(map(_kind, inputs.values()))
        run = self._graphs.get(shape, self._module)
        torch.compiler.cudagraph_mark_step_begin()
        with attending(cache), multiplying(self._layers):
            if shape not in self._graphs and len(self._graphs) < MAX_GRAPHS:
                return self._first(shape, inputs)
            return run(**inputs, **self._stand_in)

    def _first(self, shape: Any, inputs: dict[str, Any]) -> Any:
        """The first call of ``shape``: compile it, or know that it cannot be."""
        began = time.perf_counter()
        _mark_dynamic(inputs)
        run = torch.compile(
            _own_code(self._module),
            backend=self._backend,
            dynamic=False,
            # Broken in pieces it would be several graphs, found by the code of the model's own
            # functions, which all shapes share.
            fullgraph=True,
            # A dict of its own: the call takes the filter out of it.
            options={**self._options, "guard_filter_fn": _no_guards},
        )
        try:
            out = run(**inputs, **self._stand_in)
        except (Unsupported, UserError) as error:
            # Nothing has run yet: it is found when a forward is read.
            reason = str(error).partition("\n")[0]
            warnings.warn(f"not compiled, as it cannot be one graph: {reason}", stacklevel=2)
            self._graphs[shape] = self._module
            return self._module(**inputs, **self._stand_in)
        self._graphs[shape] = run
        self.compile_ms += 1e3 * (time.perf_counter() - began)
        return out


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "compiling for a CPU needs a C++ compiler and none was found; install g++ or clang++ "
            "or name one in the environment variable CXX, or leave out compile"
        ) from error


def _no_guards(entries: list[Any]) -> list[bool]:
    return [False] * len(entries)


def _own_code(module: nn.Module) -> FunctionType:
    """``module`` as a function; compiled, its one graph is found by a code object of its own."""

    def run(**inputs: Any) -> Any:
        return module(**inputs)

    return FunctionType(run.__code__.replace(), globals(), closure=run.__closure__)


def _laid_out(value: Any) -> Any:
    """What an argument must be where nobody looks at strides."""
    if isinstance(value, dict):
        return {key: _laid_out(each) for key, each in value.items()}
    return value.contiguous() if isinstance(value, Tensor) else value


def _kind(value: Any) -> Any:
    """What of an argument makes another graph. A text grows with every cycle; that must not."""
    if isinstance(value, dict):
        return tuple((key, _kind(each)) for key, each in value.items())
    if isinstance(value, Tensor):
        # To the compiler a dimension of 1 is never one that varies.
        slots = value.shape[3:].numel() > 1
        return value.shape[:3], slots, value.dtype
    return value


def _mark_dynamic(value: Any) -> None:
    """Mark the slots of masks."""
    if isinstance(value, dict):
        for each in value.values():
            _mark_dynamic(each)
    elif isinstance(value, Tensor) and value.dim() == 4:
        torch._dynamo.maybe_mark_dynamic(value, 3)
