"""Weights, inputs and outputs of the original modules (see ``tests/golden``), through the original
layouts: an imported head says what the original says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from jakiro.drafters.base import Head
from jakiro.drafters.experts import HeadOutput
from jakiro.drafters.medusa import MedusaHeads
from jakiro.drafters.nn import DraftHead
from jakiro.hub import checkpoint
from jakiro.hub.convert.importing import FILES, import_head, recognise
from jakiro.hub.convert.source import read_source
from jakiro.target.target import Target
from tests.hub.convert import synthetic

GOLDEN = Path(__file__).parents[2] / "golden"
EMBEDDING, LM_HEAD = "weights.embed_tokens.weight", "lm_head.weight"


def imported(name: str, tmp_path: Path, layout: str) -> tuple[Head, Target, dict[str, Tensor]]:
    """The golden weights written as published and imported for a target with the golden ends; that
    target and all golden tensors."""
    config = json.loads((GOLDEN / f"{name}.json").read_text())
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    shared = ("hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads")
    sizes = {key: config[key] for key in shared if key in config}
    model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=8, num_hidden_layers=1))
    if EMBEDDING in tensors:
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(tensors[EMBEDDING])
            model.get_output_embeddings().weight.copy_(tensors[LM_HEAD])
    target = Target(model.eval())
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if "weights." in k}
    source = read_source(synthetic.write(tmp_path / "in", weights, config, layout), FILES)
    done = import_head(source, recognise(source), target, tmp_path / "out")
    assert done.left_out == (("embed_tokens.weight",) if EMBEDDING in tensors else ())
    return checkpoint.load(tmp_path / "out", target.fingerprint()), target, tensors


def forward(
    head: Head, target: Target, tensors: dict[str, Tensor], contrasts: int = 0
) -> HeadOutput:
    assert isinstance(head, DraftHead)
    ids = tensors["input_ids"][:, 1:]
    where = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        return head(target.embed(ids), tensors["features"], where, contrasts=contrasts)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["jakiro/mha", "jakiro/gqa"])
def test_jakiro(name: str, tmp_path: Path) -> None:
    head, target, tensors = imported(name, tmp_path, "pytorch_model.bin")
    out = forward(head, target, tensors, contrasts=1)
    assert_close(out.next, tensors["branch1"])
    assert_close(out.ahead[0], tensors["branch2"])
    assert_close(target.lm_head(out.next), tensors["logits1"])
    assert_close(target.lm_head(out.ahead[0]), tensors["logits2"])


def test_jakiro_star(tmp_path: Path) -> None:
    head, target, tensors = imported("jakiro_star/gqa", tmp_path, "pytorch_model.bin")
    out = forward(head, target, tensors)
    assert_close(out.next, tensors["sum"])
    assert out.experts is not None
    order = out.experts.weights.argsort(-1, descending=True)[..., None]
    ordered = out.experts.features.gather(-2, order.expand_as(out.experts.features))
    assert_close(ordered[..., 0, :], tensors["first"])
    assert_close(ordered[..., 1, :], tensors["second"])


@pytest.mark.parametrize("name", ["eagle/mha", "eagle/gqa_qkv_bias"])
def test_eagle(name: str, tmp_path: Path) -> None:
    head, target, tensors = imported(name, tmp_path, "pytorch_model.bin")
    assert_close(forward(head, target, tensors).next, tensors["output"])


def test_medusa(tmp_path: Path) -> None:
    head, target, tensors = imported("medusa/three_heads", tmp_path, "medusa_lm_head.pt")
    assert isinstance(head, MedusaHeads)
    with torch.no_grad():
        assert_close(head(tensors["features"], target.lm_head), tensors["logits"].movedim(0, 1))
