"""Distilling a small model of the target's family from the target (DistillSpec, arXiv 2310.08461):
forward KL between their next-token distributions, on text the target should have written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed
from transformers import AutoModelForCausalLM, PreTrainedModel

from jakiro.errors import ConfigError
from jakiro.hub.models import load_tokenizer, save_model
from jakiro.target.families import head_transform
from jakiro.target.features import LAST_FEATURE
from jakiro.target.target import Target
from jakiro.train.config import ModelOptions, TrainConfig
from jakiro.train.evaluate import chain_levels
from jakiro.train.frozen import chunk_rows, frozen_head
from jakiro.train.learner import Learner, Outcome, Tally
from jakiro.train.samples import Batch

_DEPTH = 6
"""Levels of the chains that are judged."""


class _Student(nn.Module):
    """The small model with its loss; logits of a large vocabulary live for a chunk of rows only."""

    def __init__(self, model: PreTrainedModel, teacher: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model: Any = model
        self._teacher = teacher
        self._transform = head_transform(model.config)

    def forward(
        self, ids: Tensor, features: Tensor, places: Tensor, recompute: bool
    ) -> tuple[Tensor, Tensor]:
        """At ``places`` [M] of the flattened ``ids`` [B, T], where the target has ``features``
        [M, H]: divergence from the target, and whether the likeliest token is the same, each [M].
        """
        run = partial(recomputed, self._states, use_reentrant=False) if recompute else self._states
        states = run(ids).flatten(0, 1)[places]
        size = chunk_rows(ids.device, self.model.config.vocab_size)
        parts = [
            recomputed(self._measure, *part, use_reentrant=False)
            for part in zip(states.split(size), features.split(size), strict=True)
        ]
        divergences, hits = zip(*parts, strict=True)
        return torch.cat(divergences), torch.cat(hits)

    def _states(self, ids: Tensor) -> Tensor:
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

    def _measure(self, states: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        mine = self._transform(self.model.get_output_embeddings()(states)).float()
        with torch.no_grad():
            theirs = self._teacher(features).float()
        wanted = theirs.log_softmax(-1)
        divergence = (wanted.exp() * (wanted - mine.log_softmax(-1))).sum(-1)
        return divergence, mine.argmax(-1) == theirs.argmax(-1)


class Distillation(Learner):
    """A student of a few layers, which the target teaches."""

    module: _Student

    def __init__(self, target: Target, config: TrainConfig) -> None:
        target.check_features()
        super().__init__(target, config)

    def build(self) -> _Student:
        model = small_model(self.target, self.config.model)
        return _Student(model, frozen_head(self.target))

    def counts(self, batch: Batch) -> Tensor:
        return batch.carries_loss[:, 1:].sum().double()[None]

    def loss(self, batch: Batch, totals: Tensor, seed: int) -> Outcome:
        divergences, tally = self._measured(batch)
        return Outcome(divergences.sum() / totals[0].to(divergences).clamp_min(1), tally)

    def judge(self, batch: Batch) -> Tally:
        return self._measured(batch)[1]

    def save(self, module: nn.Module, directory: Path, notes: Mapping[str, Any]) -> None:
        assert isinstance(module, _Student)
        source = self.target.model.name_or_path
        tokenizer = load_tokenizer(source) if source else None
        save_model(module.model, directory, tokenizer, notes)

    def _measured(self, batch: Batch) -> tuple[Tensor, Tally]:
        """The divergence wherever the next token carries loss, and what to report of it."""
        ids, lengths = batch.ids.to(self.target.device), batch.lengths.to(self.target.device)
        judged = torch.zeros_like(ids, dtype=torch.bool)
        judged[:, :-1] = batch.carries_loss[:, 1:].to(ids.device)
        places = judged.flatten().nonzero()[:, 0]
        features = self.target.features(ids, lengths, LAST_FEATURE).flatten(0, 1)[places]
        divergences, hits = self.module(ids, features, places, self.recompute)
        hit = torch.zeros_like(judged)
        hit.view(-1)[places] = hits
        count = judged.sum().float()
        return divergences, {
            "divergence": torch.stack([divergences.detach().sum(), count])[:, None],
            "accuracy": torch.stack([hit.sum().float(), count])[:, None],
            "alpha": chain_levels([hit] * _DEPTH, [judged] * _DEPTH),
        }


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
        config.intermediate_size = options.mlp_size
    if options.hidden_size is not None:
        _narrow(config, options.hidden_size)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    own, known = model.state_dict(), target.model.state_dict()
    with torch.no_grad():
        for name, tensor in own.items():
            if name in known and known[name].shape == tensor.shape:
                tensor.copy_(known[name])
    return model


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
