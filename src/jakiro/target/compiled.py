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
from torch.utils._pytree import tree_map_only
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
    On a CPU one graph is for any number of rows from two on, whatever texts they are of. On a GPU,
    where the pieces between the attentions become CUDA graphs, each is for one number, and there
    are ``bucket``s (written for it, not run on one).

    ``compile_ms``: what the first call of each kind has taken so far, in all. ``is_bucketed``:
    every number of rows is a kind.
    """

    def __init__(self, module: nn.Module, backend: str, cache: str) -> None:
        self._module, self._backend = module, backend
        self.is_bucketed = not _is_on_cpu(module)
        self._options: dict[str, Any] = {}
        if backend == "inductor":
            self._options = {"triton.cudagraphs": True}
            if not self.is_bucketed:
                self._options = {
                    "post_grad_custom_pre_pass": JoinProducts(),
                    # As constants, weights in no panels are laid out by the compiler. Where there
                    # are none they are handed in, and a graph that is kept on disk is ready in
                    # half the time or less.
                    "freezing": not all_in_panels(module),
                    # What is fused must change no number: a row is to be the same alone, in a
                    # graph of its own, and among others.
                    "emulate_precision_casts": True,
                    # They look at every weight in every call, which took a twentieth of it.
                    "size_asserts": False,
                    "alignment_asserts": False,
                }
        self._cache, self._no_cache = cache, Deferred()
        self._names: dict[str, Tensor] = {}
        self._graphs: dict[Any, Callable[..., Any]] = {}
        self.compile_ms = 0.0

    def bucket(self, rows: int) -> int:
        """``rows`` as a forward should have them: on a GPU rounded up to multiples of 8, above 64
        of 32. A few rows more cost less than another graph."""
        if not self.is_bucketed:
            return rows
        step = 8 if rows <= 64 else 32
        return -(-rows // step) * step

    def __call__(self, **inputs: Any) -> Any:
        """Call the module with a cache of this package that is aimed. Tensors are [B, N, ..], the
        first of them with the N of all, others perhaps with one in its place; those of four
        dimensions are masks [B, 1, N, S], and so are those in a dict, which are known by name.
        Returns what the module does, [B, N, ..] again."""
        cache: Cache = inputs.pop(self._cache)
        batch, rows = next(each for each in inputs.values() if isinstance(each, Tensor)).shape[:2]
        masks: dict[int, Tensor] = {}
        for key, value in inputs.items():
            if isinstance(value, dict):
                inputs[key] = {name: self._name(name, mask, masks) for name, mask in value.items()}
            elif isinstance(value, Tensor):
                is_mask = value.dim() == 4
                inputs[key] = self._name(key, value, masks) if is_mask else _joined(value, rows)
        inputs[self._cache] = self._no_cache
        with attending(cache, masks, batch):
            out = self._run(inputs)
        return out if batch == 1 else _apart(out, batch, rows)

    def _name(self, name: str, mask: Tensor, masks: dict[int, Tensor]) -> Tensor:
        """What the graph is given for ``mask``, which is noted in ``masks``."""
        if name not in self._names:
            self._names[name] = mask.new_zeros(1, 1, 1, 1)
        found = self._names[name]
        masks[found.data_ptr()] = mask
        return found

    def _run(self, inputs: dict[str, Any]) -> Any:
        kind = tuple(map(self._kind, inputs.values()))
        torch.compiler.cudagraph_mark_step_begin()
        try:
            if kind not in self._graphs and len(self._graphs) < MAX_GRAPHS:
                return self._first(kind, inputs)
            return self._graphs.get(kind, self._module)(**inputs)
        except (Unsupported, UserError, FailOnRecompileLimitHit) as error:
            # Nothing has run yet: it is found when a forward is read.
            reason = str(error).partition("\n")[0]
            warnings.warn(f"not compiled, as it cannot be one graph: {reason}", stacklevel=3)
            self._graphs[kind] = self._module
            return self._module(**inputs)

    def _first(self, kind: Any, inputs: dict[str, Any]) -> Any:
        """The first call of ``kind``: compile it, or know that it cannot be."""
        began = time.perf_counter()
        if not self.is_bucketed:
            for value in inputs.values():
                # To the compiler a dimension of 1 is never one that varies.
                if isinstance(value, Tensor) and value.shape[1] > 1:
                    torch._dynamo.maybe_mark_dynamic(value, 1)
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
            out = run(**inputs)
        self._graphs[kind] = run
        self.compile_ms += 1e3 * (time.perf_counter() - began)
        return out

    def _kind(self, value: Any) -> Any:
        """What of an argument makes another graph."""
        if isinstance(value, Tensor):
            rows = value.shape[1]
            return rows if self.is_bucketed else rows > 1, *value.shape[2:], value.dtype
        # Masks by name: those of a model are always the same.
        return None if isinstance(value, dict | Deferred) else value


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


def _joined(value: Tensor, rows: int) -> Tensor:
    """[B, N or 1, ..] as the ``rows`` of all texts [1, B N, ..], one behind the other."""
    if value.shape[:2] != (1, rows):
        value = value.expand(-1, rows, *value.shape[2:]).flatten(0, 1)[None]
    # How it lies must not make another graph.
    return value.contiguous()


def _apart(out: Any, batch: int, rows: int) -> Any:
    """What of ``out`` is of all rows [1, B N, ..], as [B, N, ..]."""

    def change(value: Tensor) -> Tensor:
        is_of_rows = value.shape[:2] == (1, batch * rows)
        return value[0].unflatten(0, (batch, rows)) if is_of_rows else value

    return tree_map_only(Tensor, change, out)
