"""A head for drafting: products that read the same states are joined into one.

A draft has a dozen rows, and then what a product costs is mostly that it is called. Training and
checkpoints keep the parameters apart, under their published names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from jakiro.drafters.attention import Attention
from jakiro.drafters.experts import GELU, Expert, HeadOutput, Mixture, SwiGLU

Module = TypeVar("Module", bound=nn.Module)


class FusedAttention(Attention):
    """Queries, keys and values by one product."""

    def __init__(self, source: Attention) -> None:
        nn.Module.__init__(self)
        self.head_dim, self.num_heads, self.o_proj = (
            source.head_dim,
            source.num_heads,
            source.o_proj,
        )
        self.joined = _joined([source.q_proj, source.k_proj, source.v_proj])
        # Its last rows, which are not copied.
        size, bias = 2 * source.k_proj.out_features, self.joined.bias
        self.kv_proj = _linear(self.joined.weight[-size:], None if bias is None else bias[-size:])
        self._frequencies = source.frequencies()

    def frequencies(self) -> Tensor:
        return self._frequencies

    def _projected(self, states: Tensor) -> Tensor:
        return self.joined(states)  # type: ignore[no-any-return]

    def _keys_and_values(self, states: Tensor) -> Tensor:
        return self.kv_proj(states)  # type: ignore[no-any-return]


class FusedExpert(nn.Module):
    """One expert, its widening products as one."""

    def __init__(self, source: Expert) -> None:
        super().__init__()
        self.inner, self.outer = _linear(torch.cat(source.widening())), _linear(source.narrowing())
        self._activate = source.activate

    def forward(self, states: Tensor) -> Tensor:
        return self.outer(self._activate(self.inner(states)))  # type: ignore[no-any-return]


class FusedMixture(Mixture):
    """The experts' weights stacked, below those of the gate: one wide product in, one out.

    Most forwards of a draft want the sum of two experts and nothing else. Its weights are then the
    sigmoids of the difference of the experts' logits, by a row of its own, and of the opposite one.
    """

    def __init__(self, source: Mixture) -> None:
        nn.Module.__init__(self)
        self.mixing = mixing = source.mixing
        experts: Sequence[Expert] = list(source.experts)  # type: ignore[arg-type]
        widening = zip(*(expert.widening() for expert in experts), strict=True)
        wide = [weight for kind in widening for weight in kind]
        gates = source.gate.weight
        self._is_pair = mixing.active == mixing.num_experts == 2 and not mixing.is_decoupled
        differences = [gates[:2] - gates[:2].flip(0)] if self._is_pair else []
        self.inner = _linear(torch.cat([gates, *differences, *wide]))
        self.outer = _linear(torch.cat([expert.narrowing() for expert in experts], 1))
        routing = mixing.num_experts
        self._sizes = routing, len(gates) - routing, 2 * len(differences), sum(map(len, wide))
        self._activate = experts[0].activate

    def forward(self, residual: Tensor, normed: Tensor, contrasts: int) -> HeadOutput:
        if contrasts or not self._is_pair:
            return super().forward(residual, normed, contrasts)
        # As few calls as can be: beside products of a dozen rows each of them counts.
        gates, _, shares, wide = self.inner(normed).split_with_sizes(self._sizes, -1)
        active = self._activate(wide)
        rows = active.view(*residual.shape[:2], 2, -1)
        rows.mul_(shares.sigmoid().unsqueeze(-1))
        return HeadOutput(residual + self.outer(active), gates=gates)

    def _read(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        read = self.inner(normed)
        *_, num_wide = self._sizes
        return read[..., : sum(self._sizes[:2])], self._activate(read[..., -num_wide:])

    def _weighed(self, read: Tensor, shares: Tensor) -> Tensor:
        wide = read.unflatten(-1, (shares.shape[-1], -1))
        rows = shares.to(wide.dtype)[..., None] * wide[..., None, :, :]
        return self.outer(rows.flatten(-2))  # type: ignore[no-any-return]


FUSED: Mapping[type[nn.Module], Callable[[Any], nn.Module]] = MappingProxyType(
    {Attention: FusedAttention, SwiGLU: FusedExpert, GELU: FusedExpert, Mixture: FusedMixture}
)


def fused_view(module: Module) -> Module:
    """``module`` for drafting: a copy of the module tree with its products joined. All else is
    shared; the joined weights are copies of what they are now."""
    fused = FUSED.get(type(module))
    if fused is not None:
        return fused(module)  # type: ignore[return-value]
    view = copy.copy(module)
    children = module._modules.items()
    view.__dict__["_modules"] = {
        name: None if child is None else fused_view(child) for name, child in children
    }
    return view


def _joined(layers: Sequence[nn.Linear]) -> nn.Linear:
    """One layer that gives the outputs of all ``layers``, which have biases or have none."""
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    weights: list[Tensor] = [layer.weight for layer in layers]
    return _linear(torch.cat(weights), torch.cat(biases) if biases else None)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A layer around ``weight`` [O, I] and ``bias`` [O]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer
