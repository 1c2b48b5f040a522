"""A device that is not there: tensors that lie elsewhere by name, and in memory here.

Operations on them are carried out by the CPU, and refused where a GPU would refuse them: when a
tensor of the CPU, unless it is a single number, meets one of theirs. So the package does here, but
for kernels and graphs, what it does on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy:0")
"""One of the names that ``torch`` knows, and that nothing stands behind."""
_TRANSFERS = {"aten::_to_copy", "aten::copy_"}
_INDEXED = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}
"""A GPU takes indices from the CPU, too."""


class Away(Tensor):
    """``here``, by name on ``DEVICE``."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> Away:
        self: Away = torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        self.here = here
        return self

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _carried_out(function, args, kwargs or {})


class _Makes(TorchDispatchMode):
    """``DEVICE`` can be asked for tensors."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with self:  # in inference mode what is made of other operations comes whole
            made = function.decompose(*args, **(kwargs or {}))
        if made is not NotImplemented:
            return made
        return _carried_out(function, args, kwargs or {})


class _Sends(TorchFunctionMode):
    """Of lists ``torch`` makes tensors where no mode sees it. Here the CPU makes them, and sends
    those that belong elsewhere."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and "device" in kwargs:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], _indices(args[1]), *args[2:])
        return function(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Within, ``DEVICE`` can be used."""
    with _Sends(), _Makes():
        yield


def _indices(index: Any) -> Any:
    """``index`` with tensors for lists."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    if not isinstance(index, list):
        return index
    return torch.tensor(index) if index else torch.empty(0, dtype=torch.int64)


def _carried_out(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``function`` gives, on the device where it should be."""
    name, wanted = function._schema.name, kwargs.get("device")
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    away = [each for each in tensors if isinstance(each, Away)]
    is_asked = wanted is not None and wanted.type == DEVICE.type
    if is_asked:
        kwargs = kwargs | {"device": torch.device("cpu")}
    elif not away:
        return function(*args, **kwargs)
    if name not in _TRANSFERS:
        checked = tensors[:1] if name in _INDEXED else tensors
        if away and any(each.ndim for each in checked if not isinstance(each, Away)):
            raise RuntimeError(f"{name} of tensors on {DEVICE} and on the CPU")
    args, kwargs = tree_map(
        lambda each: each.here if isinstance(each, Away) else each, (args, kwargs)
    )
    made, known = function(*args, **kwargs), {id(each.here): each for each in away}
    if (wanted is not None and not is_asked) or (tensors and made is tensors[0]):
        return made  # has come here

    def named(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        found = known.get(id(value))
        return Away(value) if found is None else found

    return tree_map(named, made)
