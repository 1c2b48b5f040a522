"""Forwards under ``torch.compile``.

The uncompiled path stays the reference: a compiled forward computes the same in another order.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, Unsupported, UserError
from transformers.cache_utils import Cache

from jakiro.cache.deferred import Deferred, attending
from jakiro.kernels.build import check_compiler, load
from jakiro.target.modules import Module
from jakiro.target.panels import JoinProducts, all_in_panels, panel_view

MAX_GRAPHS = 64
"""Of one module; kinds of rows beyond run uncompiled."""


def for_compiling(module: Module, backend: str, *, is_rounded: bool = False) -> Module:
    """``module``, or a view of it, as ``Compiled`` wants it for a backend of ``torch.compile``.
    ``is_rounded``: weights of float32 may be rounded to bfloat16, as only drafts depend on them.

    Raises ``ConfigError`` where the compiler needs another, of C++, that is not there.
    """
    if backend != "inductor" or not _is_on_cpu(module):
        return module
    check_compiler()
    load("attention")
    return panel_view(module, is_rounded)


class Compiled:
    """``module``, whose attention is ``deferred``, compiled by ``backend`` of ``torch.compile``;
    ``cache``: which argument of its forward is the cache.

    A graph is for one kind of arguments. Of the compiler's guards those on the arguments are kept:
    the others look at every parameter in every call, which took a tenth of a forward, and what they
    would see does not change: the tree of modules is a copy of its own, its weights those of now.
    On a CPU one graph is for any number of rows. On a GPU, where the pieces between the attentions
    become CUDA graphs, each is for one, and there are ``bucket``s (written for it, not run on one).

    ``compile_ms``: what the first call of each kind has taken so far, in all.
    """

    def __init__(self, module: nn.Module, backend: str, cache: str) -> None:
        self._module, self._backend = module, backend
        self._is_bucketed = not _is_on_cpu(module)
        self._options: dict[str, Any] = {}
        if backend == "inductor":
            self._options = {"triton.cudagraphs": True}
            if not self._is_bucketed:
                self._options = {
                    "post_grad_custom_pre_pass": JoinProducts(),
                    # As constants, weights in no panels are laid out by the compiler. Where there
                    # are none they are handed in, and a graph that is kept on disk is ready in
                    # half the time or less.
                    "freezing": not all_in_panels(module),
                    # They look at every weight in every call, which took a twentieth of it.
                    "size_asserts": False,
                    "alignment_asserts": False,
                }
        self._stand_in = {cache: Deferred()}
        self._graphs: dict[Any, Callable[..., Any]] = {}
        self.compile_ms = 0.0

    def bucket(self, rows: int) -> int:
        """``rows`` as a forward should have them: on a GPU rounded up to multiples of 8, above 64
        of 32. A few rows more cost less than another graph."""
        if not self._is_bucketed:
            return rows
        step = 8 if rows <= 64 else 32
        return -(-rows // step) * step

    def __call__(self, **inputs: Any) -> Any:
        """Call the module with a cache of this package that is aimed."""
        (name,) = self._stand_in
        cache: Cache = inputs.pop(name)
        inputs = {key: _laid_out(value) for key, value in inputs.items()}
        kind = tuple(self._kind(value) for value in inputs.values())
        torch.compiler.cudagraph_mark_step_begin()
        with attending(cache):
            try:
                if kind not in self._graphs and len(self._graphs) < MAX_GRAPHS:
                    return self._first(kind, inputs)
                return self._graphs.get(kind, self._module)(**inputs, **self._stand_in)
            except (Unsupported, UserError, FailOnRecompileLimitHit) as error:
                # Nothing has run yet: it is found when a forward is read.
                reason = str(error).partition("\n")[0]
                warnings.warn(f"not compiled, as it cannot be one graph: {reason}", stacklevel=2)
                self._graphs[kind] = self._module
                return self._module(**inputs, **self._stand_in)

    def _first(self, kind: Any, inputs: dict[str, Any]) -> Any:
        """The first call of ``kind``: compile it, or know that it cannot be."""
        began = time.perf_counter()
        self._mark_dynamic(inputs)
        run = torch.compile(
            _own_code(self._module),
            backend=self._backend,
            dynamic=False,
            # Broken in pieces it would be several graphs, found by the code of the model's own
            # functions, which all kinds share.
            fullgraph=True,
            # A dict of its own: the call takes the filter out of it.
            options={**self._options, "guard_filter_fn": _of_arguments},
        )
        # Parameters belong to the graph; else every call would gather them from the modules.
        with torch._dynamo.config.patch(install_free_tensors=True):
            out = run(**inputs, **self._stand_in)
        self._graphs[kind] = run
        self.compile_ms += 1e3 * (time.perf_counter() - began)
        return out

    def _varying(self, value: Tensor) -> tuple[int, ...]:
        """Dimensions of an argument that one graph takes as they come: rows, and slots of masks
        [B, 1, N, S]. A text grows with every cycle; that must make no graph."""
        if value.dim() == 4:
            return (3,) if self._is_bucketed else (0, 2, 3)
        return () if self._is_bucketed else (0, 1)

    def _kind(self, value: Any) -> Any:
        """What of an argument makes another graph."""
        if isinstance(value, dict):
            return tuple((key, self._kind(each)) for key, each in value.items())
        if isinstance(value, Tensor):
            # To the compiler a dimension of 1 is never one that varies.
            varying = self._varying(value)
            sizes = (size > 1 if dim in varying else size for dim, size in enumerate(value.shape))
            return (*sizes, value.dtype)
        return value

    def _mark_dynamic(self, inputs: dict[str, Any]) -> None:
        for value in inputs.values():
            if isinstance(value, dict):
                self._mark_dynamic(value)
            elif isinstance(value, Tensor):
                for dim in self._varying(value):
                    if value.shape[dim] > 1:
                        torch._dynamo.maybe_mark_dynamic(value, dim)


def _is_on_cpu(module: nn.Module) -> bool:
    return next(module.parameters()).device.type == "cpu"


def _of_arguments(guards: Sequence[Any]) -> list[bool]:
    return [
        guard.guard_type == "SHAPE_ENV"
        or (guard.guard_type == "TENSOR_MATCH" and guard.name.startswith("inputs["))
        for guard in guards
    ]


def _own_code(module: nn.Module) -> FunctionType:
    """``module`` as a function; compiled, its one graph is found by a code object of its own."""

    def run(**inputs: Any) -> Any:
        return module(**inputs)

    return FunctionType(run.__code__.replace(), globals(), closure=run.__closure__)


def _laid_out(value: Any) -> Any:
    """An argument as every graph has it: how it lies must not make another."""
    if isinstance(value, dict):
        return {key: _laid_out(each) for key, each in value.items()}
    return value.contiguous() if isinstance(value, Tensor) else value
