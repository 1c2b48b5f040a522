"""Every class for causal language modelling of ``transformers``, tiny and with random weights,
against the oracle, greedy and sampled: ``make targets``.

Each takes part in a ragged batch of three, drafted for by itself (whole trees are accepted), by an
untrained Jakiro head where its features can be read, and by every view of itself that it takes.
Exit status 1 if one of them says another token than it would alone.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from jakiro.bench.environment import environment
from jakiro.drafters.base import Drafter
from jakiro.drafters.self_drafter import SelfDrafter
from jakiro.errors import TargetRefused
from jakiro.hub.files import replace_files
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from tests.conformance import world
from tests.conformance.doubles import TargetDrafter
from tests.families import CONTEXT, VOCAB_SIZE, WINDOW, Weights, build

WEIGHTS = Weights(0.5, 0.5, 2)
NUM_NEW = 24
LEAST_DISTINCT = 4
"""Tokens of an answer; one that repeats a token says little."""

KINDS_OF_LAYERS = ("layer_types", "mlp_layer_types")
"""Settings that say layer by layer what it is; each kind is there once at least."""
_SIZES: dict[int, tuple[str, ...]] = {
    1: ("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"),
    2: (
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
        *("num_key_value_heads", "num_kv_heads", "num_global_key_value_heads", "index_n_heads"),
        *("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"),
    ),
    4: (
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
        *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
        *("index_topk", "conv_kernel"),
    ),
    8: (
        *("head_dim", "global_head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"),
        *("rotary_dim", "index_head_dim", "state_size", "hidden_size_per_layer_input"),
        *("attention_window", "sliding_window"),
    ),
    16: (
        *("q_lora_rank", "kv_lora_rank"),
        *("moe_intermediate_size", "shared_expert_intermediate_size"),
    ),
    32: ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size"),
    48: (
        *("intermediate_size", "n_inner", "hidden_dim"),
        *("ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"),
    ),
    VOCAB_SIZE: ("vocab_size", "vocab_size_per_layer_input"),
    CONTEXT: (
        *("max_position_embeddings", "n_positions", "n_ctx"),
        *("max_target_positions", "max_seq_len"),
    ),
}
SMALL: dict[str, Any] = {
    **{name: size for size, names in _SIZES.items() for name in names},
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "tie_word_embeddings": False,
}
"""What a field of a config is set to, whatever the family calls it."""

_LATENT = (
    *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text"),
    *("glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3", "youtu"),
)
"""Have as many heads of keys as of queries."""
_TWO_KINDS = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_STATE = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2}
OWN: dict[str, dict[str, Any]] = {
    **{model_type: {"num_key_value_heads": 4} for model_type in _LATENT},
    "bamba": _STATE,
    "granitemoehybrid": _STATE,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32, "moe_num_experts": 4},
    },
    "cohere_compass_text": _TWO_KINDS
    | {"rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": _TWO_KINDS
    | {
        "num_kv_shared_layers": 2,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [48] * 4,
    },
    "gemma4_text": _TWO_KINDS | {"num_kv_shared_layers": 2},
    "gemma4_unified_text": _TWO_KINDS | {"num_kv_shared_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["full_attention", "conv"]},
    "mamba2": {"num_heads": 8},
    "zamba2": {"num_hidden_layers": 2, "layer_types": ["linear_attention", "hybrid"]},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False},
    "zaya": {"num_experts_per_tok": 1},
}
"""What else a family needs, by its ``model_type``."""
SINGLE = {"xglm"}
"""Masks of theirs overflow in float64."""


WRAPPED = {"text_config", "patcher_config"}
"""Configs within those of wrappers."""


@dataclass(frozen=True)
class Found:
    """``outcome``: ``exact``, ``refused``, ``not made`` (no small one), or what went wrong.
    ``reads``: whether drafters may read its features; ``views``: by which it drafts for itself."""

    model_type: str
    name: str
    outcome: str
    route: str = ""
    reads: bool = False
    views: tuple[str, ...] = ()
    reason: str = ""


def classes() -> dict[str, str]:
    """Model type -> name of its class. Wrappers of several models, whose language model is an entry
    of its own, are left out."""
    names = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items())
    return {model_type: name for model_type, name in names if not _parts(name) & WRAPPED}


def _parts(name: str) -> set[str]:
    return set(getattr(hf, name).config_class.sub_configs)


def small(name: str) -> hf.PreTrainedModel:
    """A model of the class, as small as its config lets it be."""
    model_class = getattr(hf, name)
    config_class = model_class.config_class
    own = OWN.get(config_class.model_type, {})
    usual = config_class().to_dict()
    named = {*usual, *config_class.attribute_map, *inspect.signature(config_class).parameters}
    sizes = {key: size for key, size in SMALL.items() if key in named and _is_used(key, usual)}
    kinds = {key: list(dict.fromkeys(usual.get(key) or ())) for key in KINDS_OF_LAYERS}
    depth = max(sizes.get("num_hidden_layers", 0), *map(len, kinds.values()))
    every = {key: (each * depth)[:depth] for key, each in kinds.items() if each}
    sizes |= {**every, "num_hidden_layers": depth} if every else {}
    model = build(model_class, config_class(**sizes | own), WEIGHTS)
    return model.float() if config_class.model_type in SINGLE else model


def _is_used(key: str, usual: dict[str, Any]) -> bool:
    """A number that a family leaves out says that it does without the part."""
    is_part = key == "sliding_window" or ("experts" in key and "per_tok" not in key)
    return not (is_part and key in usual and not usual[key])


def look(model_type: str, class_name: str) -> Found:
    """Try the class of one model type."""
    try:
        model = small(class_name)
    except Exception as failure:  # whatever a config says of numbers that it does not like
        return Found(
            model_type, class_name, "not made", reason=f"{type(failure).__name__}: {failure}"
        )
    try:
        target = Target(model)
    except TargetRefused as refusal:
        return Found(model_type, class_name, "refused", reason=str(refusal))
    reads = target.feature_refusal is None
    drafters: list[Drafter] = [TargetDrafter(target)]
    if reads:
        drafters.append(world.make_drafter("jakiro/wide", target))
    for name in world.view_cases():
        with suppress(TargetRefused):
            drafters.append(world.make_drafter(name, target))
    views = [drafter.name for drafter in drafters if isinstance(drafter, SelfDrafter)]
    plan = TreePlan.chain(4) if target.route == "chain" else world.TREES["dynamic"]
    wrong = list(differences(model, target, drafters, plan))
    outcome = "; ".join(wrong) or "exact"
    return Found(
        model_type,
        class_name,
        outcome,
        target.route,
        reads,
        tuple(views),
        target.feature_refusal or "",
    )


def differences(
    model: hf.PreTrainedModel, target: Target, drafters: list[Drafter], plan: TreePlan
) -> Iterator[str]:
    """Where an answer is not that of the oracle, or cannot show much."""
    prompts = [[token % target.vocab_size for token in world.prompt(row)] for row in (0, 3, 2)]
    for setting in ("greedy", "top_p"):
        asked = [replace(world.params(setting, row), max_new_tokens=NUM_NEW) for row in range(3)]
        truths = [world.answer(model, *pair) for pair in zip(prompts, asked, strict=True)]
        if max(len(set(truth)) for truth in truths) < LEAST_DISTINCT:
            yield f"{setting}: its answers hold fewer than {LEAST_DISTINCT} distinct tokens"
        for drafter in drafters:
            engine = world.make_engine(target, drafter, plan, max_batch_size=3)
            try:
                found = [done.token_ids for done in engine.generate(prompts, asked)]
            except Exception as failure:  # to be told beside what else there is
                yield f"{setting}, {drafter.name}: {type(failure).__name__}: {failure}"
            else:
                if found != truths:
                    yield f"{setting}, {drafter.name}: not what it would say alone"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="model types (default: all)")
    parser.add_argument("--out", type=Path, help="where the report goes, as JSON")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    hf.logging.set_verbosity_error()
    torch.set_num_threads(1)
    place, rows = asdict(environment()), []
    for model_type, name in classes().items():
        if asked.only is None or model_type in asked.only:
            rows.append(found := look(model_type, name))
            how = f"{found.route}{', features' * found.reads}, {len(found.views)} views"
            told = how if found.route else found.reason[:120]
            print(f"{model_type:24} {found.outcome}  {told}", flush=True)
    outcomes = Counter(found.outcome for found in rows)
    if asked.out:
        report = {
            "command": ["python", "-m", "tests.architectures", *sys.argv[1:]],
            "environment": place,
            "rows": [asdict(found) for found in rows],
        }
        text = json.dumps(report, indent=1) + "\n"
        replace_files({asked.out: lambda path: path.write_text(text, "utf-8")})
    print(", ".join(f"{number} {outcome}" for outcome, number in outcomes.items()))
    return int(bool(set(outcomes) - {"exact", "refused", "not made"}))


if __name__ == "__main__":
    sys.exit(main())
