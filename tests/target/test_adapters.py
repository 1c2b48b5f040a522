"""Targets with LoRA adapters and with quantised weights."""

from __future__ import annotations

import peft
import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import jakiro
from jakiro.errors import TargetRefused
from jakiro.target.target import Target
from jakiro.tree.token_tree import TokenTree
from tests.families import FAMILIES

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


def agrees_with(target: Target, model: torch.nn.Module, tolerance: float) -> None:
    """Prefill and a small tree say what ``model``, as the user holds it, says."""
    text, cache = [5, 9, 2, 33, 41], target.new_cache()
    target.prefill(text, cache, cache.admit())
    tokens = torch.tensor([[7, 8, 9, 10]])
    tree = TokenTree(tokens, torch.tensor([[-1, 0, 0, 2]]), torch.ones_like(tokens).bool())
    logits = target.verify(tree, cache).logits[0]
    for node, path in enumerate(([7], [7, 8], [7, 9], [7, 9, 10])):
        with torch.no_grad():
            expected = model(torch.tensor([text + path])).logits[0, -1]
        torch.testing.assert_close(logits[node], expected, rtol=0, atol=tolerance)


def test_lora_target_speaks_with_its_adapter() -> None:
    plain = FAMILIES["llama"]()
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=["q_proj", "v_proj", "lm_head"],
        init_lora_weights=False,
    )
    model = peft.get_peft_model(FAMILIES["llama"](), config).double().eval()
    target = Target(model)
    assert (target.route, target.feature_refusal) == ("mask", None)
    agrees_with(target, model, 1e-9)
    assert jakiro.load(model, "none").target.model is target.model
    ids = torch.tensor([[5, 9, 2]])
    with torch.no_grad():
        assert (model(ids).logits - plain(ids).logits).abs().max() > 0.1


def test_prompt_learning_is_refused() -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(FAMILIES["llama"](), config).eval()
    with pytest.raises(TargetRefused, match=r"PROMPT_TUNING.*LoRA"):
        Target(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_target(dtype: torch.dtype) -> None:
    model = FAMILIES["mistral"]().to(dtype)
    quantize_(model, Int8WeightOnlyConfig())
    target = Target(model)
    assert (target.route, target.feature_refusal, target.dtype) == ("mask", None, dtype)
    assert target.vocab_size == 64
    agrees_with(target, model, 1e-3 if dtype == torch.float32 else 2.0)
