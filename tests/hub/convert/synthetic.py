"""Tiny checkpoints in the layouts of others, every name spelt out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.train.support import VOCABULARY

HIDDEN, HEADS, KV_HEADS, INNER = 32, 4, 2, 48
KV = HIDDEN // HEADS * KV_HEADS

Shapes = dict[str, tuple[int, ...]]

ATTENTION: Shapes = {
    "fc.weight": (HIDDEN, 2 * HIDDEN),
    "fc.bias": (HIDDEN,),
    "layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "layers.0.self_attn.k_proj.weight": (KV, HIDDEN),
    "layers.0.self_attn.v_proj.weight": (KV, HIDDEN),
    "layers.0.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "layers.0.post_attention_layernorm.weight": (HIDDEN,),
}
EAGLE: Shapes = ATTENTION | {
    "layers.0.mlp.gate_proj.weight": (INNER, HIDDEN),
    "layers.0.mlp.up_proj.weight": (INNER, HIDDEN),
    "layers.0.mlp.down_proj.weight": (HIDDEN, INNER),
}
EAGLE_QKV_BIAS: Shapes = EAGLE | {
    "layers.0.self_attn.q_proj.bias": (HIDDEN,),
    "layers.0.self_attn.k_proj.bias": (KV,),
    "layers.0.self_attn.v_proj.bias": (KV,),
}
JAKIRO: Shapes = ATTENTION | {
    "layers.0.mlp_moe.gate.weight": (4, HIDDEN),
    "layers.0.mlp_moe.experts.0.gate_proj.weight": (HIDDEN, HIDDEN),
    "layers.0.mlp_moe.experts.0.up_proj.weight": (HIDDEN, HIDDEN),
    "layers.0.mlp_moe.experts.0.down_proj.weight": (HIDDEN, HIDDEN),
    "layers.0.mlp_moe.experts.1.gate_proj.weight": (HIDDEN, HIDDEN),
    "layers.0.mlp_moe.experts.1.up_proj.weight": (HIDDEN, HIDDEN),
    "layers.0.mlp_moe.experts.1.down_proj.weight": (HIDDEN, HIDDEN),
}
JAKIRO_STAR: Shapes = ATTENTION | {
    "layers.0.mlp_moe.gate.weight": (2, HIDDEN),
    "layers.0.mlp_moe.experts.0.fc.weight": (INNER, HIDDEN),
    "layers.0.mlp_moe.experts.0.proj.weight": (HIDDEN, INNER),
    "layers.0.mlp_moe.experts.1.fc.weight": (INNER, HIDDEN),
    "layers.0.mlp_moe.experts.1.proj.weight": (HIDDEN, INNER),
}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 36,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "max_position_embeddings": 128,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": 1,
    "num_key_value_heads": KV_HEADS,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "float16",
    "vocab_size": VOCABULARY,
}
MEDUSA: Shapes = {
    "0.0.linear.weight": (HIDDEN, HIDDEN),
    "0.0.linear.bias": (HIDDEN,),
    "0.1.weight": (VOCABULARY, HIDDEN),
    "1.0.linear.weight": (HIDDEN, HIDDEN),
    "1.0.linear.bias": (HIDDEN,),
    "1.1.weight": (VOCABULARY, HIDDEN),
    "2.0.linear.weight": (HIDDEN, HIDDEN),
    "2.0.linear.bias": (HIDDEN,),
    "2.1.weight": (VOCABULARY, HIDDEN),
}
MEDUSA_CONFIG = {
    "base_model_name_or_path": "lmsys/vicuna-7b-v1.3",
    "medusa_num_heads": 2,
    "medusa_num_layers": 1,
}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 2}
SOURCES: dict[str, tuple[Shapes, dict[str, Any]]] = {
    "jakiro": (JAKIRO, CONFIG | EXPERTS),
    "jakiro_star": (JAKIRO_STAR, CONFIG | EXPERTS | {"rope_theta": 10000.0}),
    "eagle2": (EAGLE, CONFIG),
    "medusa": (MEDUSA, MEDUSA_CONFIG),
}
"""By our name of the method: shapes and ``config.json`` (that of Medusa counts one head less than
there are, as published)."""


def random_tensors(shapes: Shapes, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Random numbers of those shapes; the same for the same shapes."""
    generator = torch.Generator().manual_seed(len(shapes))
    return {
        name: torch.randn(shape, generator=generator).mul(0.2).to(dtype)
        for name, shape in shapes.items()
    }


def write(
    directory: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None,
    layout: str = "pytorch_model.bin",
) -> Path:
    """A directory as published: ``layout`` names the file, an index a checkpoint in two shards."""
    directory.mkdir(parents=True)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    stem, *is_sharded = layout.split(".index")
    names = list(tensors)
    parts = [names[:3], names[3:]] if is_sharded else [names]
    places = {}
    for number, part in enumerate(parts):
        file = stem.replace(".", f"-{number + 1:05}-of-00002.") if is_sharded else stem
        places |= dict.fromkeys(part, file)
        chosen = {name: tensors[name] for name in part}
        if stem.endswith(".safetensors"):
            save_file(chosen, directory / file)
        else:
            torch.save(chosen, directory / file)
    if is_sharded:
        (directory / layout).write_text(json.dumps({"weight_map": places}))
    return directory
