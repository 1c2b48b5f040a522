"""Learning Kangaroo's adapter (arXiv 2404.18911): the first layers of the frozen target and the
adapter should say what the whole target says at the same place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jakiro.drafters.kangaroo import Adapter, AdapterConfig
from jakiro.errors import ConfigError
from jakiro.hub import checkpoint
from jakiro.target.target import Target
from jakiro.train.distillation import Distiller, Student
from jakiro.train.feature_head import head_config
from jakiro.train.frozen import frozen_head


class _Adapted(Student):
    """The adapter under the target's head. It reads the stream at its layer [B, T, H]."""

    def __init__(self, adapter: Adapter, lm_head: Callable[[Tensor], Tensor]) -> None:
        super().__init__(lm_head)
        self.adapter = adapter

    def states(self, inputs: Tensor) -> Tensor:
        where = torch.arange(inputs.shape[1], device=inputs.device).expand(inputs.shape[:2])
        return self.adapter(inputs, where)

    def logits(self, states: Tensor) -> Tensor:
        return self._teacher(states)


class AdapterLearner(Distiller):
    """An adapter whose last norm starts as the target's."""

    module: _Adapted
    options = frozenset({"model"})

    @property
    def reads(self) -> int:
        return self.config.model.num_layers

    def build(self) -> _Adapted:
        target = self.target
        if not self.reads < target.num_layers:
            raise ConfigError(
                f"the adapter would stand behind layer {self.reads} of a target of "
                f"{target.num_layers} layers; use fewer"
            )
        like = head_config(target, self.config)
        shared = ("method", "hidden_size", "num_heads", "num_kv_heads", "head_dim")
        more = ("rope_theta", "rms_norm_eps")
        sizes = {name: getattr(like, name) for name in (*shared, *more)}
        adapter = Adapter(AdapterConfig(**sizes, exit_layer=self.reads))
        with torch.no_grad():
            adapter.norm.weight.copy_(_last_scale(target))
            # At first the adapter passes on what it reads.
            adapter.self_attn.o_proj.weight.zero_()
        return _Adapted(adapter, frozen_head(target))

    def save(self, module: nn.Module, directory: Path, notes: Mapping[str, Any]) -> None:
        assert isinstance(module, _Adapted)
        checkpoint.save(module.adapter, directory, self.target.fingerprint(), notes, torch.float32)


def _last_scale(target: Target) -> Tensor:
    """[H]: what the last norm of the target multiplies by, whatever kind of norm it is."""
    size = target.hidden_size
    weights = [(module, module._parameters.get("weight")) for module in target.model.modules()]
    norm = [module for module, weight in weights if weight is not None and weight.shape == (size,)]
    # Of mean 0 and mean square 1: a norm leaves them as they are but for scale and bias.
    signs = 1 - 2 * (torch.arange(size, device=target.device) % 2).to(target.dtype)
    scale: Tensor = signs * (norm[-1](signs[None]) - norm[-1](-signs[None]))[0] / 2
    return scale
