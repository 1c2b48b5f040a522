"""The mixture of experts of a draft head: gated sums, contrasts, and single experts.

Each gate has N rows. The first routes: its K largest rows say which experts are active, and their
softmax weighs the sum that predicts the next feature. Every further gate weighs a *contrast* of the
same active experts: plus for the one with its largest row, minus for the others. With N = K = 2
and one contrast this is the published module (arXiv 2502.06282: four rows, the first two for the
sum, the last two for the difference); more experts and a second contrast are our extension.

All N experts are evaluated and masked. A draft has a dozen rows: dispatching them to their experts
would cost more than it saves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(states)) * self.up_proj(states))  # type: ignore[no-any-return]

    def widening(self) -> tuple[Tensor, ...]:
        """The weights that read the states, each [I, H]."""
        return self.gate_proj.weight, self.up_proj.weight

    def narrowing(self) -> Tensor:
        """The weight that writes them, [H, I]."""
        return self.down_proj.weight

    @staticmethod
    def activate(wide: Tensor) -> Tensor:
        """[..., 2 N I], all gates before all ups -> [..., N I], newly made. Keeps no gradients."""
        gates, ups = wide.chunk(2, -1)
        return F.silu(gates).mul_(ups)


class GELU(nn.Module):
    """``proj(gelu(fc(x)))``."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.fc = nn.Linear(hidden, inner, bias=False)
        self.proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.proj(F.gelu(self.fc(states)))  # type: ignore[no-any-return]

    def widening(self) -> tuple[Tensor, ...]:
        """The weight that reads the states, [I, H]."""
        return (self.fc.weight,)

    def narrowing(self) -> Tensor:
        """The weight that writes them, [H, I]."""
        return self.proj.weight

    @staticmethod
    def activate(wide: Tensor) -> Tensor:
        """[..., N I] -> [..., N I]."""
        return F.gelu(wide)


Expert = SwiGLU | GELU
EXPERTS: Mapping[str, type[Expert]] = MappingProxyType({"swiglu": SwiGLU, "gelu": GELU})
"""By the name of their activation."""


class Experts(NamedTuple):
    """The active experts of N pairs, each with a feature of its own."""

    features: Tensor
    """[B, N, K, H]: the residual plus one expert's output."""
    weights: Tensor
    """[B, N, K] float: the gate's share of each; they add up to 1."""


class HeadOutput(NamedTuple):
    """What N pairs predict. ``next`` [B, N, H]: the feature of position ``i + 1`` (gated sum);
    ``ahead``: those of ``i + 2``, ``i + 3``, as many as were asked for. ``experts``: the parts of
    the sum, of a decoupled head. ``gates`` [B, N, E]: the routing logits, where there are any."""

    next: Tensor
    ahead: tuple[Tensor, ...] = ()
    experts: Experts | None = None
    gates: Tensor | None = None

    def at(self, pairs: Sequence[int]) -> HeadOutput:
        """The output of one pair per row, ``pairs`` [B]; dimension 1 stays."""
        pick: tuple[slice | Tensor, slice | Tensor] = slice(None), slice(pairs[0], pairs[0] + 1)
        if min(pairs) != max(pairs):
            column = torch.tensor(pairs, device=self.next.device)[:, None]
            pick = torch.arange(len(pairs), device=column.device)[:, None], column
        return HeadOutput(
            self.next[pick],
            tuple(feature[pick] for feature in self.ahead),
            None if self.experts is None else Experts(*(part[pick] for part in self.experts)),
        )


@dataclass(frozen=True, slots=True)
class Mixing:
    """How E experts are mixed: K of them active, how many contrasts the gate has rows for, the
    factor of what a contrast subtracts, and whether single experts are wanted."""

    num_experts: int
    active: int
    contrasts: int
    strength: float
    is_decoupled: bool


class Mixture(nn.Module):
    """Experts behind a gate, under the parameter names of the published checkpoints."""

    def __init__(self, hidden: int, inner: int, activation: str, mixing: Mixing) -> None:
        super().__init__()
        kind, count = EXPERTS[activation], mixing.num_experts
        self.mixing = mixing
        self.gate = nn.Linear(hidden, count * (1 + mixing.contrasts), bias=False)
        self.experts = nn.ModuleList(kind(hidden, inner) for _ in range(count))

    def forward(self, residual: Tensor, normed: Tensor, contrasts: int) -> HeadOutput:
        """Mix what the experts make of ``normed`` into ``residual``, both [B, N, H]; the first
        ``contrasts`` contrasts are computed."""
        mixing = self.mixing
        every, read = self._read(normed)
        every = every.unflatten(-1, (-1, mixing.num_experts))
        gates, chosen = every[..., : 1 + contrasts, :], None
        if mixing.active < mixing.num_experts:
            chosen = every[..., :1, :].topk(mixing.active, -1).indices
            gates = gates.gather(-1, chosen.expand(*gates.shape[:-1], -1))
        weights = gates.softmax(-1)
        shares = weights if contrasts == 0 else self._signed(gates, weights)
        if mixing.is_decoupled:
            parts = self._weighed(read, self._selection(normed, chosen))
            features = residual[..., None, :] + weighed_sums(shares, parts.unbind(-2))
            experts = Experts(residual[..., None, :] + parts, weights[..., 0, :])
        else:
            if chosen is not None:
                dense = shares.new_zeros(*shares.shape[:-1], mixing.num_experts)
                shares = dense.scatter(-1, chosen.expand_as(shares), shares)
            features = residual[..., None, :] + self._weighed(read, shares)
            experts = None
        first, *ahead = features.unbind(-2)
        return HeadOutput(first, tuple(ahead), experts, every[..., 0, :])

    def _signed(self, gates: Tensor, weights: Tensor) -> Tensor:
        """The weights [..., 1 + C, K] of the sum as they are; of each contrast with a minus but for
        the largest gate. A tie goes to the later expert, as published."""
        reverse = gates[..., 1:, :].flip(-1).argmax(-1, keepdim=True)
        places = torch.arange(gates.shape[-1] - 1, -1, -1, device=gates.device)
        signs = torch.where(places == reverse, 1.0, -self.mixing.strength).to(weights.dtype)
        return torch.cat([weights[..., :1, :], signs * weights[..., 1:, :]], -2)

    def _selection(self, normed: Tensor, chosen: Tensor | None) -> Tensor:
        """Weights [..., K, E] that pick one active expert each."""
        count = self.mixing.num_experts
        one_each = torch.eye(count, dtype=normed.dtype, device=normed.device)
        return (
            one_each.expand(*normed.shape[:-1], -1, -1)
            if chosen is None
            else one_each[chosen[..., 0, :]]
        )

    def _read(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """The gate's logits [..., E (1 + C)], and what ``_weighed`` starts from."""
        return self.gate(normed), normed

    def _weighed(self, read: Tensor, shares: Tensor) -> Tensor:
        """Sums [..., C, H] of the experts' outputs, weighed by ``shares`` [..., C, E]."""
        return weighed_sums(shares, [expert(read) for expert in self.experts])


def weighed_sums(shares: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """[..., C, H] from ``shares`` [..., C, E] and E ``parts`` [..., H]. In the precision of the
    wider of both: autocast keeps a softmax in float32."""
    terms = [shares[..., i, None] * part[..., None, :] for i, part in enumerate(parts)]
    return sum(terms[1:], terms[0])
