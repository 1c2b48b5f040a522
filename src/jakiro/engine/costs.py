"""What a cycle costs on this machine: measured once, looked up ever after.

Two tables. *Verify*: everything of a cycle but drafting, over the rows of the batch and the nodes
of their trees, with a slope over the context. *Draft*: over rows, depth and width of the plan. Both
are taken from whole cycles of the engine, so that nothing of what a cycle does is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

COSTS_VERSION = 9
"""Rises when a cycle has other costs than before, so that kept ones are taken again."""
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Costs:
    """Times in milliseconds at the measured places; between them they are interpolated, beyond the
    last one they go on as they did before it. Axes ascend."""

    batches: tuple[int, ...]
    nodes: tuple[int, ...]
    """Of a tree, root included."""
    verify_ms: tuple[tuple[float, ...], ...]
    """[batches, nodes], at ``context`` committed tokens a row."""
    context: int
    slope_ms: tuple[float, float]
    """Per row and committed token more: at one node, and at the last of ``nodes``."""
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    draft_ms: tuple[tuple[tuple[float, ...], ...], ...]
    """[batches, depths, widths], of drafts that have all these levels."""
    free_levels: int = 0
    """How many of their last levels, the first one not among them, took no forward."""

    def __post_init__(self) -> None:
        batches, shape = len(self.batches), (len(self.depths), len(self.widths))
        if not (
            np.shape(self.verify_ms) == (batches, len(self.nodes))
            and np.shape(self.draft_ms) == (batches, *shape)
            and all(map(_ascends, (self.batches, self.nodes, self.depths, self.widths)))
            and np.isfinite([*np.ravel(self.verify_ms), *self.slope_ms]).all()
            and np.isfinite(np.ravel(self.draft_ms)).all()
            and np.min(self.verify_ms) > 0
            and self.free_levels >= 0
        ):
            raise ValueError("these costs are no table: sizes, order or numbers do not fit")

    def verify(self, batch: int, nodes: Array) -> tuple[Array, Array]:
        """Milliseconds of a cycle without drafting at ``context``, for trees of ``nodes`` [n], and
        how many more there are per committed token of a row beyond it."""
        curves = [along(nodes, self.nodes, curve) for curve in self.verify_ms]
        slope = along(nodes, (1, max(2, self.nodes[-1])), self.slope_ms)
        return _between(batch, self.batches, curves), batch * slope

    def draft(self, batch: int, depths: Array, widths: Array) -> Array:
        """Milliseconds of drafts that have so many levels [depths, widths]."""
        sheets = []
        for measured in self.draft_ms:
            wide = np.stack([along(widths, self.widths, row) for row in measured])
            deep = [along(depths, self.depths, column) for column in wide.T]
            sheets.append(np.stack(deep, -1))
        return _between(batch, self.batches, sheets)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Costs:
        """The inverse of ``to_json``; ``ValueError``, ``TypeError`` or ``KeyError`` otherwise."""
        return cls(**{name: _tupled(record[name]) for name in cls.__dataclass_fields__})


def along(where: Array, places: Sequence[float], values: Sequence[float] | Array) -> Array:
    """Piecewise linear; behind the last place it goes on with the last slope."""
    inner: Array = np.asarray(np.interp(where, places, values))
    if len(places) < 2:
        return inner
    slope = (values[-1] - values[-2]) / (places[-1] - places[-2])
    outer: Array = inner + np.maximum(0.0, where - places[-1]) * max(0.0, slope)
    return outer


def _between(batch: int, batches: Sequence[int], values: Sequence[Array]) -> Array:
    """``values`` at ``batches``, at ``batch``."""
    if len(batches) == 1:
        return values[0] * (batch / batches[0])
    above = next((i for i, size in enumerate(batches) if size >= batch), len(batches) - 1)
    above = max(1, above)
    low, high = batches[above - 1], batches[above]
    share = (batch - low) / (high - low)
    mixed: Array = values[above - 1] + share * (values[above] - values[above - 1])
    return mixed


def _ascends(axis: Sequence[float]) -> bool:
    return len(axis) > 0 and axis[0] > 0 and bool((np.diff(axis) > 0).all())


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value
