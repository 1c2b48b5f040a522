"""There and back: what is exported is what was imported, bit by bit, in what others read."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from jakiro.drafters.medusa import MedusaConfig, MedusaHeads
from jakiro.drafters.nn import DraftHead, HeadConfig
from jakiro.drafters.registry import find
from jakiro.errors import CheckpointError, PairMismatch, UnknownName
from jakiro.hub import checkpoint
from jakiro.hub.convert.exporting import FORMATS, export_head
from jakiro.hub.convert.importing import FILES, import_head, recognise
from jakiro.hub.convert.source import read_source
from jakiro.target.target import Target
from tests.hub.convert import synthetic
from tests.train.support import tiny_target

PICKLES = ["pytorch_model.bin", "medusa_lm_head.pt"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


def convert(directory: Path, target: Target, out: Path) -> None:
    source = read_source(directory, FILES)
    import_head(source, recognise(source), target, out)


def read_weights(directory: Path) -> dict[str, Tensor]:
    """What the program at the other end loads."""
    if (directory / "model.safetensors").exists():
        return load_file(directory / "model.safetensors")
    (file,) = (directory / name for name in PICKLES if (directory / name).exists())
    loaded: dict[str, Tensor] = torch.load(file, weights_only=True)
    return loaded


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("method", "form"),
    [
        *((method, "original") for method in synthetic.SOURCES),
        ("jakiro", "eagle-vllm"),
        ("eagle2", "eagle-vllm"),
    ],
)
def test_round_trips_change_nothing(
    method: str, form: str, dtype: torch.dtype, tmp_path: Path, target: Target
) -> None:
    shapes, config = synthetic.SOURCES[method]
    tensors = synthetic.random_tensors(shapes, dtype)
    synthetic.write(tmp_path / "in", tensors, config)
    convert(tmp_path / "in", target, tmp_path / "ours")
    done = export_head(tmp_path / "ours", tmp_path / "theirs", form)
    assert sorted(done.files) == sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert_same(read_weights(tmp_path / "theirs"), tensors)

    convert(tmp_path / "theirs", target, tmp_path / "again")
    first, second = (checkpoint.read_config(tmp_path / name) for name in ("ours", "again"))
    assert first["weights"] == second["weights"]
    assert first["head"] == second["head"]
    assert_same(load_file(tmp_path / "again/model.safetensors"), tensors)


def test_biases_of_attention_go_there_and_back(tmp_path: Path, target: Target) -> None:
    """As in the heads made for Qwen2."""
    tensors = synthetic.random_tensors(synthetic.EAGLE_QKV_BIAS)
    synthetic.write(tmp_path / "in", tensors, synthetic.CONFIG | {"qkv_bias": True})
    convert(tmp_path / "in", target, tmp_path / "ours")
    assert checkpoint.read_config(tmp_path / "ours")["head"]["qkv_bias"] is True
    export_head(tmp_path / "ours", tmp_path / "theirs", "original")
    assert_same(read_weights(tmp_path / "theirs"), tensors)
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["qkv_bias"] is True


@pytest.mark.parametrize("method", synthetic.SOURCES)
def test_the_original_config_comes_back(method: str, tmp_path: Path, target: Target) -> None:
    shapes, config = synthetic.SOURCES[method]
    synthetic.write(tmp_path / "in", synthetic.random_tensors(shapes), config)
    convert(tmp_path / "in", target, tmp_path / "ours")
    export_head(tmp_path / "ours", tmp_path / "theirs", "original")
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    if method == "jakiro":
        assert written.pop("intermediate_size") == 32, "which the released code ignores"
        config = {name: value for name, value in config.items() if name != "intermediate_size"}
    if method == "medusa":
        assert written["medusa_num_heads"] == 3, "which the published config miscounts"
        config = config | {"medusa_num_heads": 3}
    else:
        assert written["bias"] is True
    assert config.items() <= written.items()


def test_what_vllm_is_told(tmp_path: Path, target: Target) -> None:
    shapes, config = synthetic.SOURCES["jakiro"]
    synthetic.write(tmp_path / "in", synthetic.random_tensors(shapes), config)
    convert(tmp_path / "in", target, tmp_path / "ours")
    export_head(tmp_path / "ours", tmp_path / "theirs", "eagle-vllm")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text()) == {
        "architectures": ["EagleJakiroLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 36,
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 32,
        "jakiro": {"fc_bias": True},
        "max_position_embeddings": 128,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
        "pad_token_id": 0,
        "qkv_bias": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": 40,
    }
    read = AutoConfig.from_pretrained(tmp_path / "theirs")
    assert (read.rope_parameters["rope_theta"], read.num_local_experts) == (500000.0, 2)


def test_context_and_special_tokens_of_the_target(tmp_path: Path, target: Target) -> None:
    head = save(target, tmp_path / "head", method="jakiro")
    names = {"bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"}
    target.model.config.save_pretrained(tmp_path / "target")
    export_head(head, tmp_path / "with", "eagle-vllm", tmp_path / "target")
    written = json.loads((tmp_path / "with" / "config.json").read_text())
    assert {name: written[name] for name in names & set(written)} == {
        "bos_token_id": 1,
        "eos_token_id": 36,
        "max_position_embeddings": 128,
    }
    medusa = MedusaHeads(MedusaConfig("medusa", 32, 40))
    checkpoint.save(medusa, tmp_path / "medusa", target.fingerprint())
    export_head(tmp_path / "medusa", tmp_path / "heads", "original", tmp_path / "target")
    written = json.loads((tmp_path / "heads" / "config.json").read_text())
    assert written["base_model_name_or_path"] == str(tmp_path / "target")
    export_head(head, tmp_path / "without", "eagle-vllm")
    assert not names & set(json.loads((tmp_path / "without" / "config.json").read_text()))

    with pytest.raises(CheckpointError, match="cannot read the config of the target 'no/such"):
        export_head(head, tmp_path / "out", "eagle-vllm", "no/such/model")
    strange = type(target.model.config)(**target.model.config.to_dict() | {"hidden_size": 64})
    strange.save_pretrained(tmp_path / "strange")
    with pytest.raises(PairMismatch, match="hidden_size is 32 there and 64 in this target"):
        export_head(head, tmp_path / "out", "eagle-vllm", tmp_path / "strange")
    assert not (tmp_path / "out").exists()


def save(target: Target, directory: Path, **settings: Any) -> Path:
    """A random head of this package."""
    sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "expert_size": 32}
    fixed = find(settings["method"]).settings
    config = HeadConfig(**{"hidden_size": 32, "vocab_size": 40, **fixed} | sizes | settings)
    checkpoint.save(DraftHead(config), directory, target.fingerprint())
    return directory


OTHERS: tuple[dict[str, Any], ...] = (
    {"num_experts": 3},
    {"branches": "decoupled"},
    {"num_experts": 1, "active_experts": 1, "contrast_levels": 0},
    {"num_experts": 5, "active_experts": 3},
    {"branches": "union"},
    {"contrast_levels": 0},
    {"contrast_levels": 2},
    {"contrast_strength": 0.5},
    {"activation": "gelu"},
    {"reads": (0, 1)},
    {"draft_vocab_size": 9},
)
"""Kinds of heads that no other program knows."""


def said(settings: dict[str, Any]) -> str:
    """What an error says of the first of ``settings``."""
    name, value = next(iter(settings.items()))
    return f"no head with {name} {re.escape(repr(value))}, only with .*cannot be written"


@pytest.mark.parametrize(
    ("settings", "form", "message"),
    [
        ({"method": "jakiro", "expert_size": 48}, "original", "expert_size 48, only with 32"),
        *(
            ({"method": "jakiro", **other}, form, said(other))
            for other in OTHERS
            for form in FORMATS
        ),
        *(
            ({"method": "jakiro_star", **other}, "original", said(other))
            for other in (*OTHERS[:2], {"activation": "swiglu"}, {"branches": "sum"}, OTHERS[-1])
        ),
        *(
            ({"method": "eagle2", "fc_bias": False, **other}, form, said(other))
            for other in ({"num_experts": 2}, {"activation": "gelu"}, OTHERS[-1])
            for form in FORMATS
        ),
        (
            {"method": "jakiro_star", "rope_theta": 5e5},
            "original",
            "rope_theta 500000.0, only with",
        ),
        ({"method": "eagle2", "head_dim": 16}, "original", "head_dim 16, only with 8"),
        ({"method": "eagle2", "draft_vocab_size": 9}, "eagle-vllm", "draft_vocab_size 9, only"),
    ],
)
def test_what_a_format_cannot_hold_is_named(
    settings: dict[str, Any], form: str, message: str, tmp_path: Path, target: Target
) -> None:
    head = save(target, tmp_path / "head", **settings)
    with pytest.raises(CheckpointError, match=message):
        export_head(head, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bias", [False, True])
def test_an_eagle_head_names_the_class_that_holds_it(
    bias: bool, tmp_path: Path, target: Target
) -> None:
    head = save(target, tmp_path / "head", method="eagle2", fc_bias=bias)
    export_head(head, tmp_path / "out", "eagle-vllm")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    ours = ("EagleJakiroLlamaForCausalLM", {"fc_bias": True})
    assert (written["architectures"][0], written.get("jakiro")) == (
        ours if bias else ("LlamaForCausalLM", None)
    )


def test_heads_of_both_trees_are_written(tmp_path: Path, target: Target) -> None:
    head = save(target, tmp_path / "head", method="eagle1", fc_bias=False)
    for form in FORMATS:
        assert export_head(head, tmp_path / form, form).method == "eagle1"
        assert_same(read_weights(tmp_path / form), load_file(head / "model.safetensors"))


def test_a_format_without_the_method_is_named(tmp_path: Path, target: Target) -> None:
    checkpoint.save(MedusaHeads(MedusaConfig("medusa", 32, 40)), tmp_path / "head", {})
    with pytest.raises(
        CheckpointError, match="holds heads of eagle1, eagle2, jakiro, but none of 'medu"
    ):
        export_head(tmp_path / "head", tmp_path / "out", "eagle-vllm")


def test_wrong_places_and_formats(tmp_path: Path, target: Target) -> None:
    head = save(target, tmp_path / "head", method="jakiro")
    with pytest.raises(UnknownName, match="unknown format 'onnx'; known: eagle-vllm, original"):
        export_head(head, tmp_path / "out", "onnx")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*missing"):
        export_head(tmp_path / "missing", tmp_path / "out", "original")
    with pytest.raises(CheckpointError, match="exists already"):
        export_head(head, head, "original")
    weights = head / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        export_head(head, tmp_path / "out", "original")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head"]


@pytest.mark.parametrize("form", ["original", "eagle-vllm"])
def test_a_full_disk_leaves_no_half_of_a_head(
    form: str, tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    head = save(target, tmp_path / "head", method="jakiro")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CheckpointError, match="No space left"):
        export_head(head, tmp_path / "out", form)
    assert not list((tmp_path / "out").iterdir())
