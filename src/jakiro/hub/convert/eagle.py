"""EAGLE-1 and EAGLE-2 (arXiv 2401.15077, 2406.16858; github.com/SafeAILab/EAGLE).

Both draft with the same head, one decoder layer with a SwiGLU MLP; they differ in the tree.
"""

from __future__ import annotations

from dataclasses import asdict

from jakiro.drafters.nn import HeadConfig
from jakiro.errors import CheckpointError
from jakiro.hub.convert.decoder_layer import (
    LEFT_OUT,
    check,
    head_config,
    llama_config,
    original_config,
)
from jakiro.hub.convert.layout import Layout, Settings
from jakiro.hub.convert.source import Source
from jakiro.target.target import Target

_MLP = "layers.0.mlp.gate_proj.weight"
_RELEASED = {"num_experts": 1, "activation": "swiglu", "draft_vocab_size": None, "reads": ()}
"""The one form of such a head that others know."""


def _recognises(source: Source) -> bool:
    if any(name.startswith("midlayer.") or name in ("d2t", "t2d") for name in source.tensors):
        raise CheckpointError(
            f"{source.directory} holds an EAGLE-3 head, which reads three layers of the target; "
            "supported are EAGLE-1 and EAGLE-2"
        )
    return "fc.weight" in source.tensors and _MLP in source.tensors


def _config(source: Source, target: Target) -> HeadConfig:
    return head_config(source, target, "eagle2", _MLP)


def _original(config: HeadConfig) -> Settings:
    check(asdict(config), _RELEASED, "the original code")
    return original_config(config)


def _vllm(config: HeadConfig) -> Settings:
    """vLLM's own class has no bias in ``fc``; the class of this package's plugin has."""
    check(asdict(config), _RELEASED, "vLLM's EAGLE model")
    ours = {"architectures": ["EagleJakiroLlamaForCausalLM"], "jakiro": {"fc_bias": True}}
    return llama_config(config) | {"head_dim": config.head_dim} | (ours if config.fc_bias else {})


_FORMATS = {"original": _original, "eagle-vllm": _vllm}
LAYOUT = Layout("EAGLE", ("eagle2", "eagle1"), _recognises, _config, _FORMATS, LEFT_OUT)
