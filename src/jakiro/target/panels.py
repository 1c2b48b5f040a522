"""Linear layers for the few rows of a draft or of a tree, by a kernel of our own (``product.cpp``).

With a dozen rows a product should cost what reading its weight costs. On a CPU no library does it:
one row goes at less than half the speed of memory, a dozen at a quarter. Weights that are numbers
of bfloat16, as most published ones are, are read as such: half the bytes, the same products.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import getitem
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from jakiro.kernels.build import load
from jakiro.target.modules import Module, shared_copy
from jakiro.target.packed import PackedLinear

_BYTES = 128
"""Of the outputs of one panel: two vectors of the kernel."""
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)

Call = tuple[fx.Node, Sequence[fx.Node], Sequence[int]]
"""Arguments of the operator in a graph: states, panels, widths."""

torch.library.define("jakiro::product", "(Tensor states, Tensor[] panels, int[] widths) -> Tensor")


@torch.library.register_fake("jakiro::product")  # type: ignore[untyped-decorator]
def _(states: Tensor, panels: list[Tensor], widths: list[int]) -> Tensor:
    return states.new_empty(*states.shape[:-1], sum(widths))


_product = torch.ops.jakiro.product


class PanelLinear(nn.Linear):
    """Shares the parameters of an ``nn.Linear`` and adds its weight in panels. Without gradients.

    Each row of the output is the same whatever other rows there are, to the last bit.
    """

    panels: Tensor

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = _product(input, [self.panels], [self.out_features])
        return out if self.bias is None else out + self.bias


def panel_view(module: Module, is_rounded: bool) -> Module:
    """``module`` with its linear layers on a CPU, of float32, float64 and bfloat16, in panels: a
    copy of the module *tree* that shares every parameter. The panels are those of the weights now.
    ``is_rounded``: in bfloat16 also where float32 says more.
    """
    if not any(map(_fits, module.modules())):
        return module
    load("product")

    def change(_: str, child: nn.Module) -> None:
        if _fits(child):
            weight = child.weight.detach()
            child.__class__ = PanelLinear
            vars(child).pop("blocked", None)
            child.register_buffer("panels", in_panels(weight, is_rounded), persistent=False)

    return shared_copy(module, change)


def all_in_panels(module: nn.Module) -> bool:
    """Whether every weight of a product is in panels: all matrices but those that are looked up."""
    return not any(
        weight.dim() > 1
        for child in module.modules()
        if not isinstance(child, PanelLinear | nn.Embedding)
        for weight in child.parameters(recurse=False)
    )


def in_panels(weight: Tensor, is_rounded: bool) -> Tensor:
    """``weight`` [out, in] as the kernel reads it, [panels, in, outputs]: in its own dtype, or, if
    nothing is lost or it ``is_rounded``, float32 in bfloat16; there two inputs alternate."""
    size = _BYTES // max(4, weight.element_size())
    padded = F.pad(weight, (0, 0, 0, -len(weight) % size))
    panels: Tensor = padded.view(-1, size, weight.shape[1]).transpose(1, 2)
    is_half = weight.dtype == torch.float32 and weight.shape[1] % 2 == 0
    is_half = is_half and (is_rounded or torch.equal(weight.bfloat16().float(), weight))
    if is_half or weight.dtype == torch.bfloat16:
        pairs = panels.bfloat16().unflatten(1, (-1, 2)).transpose(2, 3)
        panels = pairs.reshape(panels.shape)
    return panels.contiguous()


class JoinProducts(CustomGraphPass):
    """One call makes all products of the same states: a pass over a graph of the compiler."""

    def __call__(self, graph: fx.Graph) -> None:
        alike: dict[object, list[fx.Node]] = {}
        for node in graph.find_nodes(op="call_function", target=_product.default):
            alike.setdefault(node.args[0], []).append(node)
        for nodes in alike.values():
            if len(nodes) > 1:
                _join(graph, nodes)

    def uuid(self) -> object:
        """Known by this, finished graphs are kept on disk and found by the next process."""
        return get_hash_for_files((__file__,))


def _join(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    """One node for ``nodes``, all of the same states, in their order in ``graph``."""
    calls = [cast(Call, node.args) for node in nodes]
    panels = [each for _, some, _ in calls for each in some]
    widths = [each for _, _, some in calls for each in some]
    with graph.inserting_before(nodes[0]):
        joined = graph.call_function(_product.default, (nodes[0].args[0], panels, widths))
        split = torch.ops.aten.split_with_sizes.default
        parts = graph.call_function(split, (joined, widths, -1))
        outs = [graph.call_function(getitem, (parts, i)) for i in range(len(nodes))]
    made = nodes[0].meta["val"]
    joined.meta["val"] = made.new_empty(*made.shape[:-1], sum(widths))
    parts.meta["val"] = joined.meta["val"].split_with_sizes(widths, -1)
    for node, out, value in zip(nodes, outs, parts.meta["val"], strict=True):
        out.meta["val"] = value
        node.replace_all_uses_with(out)
        graph.erase_node(node)


def _fits(module: nn.Module) -> TypeGuard[nn.Linear]:
    """A plain layer with plain weights: no adapter, nothing quantised."""
    if type(module) not in (nn.Linear, PackedLinear):
        return False
    weight = module.weight.data
    if type(weight) is not Tensor or weight.device.type != "cpu" or weight.dtype not in _DTYPES:
        return False
    # Of bfloat16 inputs go in pairs.
    return weight.dtype != torch.bfloat16 or weight.shape[1] % 2 == 0
