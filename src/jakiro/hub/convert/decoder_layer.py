"""What the one-layer heads have in common: ``fc``, a Llama decoder layer, a Llama config.

Sizes come from the tensors. Only what no tensor shows is taken from ``config.json``: the number of
attention heads (else the target's), the rotary base and the norm's epsilon (else the defaults of
the original code).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jakiro.drafters import registry
from jakiro.drafters.nn import HeadConfig
from jakiro.errors import CheckpointError, ConfigError, PairMismatch
from jakiro.hub.convert.source import Source
from jakiro.target.target import Target

GATE = "layers.0.mlp_moe.gate.weight"
TIED = {"embed_tokens.weight": "embedding", "lm_head.weight": "LM head"}
"""Tensors of the target that some checkpoints repeat. They are compared and left out."""

LEFT_OUT = (*TIED, "layers.0.self_attn.rotary_emb.inv_freq")
"""Tensors without a place in a head: copies of the target's, and a constant."""
_SIMILAR = 0.02
"""Largest relative distance of two copies of one matrix in different half precisions."""


def num_experts(source: Source) -> int:
    """How many experts there are tensors for."""
    prefix = "layers.0.mlp_moe.experts."
    return len(
        {name[len(prefix) :].split(".")[0] for name in source.tensors if name.startswith(prefix)}
    )


def head_config(
    source: Source, target: Target, method: str, expert: str, **special: Any
) -> HeadConfig:
    """The config of a head of ``method``, where ``expert`` is the name of a matrix with one row per
    inner unit. ``special``: what the layout overrides.

    Raises ``PairMismatch`` if the head belongs to another target, ``CheckpointError`` if tensors
    and config contradict each other or the head has what no head of ours has.
    """
    hidden, pair = source.matrix("fc.weight")
    if pair != 2 * hidden:
        raise CheckpointError(
            f"{source.directory}: fc.weight is [{hidden}, {pair}]; a head that reads one embedding "
            f"and one feature has [H, 2 H]"
        )
    _check_target(source, target, hidden)
    _check_settings(source)
    settings = {
        "method": method,
        "hidden_size": hidden,
        "expert_size": source.matrix(expert)[0],
        "vocab_size": target.vocab_size,
        "rope_theta": _rope_theta(source),
        "rms_norm_eps": _number(source, "rms_norm_eps", 1e-6),
        "fc_bias": "fc.bias" in source.tensors,
        "qkv_bias": "layers.0.self_attn.q_proj.bias" in source.tensors,
        **_attention(source, target),
        **registry.find(method).settings,
        **special,
    }
    try:
        return HeadConfig(**settings)
    except ConfigError as error:
        raise CheckpointError(f"{source.directory}: {error}") from error


def _attention(source: Source, target: Target) -> dict[str, int]:
    """Numbers of heads and their size, from the shapes and one number no shape shows."""
    rows, kv_rows = (
        source.matrix(f"layers.0.self_attn.{part}_proj.weight")[0] for part in ("q", "k")
    )
    stated = source.config.get("num_attention_heads")
    heads = int(_number(source, "num_attention_heads", target.config.num_attention_heads))
    origin = "its config.json" if stated else "the target (there is none in config.json)"
    if rows % heads:
        raise CheckpointError(
            f"{source.directory}: {rows} rows of q_proj cannot be {heads} attention heads, the "
            f"num_attention_heads of {origin}"
        )
    size = rows // heads
    if kv_rows % size:
        raise CheckpointError(
            f"{source.directory}: with {heads} attention heads, from {origin}, a head has {size} "
            f"rows, and the {kv_rows} rows of k_proj are no multiple of that"
        )
    found = {"num_heads": heads, "num_kv_heads": kv_rows // size, "head_dim": size}
    for name, key in (("num_key_value_heads", "num_kv_heads"), ("head_dim", "head_dim")):
        if (said := source.config.get(name)) not in (None, found[key]):
            raise CheckpointError(
                f"{source.directory}: the tensors have {name} {found[key]} (with {heads} attention "
                f"heads, from {origin}), but config.json says {said}"
            )
    return found


def _check_settings(source: Source) -> None:
    """Raise ``CheckpointError`` for settings that change the computation."""
    allowed: dict[str, tuple[Any, ...]] = {
        "hidden_act": (None, "silu"),
        "rope_scaling": (None,),
        "num_hidden_layers": (None, 1),
    }
    for name, values in allowed.items():
        if (value := source.config.get(name)) not in values:
            raise CheckpointError(
                f"{source.directory}: config.json has {name} {value!r}, which these heads do not "
                f"have here; supported: {' or '.join(repr(each) for each in values)}"
            )


def _rope_theta(source: Source) -> float:
    """The rotary base, which ``transformers`` 5 writes into ``rope_parameters``. Raises
    ``CheckpointError`` where these say more of the rotation."""
    stated = source.config.get("rope_parameters") or {}
    theta = stated.get("rope_theta") if isinstance(stated, dict) else None
    if (
        not isinstance(stated, dict)
        or not stated.items() <= {"rope_theta": theta, "rope_type": "default"}.items()
    ):
        raise CheckpointError(
            f"{source.directory}: config.json has rope_parameters {stated!r}, which these heads do "
            "not have here; supported: rope_theta, with the rope_type 'default'"
        )
    return _number(source, "rope_theta", 10000.0, theta)


def _number(source: Source, name: str, usual: float, stated: Any = None) -> float:
    """What is ``stated``, or else what config.json says of ``name``; ``usual`` where it says
    nothing. Raises ``CheckpointError`` for what is no number above 0."""
    value = source.config.get(name) if stated is None else stated
    if value is None:
        return usual
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise CheckpointError(
            f"{source.directory}: config.json has {name} {value!r}, which must be a finite "
            "number above 0"
        )
    return float(value)


def _check_target(source: Source, target: Target, hidden: int) -> None:
    """Raise ``PairMismatch`` unless the sizes, and the copies of its matrices, are the target's."""
    vocabulary = source.config.get("vocab_size")
    for name, mine, theirs in (
        ("hidden size", hidden, target.hidden_size),
        ("vocabulary", vocabulary, target.vocab_size),
    ):
        if mine not in (None, theirs):
            raise PairMismatch(
                f"the head in {source.directory} was made for another target: {name} {mine}, but "
                f"this target has {theirs}; give the target it was trained for"
            )
    model = target.model
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, end in zip(TIED, ends, strict=True):
        if name in source.tensors and not _is_same(source.tensors[name], end.weight.detach()):
            raise PairMismatch(
                f"the head in {source.directory} was made for another target: its copy of the "
                f"{TIED[name]} ({name}) differs from that of this target"
            )


def _is_same(copy: Tensor, original: Tensor) -> bool:
    """Whether 64 evenly spaced rows are equal but for rounding to another precision."""
    if copy.shape != original.shape:
        return False
    rows = torch.linspace(0, len(copy) - 1, 64).long()
    mine, theirs = copy[rows].float(), original[rows.to(original.device)].float().cpu()
    return bool((mine - theirs).norm() <= _SIMILAR * theirs.norm())


def llama_config(config: HeadConfig) -> dict[str, Any]:
    """The entries every format shares: a one-layer Llama config."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.expert_size,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": 1,
        "num_key_value_heads": config.num_kv_heads,
        "qkv_bias": config.qkv_bias,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
        "vocab_size": config.vocab_size,
    }


def original_config(config: HeadConfig) -> dict[str, Any]:
    """``llama_config`` for the original code, which computes the size of an attention head and
    reads from ``bias`` whether ``fc`` has one. Raises ``CheckpointError`` where that is wrong."""
    check(
        {"head_dim": config.head_dim},
        {"head_dim": config.hidden_size // config.num_heads},
        "the original code",
    )
    return llama_config(config) | {"bias": config.fc_bias}


def check(actual: Mapping[str, Any], needed: Mapping[str, Any], who: str) -> None:
    """Raise ``CheckpointError`` unless the settings are those that ``who`` can hold."""
    for name, value in needed.items():
        if actual[name] != value:
            raise CheckpointError(
                f"{who} has no head with {name} {actual[name]!r}, only with {value!r}; "
                "this head cannot be written in that format"
            )
