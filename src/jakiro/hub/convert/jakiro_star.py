"""Jakiro* as released (arXiv 2502.06282; github.com/haiduo/Jakiro, ``jakiro_star``).

Two GELU experts, ``proj(gelu(fc(x)))``, and a gate with one row each: no second branch. The
released code ignores ``rope_theta``. A variant with a third matrix ``fc1`` per expert exists in its
source and is refused by name.
"""

from __future__ import annotations

from dataclasses import asdict

from jakiro.drafters.nn import HeadConfig
from jakiro.drafters.registry import find
from jakiro.errors import CheckpointError
from jakiro.hub.convert.decoder_layer import (
    GATE,
    LEFT_OUT,
    check,
    head_config,
    num_experts,
    original_config,
)
from jakiro.hub.convert.layout import Layout, Settings
from jakiro.hub.convert.source import Source
from jakiro.target.target import Target

_METHOD = "jakiro_star"
_EXPERT = "layers.0.mlp_moe.experts.0.fc.weight"
_THIRD = "layers.0.mlp_moe.experts.0.fc1.weight"
_ROPE_THETA = 10000.0


def _recognises(source: Source) -> bool:
    if _THIRD in source.tensors:
        raise CheckpointError(
            f"{source.directory} holds Jakiro* experts of three layers (fc, proj, fc1); supported "
            "are those of two (fc, proj), which is what was published"
        )
    return GATE in source.tensors and _EXPERT in source.tensors


def _config(source: Source, target: Target) -> HeadConfig:
    experts, (rows, _) = num_experts(source), source.matrix(GATE)
    if (experts, rows) != (2, 2):
        raise CheckpointError(
            f"{source.directory}: {experts} GELU experts and a gate of {rows} rows; a released "
            "Jakiro* head has 2 experts and 2 rows"
        )
    return head_config(source, target, _METHOD, _EXPERT, rope_theta=_ROPE_THETA)


def _original(config: HeadConfig) -> Settings:
    fixed = {
        "rope_theta": _ROPE_THETA,
        "qkv_bias": False,
        "draft_vocab_size": None,
        "reads": (),
    }
    sizes = {"num_experts": 2, "active_experts": 2, **find(_METHOD).settings}
    check(asdict(config), sizes | fixed, "the released code")
    return original_config(config) | {"num_local_experts": 2, "num_experts_per_tok": 2}


_FORMATS = {"original": _original}
LAYOUT = Layout("Jakiro*", (_METHOD,), _recognises, _config, _FORMATS, LEFT_OUT)
