"""Views: the same weights run more cheaply, so that a target can draft for itself.

A view is a ``Target`` whose module tree is a changed copy of its target's. Parameters are shared
and the user's model stays as it was. It works on the *target's own* cache: committed entries are
read as they are, and what a view writes lies behind them, where the verification of the target
writes next. So a view needs no memory of its own, no prefill and no catching up, and whatever it
leaves behind is overwritten before anybody reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jakiro.cache.kv_cache import KVCache
from jakiro.cache.mask import additive, in_window
from jakiro.errors import TargetRefused
from jakiro.target.modules import shared_copy
from jakiro.target.target import Target

Changes = Mapping[str, Callable[[nn.Module], None]]
"""Name of a module -> what is done to its copy."""

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe")


class View(Target):
    """``target`` with the modules named in ``changes`` changed; route and sizes are the target's.

    It is run once, on two tokens. Raises ``TargetRefused`` where that fails, or where the modules
    cannot be copied because something (``device_map`` over several devices, a quantiser) is bound
    to them.
    """

    def __init__(self, target: Target, changes: Changes) -> None:
        if target.view_refusal:
            raise TargetRefused(f"{name_of(target)} cannot draft for itself: {target.view_refusal}")
        # No probe of its own: what was found of the target holds for the same modules.
        vars(self).update(vars(target) | {"_compiled": None})
        waiting = dict(changes)

        def change(name: str, module: nn.Module) -> None:
            if name in waiting:
                waiting.pop(name)(module)

        self.model = self._runner = shared_copy(target._runner, change)
        kind = name_of(target)
        if waiting:
            raise TargetRefused(
                f"{kind} cannot draft for itself: its module {next(iter(waiting))} is wrapped by "
                "something bound to it, for example by a device_map over several devices; load it "
                "on one device, or use another drafter"
            )
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        try:
            with torch.no_grad():
                self.forward(tokens, torch.arange(2, device=self.device)[None], None)
        except torch.OutOfMemoryError:
            raise
        except Exception as failure:  # whatever a foreign model throws when parts are missing
            raise TargetRefused(
                f"{kind} cannot draft for itself: run with changed modules it fails "
                f"({type(failure).__name__}: {failure}); use another drafter"
            ) from failure

    @torch.no_grad()
    def replay(self, ids: list[int], cache: KVCache, row: int) -> Tensor:
        """Logits [T, V] of the view at the last T committed tokens ``ids`` of ``row``: what it
        would have said in their place. Only slots behind the committed ones are written, for the
        caller to wipe. For targets of route ``mask``."""
        count, length = len(ids), cache.lengths[row]
        span = cache.aim(slice(row, row + 1), count)
        slots = torch.arange(span, device=self.device)
        where = torch.arange(length - count, length, device=self.device)
        place = torch.where(slots < length, slots, slots - count)
        is_text = (slots < length - count) | (slots >= length)
        seen = is_text & (place <= where[:, None])
        masks = {
            name: additive((seen & in_window(where[:, None], place, window))[None], self.dtype)
            for name, window in self.windows.items()
        }
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        tokens = torch.tensor([ids], device=self.device)
        return self.forward(tokens, where[None], mask, cache).logits[0]


class Gates:
    """Parts of a model that can be closed and opened between forwards: whole layers, and in them
    attention and MLP, which then add nothing to the residual stream. ``layers[i]`` names the parts
    of layer i (the layer itself where they cannot be told apart). ``more``: what else is changed.
    Where layers attend to keys of a lower one (Gemma 3n and 4), its attention stays open as long as
    one of theirs is. Raises ``TargetRefused``."""

    def __init__(self, target: Target, more: Changes | None = None) -> None:
        names = layer_names(target)
        self.layers = layer_parts(target)
        self._closed: frozenset[str] = frozenset()
        self._tuples: dict[str, int] = {}
        changes = {name: self._gate(name, lambda hidden: hidden) for name in names}
        for parts in self.layers:
            if len(parts) == 2:
                changes |= {part: self._gate(part, torch.zeros_like) for part in parts}
        self._names = names
        modes = getattr(target.config, "kv_sharing_modes", None) or [None] * target.num_layers
        pairs = list(zip(modes, self.layers, strict=True))
        self._sources = {own[0] for mode, own in pairs if mode == "store"}
        self._readers = {own[0] for mode, own in pairs if mode not in (None, "store")}
        self.view = View(target, changes | dict(more or {}))

    def close(self, parts: set[str]) -> None:
        """Close exactly ``parts``; a layer all of whose parts are closed is not entered."""
        if not self._readers <= parts:
            parts = parts - self._sources
        layers = zip(self._names, self.layers, strict=True)
        self._closed = frozenset(parts | {name for name, own in layers if parts >= set(own)})

    def close_layers(self, layers: set[int]) -> None:
        """Close exactly the whole layers of those numbers."""
        self.close({part for layer in layers for part in self.layers[layer]})

    def _gate(self, name: str, skipped: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
        """A change that makes a module answer ``skipped`` of its input while it is closed, in the
        form of its usual answers: a tensor, or a tuple that begins with one."""

        def change(module: nn.Module) -> None:
            usual = module.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                if name not in self._closed:
                    answer = usual(*args, **kwargs)
                    if isinstance(answer, tuple):
                        self._tuples[name] = len(answer)
                    return answer
                hidden = skipped(args[0] if args else kwargs["hidden_states"])
                others = self._tuples.get(name, 0) - 1
                return hidden if others < 0 else (hidden, *[None] * others)

            module.__dict__["forward"] = forward

        return change


def name_of(target: Target) -> str:
    """Class and family of a target, for messages."""
    return f"{type(target.model).__name__} ({target.config.model_type})"


def headless(target: Target) -> Changes:
    """The change after which a view has no head: its logits are what would go into it. For those
    who read its features only."""
    head = target.model.get_output_embeddings()
    names = [name for name, module in target.model.named_modules() if module is head]

    def change(module: nn.Module) -> None:
        module.__dict__["forward"] = lambda states: states

    return dict.fromkeys(names, change)


def check_masks(target: Target) -> None:
    """Raise ``TargetRefused`` unless the target takes masks of ours."""
    if target.route != "mask":
        raise TargetRefused(
            f"{name_of(target)} takes no masks of ours, which sparse attention needs (its route is "
            f"{target.route}); use another drafter"
        )


def layer_names(target: Target) -> list[str]:
    """Names of the decoder layers, in order. Raises ``TargetRefused``."""
    for name, module in target.model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == target.num_layers:
            return [f"{name}.{i}" for i in range(target.num_layers)]
    raise TargetRefused(
        f"{name_of(target)} keeps its layers in no list of {target.num_layers}, so none can be "
        "left out; llama, qwen, mistral, gemma, phi, gpt2, gpt_neox and their like do. Use another "
        "drafter, for example prompt_lookup"
    )


def layer_parts(target: Target) -> list[tuple[str, ...]]:
    """Per layer the names of its attention and its MLP, or its own where they cannot be told apart.
    Raises ``TargetRefused``."""
    modules = dict(target.model.named_modules())
    return [_parts(name, modules[name]) for name in layer_names(target)]


def _parts(name: str, layer: nn.Module) -> tuple[str, ...]:
    """Attention and MLP of a layer, or the layer where it does not have one of each."""
    children = [child for child, _ in layer.named_children()]
    attention = [child for child in children if child in _ATTENTION]
    mlp = [child for child in children if child in _MLP]
    if len(attention) == len(mlp) == 1:
        return f"{name}.{attention[0]}", f"{name}.{mlp[0]}"
    return (name,)
