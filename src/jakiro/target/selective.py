"""Views that attend in a way of their own: to a part of what there is, head by head.

What ``cache/excerpt.py`` leaves out, it leaves out for all layers and heads at once. Here every
layer hands queries, keys and values to the view, which sees them as the kernel would have: rotated,
windows in the mask, all committed entries of the target before what is written now.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from jakiro.cache.kv_cache import KVCache
from jakiro.errors import ConfigError, TargetRefused
from jakiro.target.attention import GROUPED, attend_grouped
from jakiro.target.features import NO_FEATURES, FeatureSpec
from jakiro.target.output import TargetOutput
from jakiro.target.target import Target
from jakiro.target.view import View, check_masks, name_of
from jakiro.tree.token_tree import TokenTree

_SELECTIVE = "jakiro_selective"
_SPECIAL = ("softcap", "position_bias", "s_aux")
"""What some families ask of their attention besides what ``Asked`` says."""


@dataclass(frozen=True, eq=False)
class Asked:
    """The attention of one layer: ``queries`` [B, heads, N, d] over ``keys`` and ``values``
    [B, kv_heads, S, d]. ``mask`` [B, 1, N, S], additive or boolean (True: may attend); None: every
    slot is seen."""

    layer: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor | None
    scale: float

    @property
    def group(self) -> int:
        """Query heads per head of keys and values."""
        return self.queries.shape[1] // self.keys.shape[1]

    def hidden(self) -> Tensor | None:
        """The mask as what is added to scores."""
        if self.mask is None or self.mask.dtype != torch.bool:
            return self.mask
        lowest = torch.finfo(self.queries.dtype).min
        return torch.zeros_like(self.mask, dtype=self.queries.dtype).masked_fill(~self.mask, lowest)


Attend = Callable[[Asked], Tensor | None]
"""[B, heads, N, d]; None: as the target attends."""


class SelectiveView(View):
    """``target`` whose layers attend by ``attend`` when it verifies. ``ends`` are then, per row,
    the slots that are in use, the last ``num_new`` of which are of the tree.

    Raises ``TargetRefused`` where the target takes no masks, or attends by code of its own.
    """

    def __init__(self, target: Target, attend: Attend) -> None:
        check_masks(target)
        self.attend = attend
        self.ends: list[int] = []
        self.num_new = 0
        self._is_selecting = False
        # Layers that ask when all attend as the target does, as in the trial of every view.
        self._asking: set[int] = set()
        names = [name for name, module in target._runner.named_modules() if _attends(module)]
        super().__init__(target, dict.fromkeys(names, self._redirect))
        if len(self._asking) < target.num_layers:
            raise TargetRefused(
                f"{name_of(target)} attends by code of its own, so no part of the cache can be "
                "chosen head by head; load it with attn_implementation='sdpa', or use another "
                "drafter"
            )

    @torch.no_grad()
    def verify(
        self,
        tree: TokenTree,
        cache: KVCache,
        needs: FeatureSpec = NO_FEATURES,
        num_known: int = 0,
    ) -> TargetOutput:
        self.ends = [length + tree.num_nodes for length in cache.lengths[: tree.num_rows]]
        self.num_new = tree.num_nodes
        self._is_selecting = True
        try:
            return super().verify(tree, cache, needs, num_known)
        finally:
            self._is_selecting = False

    def key_size(self) -> int:
        """How many channels a key has. Raises ``TargetRefused`` unless the cache holds the keys
        that layers attend to."""
        cache, ids = self.new_cache(), [0, 0]
        row = cache.admit()
        self.prefill(ids, cache, row)
        asked = self.observe(ids, cache, row)
        held = [keys for keys, _ in cache.content(row)]
        pairs = zip(held, asked, strict=False)
        if len(held) < len(asked) or not all(
            torch.equal(keys, one.keys[0, :, : len(ids)]) for keys, one in pairs
        ):
            raise TargetRefused(
                f"{name_of(self)} does not keep the keys of every layer in its cache, but what "
                "they are made of, or those of other layers, so none can be looked up there; use "
                "another drafter, for example sparse_kv"
            )
        return min(one.keys.shape[-1] for one in asked)

    def observe(self, ids: list[int], cache: KVCache, row: int) -> list[Asked]:
        """What every layer is asked when the last committed tokens ``ids`` of ``row`` are run again
        as the target runs them: T queries over the whole text. Keys and values are views of the
        cache, good until it is wiped."""
        seen: list[Asked] = []
        usual, self.attend = self.attend, lambda asked: seen.append(asked)
        self._is_selecting = True
        try:
            self.replay(ids, cache, row)
        finally:
            self.attend, self._is_selecting = usual, False
        return seen

    def _redirect(self, module: nn.Module) -> None:
        config = copy.copy(vars(module)["config"])
        config._attn_implementation = _SELECTIVE
        vars(module).update(config=config, attended_by=self._answer)

    def _answer(self, asked: Asked) -> Tensor | None:
        if self._is_selecting:
            return self.attend(asked)
        self._asking.add(asked.layer)
        return None


def check_heads(target: Target, shape: Sequence[int], what: str) -> None:
    """Raise ``ConfigError`` unless a table of ``shape``, called ``what``, has a row for every layer
    and in it a place for every head of keys and values."""
    heads = getattr(target.config, "num_key_value_heads", None)
    sizes = (target.num_layers, int(heads or target.config.num_attention_heads))
    if tuple(shape) != sizes:
        raise ConfigError(
            f"the {what} must be of {sizes[0]} layers and {sizes[1]} heads of keys and values, got "
            f"{list(shape)}; use those of this target"
        )


def _attends(module: nn.Module) -> bool:
    """Whether it is an attention that goes through the interface of ``transformers``."""
    config, index = vars(module).get("config"), vars(module).get("layer_idx")
    if not isinstance(config, PreTrainedConfig) or not isinstance(index, int):
        return False
    return config._attn_implementation in ("sdpa", GROUPED)


def _selective(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    special = [name for name in _SPECIAL if kwargs.get(name) is not None]
    if special:
        raise TargetRefused(f"its attention has a {special[0]}, which sparse attention leaves out")
    if attention_mask is not None and attention_mask.shape[1] > 1:
        raise TargetRefused(
            "its attention hides other tokens from every head, which is not foreseen"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    asked = Asked(module.layer_idx, query, key, value, attention_mask, scale)
    mixed = module.attended_by(asked)
    if mixed is not None:
        return mixed.transpose(1, 2).contiguous(), None
    return attend_grouped(module, query, key, value, attention_mask, scaling, **kwargs)


AttentionInterface.register(_SELECTIVE, _selective)
