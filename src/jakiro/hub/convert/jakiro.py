"""Jakiro as released (arXiv 2502.06282; github.com/haiduo/Jakiro).

Two SwiGLU experts, and a gate with a row per expert and two more for the second branch: for two
experts that is what the head here has, name by name. The released code fixes the inner width of an
expert to the hidden size and reads the gate of more than two experts inconsistently.
"""

from __future__ import annotations

from dataclasses import asdict

from jakiro.drafters.nn import HeadConfig
from jakiro.errors import CheckpointError
from jakiro.hub.convert.decoder_layer import (
    GATE,
    LEFT_OUT,
    check,
    head_config,
    llama_config,
    num_experts,
    original_config,
)
from jakiro.hub.convert.layout import Layout, Settings
from jakiro.hub.convert.source import Source
from jakiro.target.target import Target

_EXPERT = "layers.0.mlp_moe.experts.0.gate_proj.weight"
_RELEASED = {
    "num_experts": 2,
    "active_experts": 2,
    "contrast_levels": 1,
    "contrast_strength": 1.0,
    "activation": "swiglu",
    "branches": "sum",
    "draft_vocab_size": None,
    "reads": (),
}
"""The one form of such a head that others know."""


def _recognises(source: Source) -> bool:
    return GATE in source.tensors and _EXPERT in source.tensors


def _config(source: Source, target: Target) -> HeadConfig:
    experts, (rows, _) = num_experts(source), source.matrix(GATE)
    if (experts, rows) != (2, 4):
        raise CheckpointError(
            f"{source.directory}: {experts} SwiGLU experts and a gate of {rows} rows; a released "
            "Jakiro head has 2 experts and 2 + 2 rows, and for other numbers the released code "
            "itself does not say which row weighs which expert"
        )
    return head_config(source, target, "jakiro", _EXPERT)


def _original(config: HeadConfig) -> Settings:
    check(asdict(config), _RELEASED | {"expert_size": config.hidden_size}, "the released code")
    return original_config(config) | {"num_local_experts": 2, "num_experts_per_tok": 2}


def _vllm(config: HeadConfig) -> Settings:
    check(asdict(config), _RELEASED, "the Jakiro model for vLLM")
    return llama_config(config) | {
        "architectures": ["EagleJakiroLlamaForCausalLM"],
        "head_dim": config.head_dim,
        "num_local_experts": 2,
        "num_experts_per_tok": 2,
        "jakiro": {"fc_bias": config.fc_bias},
    }


_FORMATS = {"original": _original, "eagle-vllm": _vllm}
LAYOUT = Layout("Jakiro", ("jakiro",), _recognises, _config, _FORMATS, LEFT_OUT)
