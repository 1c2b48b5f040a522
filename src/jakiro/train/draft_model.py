"""Distilling a small model of the target's family (DistillSpec, arXiv 2310.08461)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from jakiro.errors import ConfigError
from jakiro.hub.models import load_tokenizer, save_model
from jakiro.target.families import head_transform
from jakiro.target.target import Target
from jakiro.train.config import ModelOptions
from jakiro.train.distillation import Distiller, Student
from jakiro.train.frozen import frozen_head


class _Student(Student):
    """The small model. It reads the token ids [B, T]."""

    def __init__(self, model: PreTrainedModel, teacher: Callable[[Tensor], Tensor]) -> None:
        super().__init__(teacher)
        self.model: Any = model
        self._transform = head_transform(model.config)

    def states(self, ids: Tensor) -> Tensor:
        """Last states [B, T, H], normed as the head wants them."""
        where = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        out = self.model(
            input_ids=ids,
            position_ids=where,
            output_hidden_states=True,
            logits_to_keep=1,  # the fewest there are
            use_cache=False,
        )
        states: Tensor = out.hidden_states[-1]
        return states

    def logits(self, states: Tensor) -> Tensor:
        return self._transform(self.model.get_output_embeddings()(states))


class Distillation(Distiller):
    """A student of a few layers, which the target teaches."""

    module: _Student
    options = frozenset({"model"})

    def build(self) -> _Student:
        model = small_model(self.target, self.config.model)
        return _Student(model, frozen_head(self.target))

    def save(self, module: nn.Module, directory: Path, notes: Mapping[str, Any]) -> None:
        assert isinstance(module, _Student)
        source = self.target.model.name_or_path
        tokenizer = load_tokenizer(source) if source else None
        save_model(module.model, directory, tokenizer, notes)


def small_model(target: Target, options: ModelOptions) -> PreTrainedModel:
    """A model like ``target`` with fewer layers and, if asked, narrower ones, in float32; what has
    the name and the shape of a tensor of the target is a copy of it. Raises ``ConfigError``."""
    config = deepcopy(target.config)
    config.name_or_path = ""
    config.num_hidden_layers = options.num_layers
    if options.num_layers > target.num_layers:
        raise ConfigError(
            f"the draft model would have {options.num_layers} layers, the target has "
            f"{target.num_layers}; use fewer"
        )
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: options.num_layers]
    if options.mlp_size is not None:
        setattr(config, _mlp_field(config), options.mlp_size)
    for name in vars(config):
        # A resumed run must be the same run, and the noise of dropout is not part of its state.
        if name.endswith(("dropout", "pdrop")):
            setattr(config, name, 0.0)
    if options.hidden_size is not None:
        _narrow(config, options.hidden_size)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    own, known = model.state_dict(), target.model.state_dict()
    with torch.no_grad():
        for name, tensor in own.items():
            if name in known and known[name].shape == tensor.shape:
                tensor.copy_(known[name].dequantize())  # what is not quantised stays as it is
    return model


def _mlp_field(config: Any) -> str:
    """Where a config says the inner width of its MLPs."""
    for name in ("intermediate_size", "n_inner", "ffn_dim"):
        if hasattr(config, name):
            return name
    raise ConfigError(
        f"mlp_size cannot be set: a {config.model_type} does not say the width of its MLPs under a "
        "known name; leave it out"
    )


def _narrow(config: Any, hidden_size: int) -> None:
    """Another width, by fewer heads of the same size."""
    heads = int(config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    if hidden_size % head_dim:
        raise ConfigError(
            f"hidden_size must be a multiple of {head_dim}, the size of the target's heads, got "
            f"{hidden_size}"
        )
    config.num_attention_heads = hidden_size // head_dim
    kv_heads = getattr(config, "num_key_value_heads", None)
    if kv_heads:
        config.num_key_value_heads = math.gcd(kv_heads, config.num_attention_heads)
    config.hidden_size = hidden_size
