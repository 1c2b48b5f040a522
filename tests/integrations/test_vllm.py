"""The plugin for vLLM against stand-ins of the few classes it builds on; ``make test-vllm`` runs it
in vLLM itself."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jakiro.drafters.nn import DraftHead, HeadConfig

SIZES = {"hidden_size": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "expert_size": 48}


class Linear(nn.Linear):
    def __init__(self, inner: int, outer: int, bias: bool = True, **_: Any) -> None:
        super().__init__(inner, outer, bias)


class LlamaMLP(nn.Module):
    def __init__(self, hidden: int, inner: int, activation: str, **_: Any) -> None:
        super().__init__()
        assert activation == "silu"
        self.gate_proj, self.up_proj = (nn.Linear(hidden, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class EagleLlama(nn.Module):
    """Holds what the plugin replaces, and loads strictly by name."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.speculative_config.draft_model_config.hf_config
        hidden = self.config.hidden_size
        layer = nn.Module()
        layer.self_attn = nn.Module()
        for part, width in zip("qkvo", (32, 16, 16, 32), strict=True):
            setattr(layer.self_attn, f"{part}_proj", nn.Linear(hidden, width, bias=False))
        layer.mlp = LlamaMLP(hidden, self.config.intermediate_size, "silu")
        layer.post_attention_layernorm = nn.RMSNorm(hidden)
        self.model = nn.Module()
        self.model.fc = Linear(2 * hidden, hidden, bias=False)
        self.model.layers = nn.ModuleList([layer])

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.model.load_state_dict(dict(weights), strict=True)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What was registered with the stand-in, by architecture."""
    found: dict[str, str] = {}
    parts = {
        "vllm": {"ModelRegistry": SimpleNamespace(register_model=found.__setitem__)},
        "vllm.config": {"VllmConfig": object},
        "vllm.model_executor": {},
        "vllm.model_executor.layers": {},
        "vllm.model_executor.layers.linear": {"ReplicatedLinear": Linear},
        "vllm.model_executor.models": {},
        "vllm.model_executor.models.llama": {"LlamaMLP": LlamaMLP},
        "vllm.model_executor.models.llama_eagle": {"EagleLlamaForCausalLM": EagleLlama},
    }
    for name, contents in parts.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    yield found
    sys.modules.pop("jakiro.integrations.vllm.head", None)


def made(registered: dict[str, str], head: DraftHead) -> Any:
    """The class that the entry point registers, for the sizes of ``head``."""
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    place, _, name = project["entry-points"]["vllm.general_plugins"]["jakiro"].partition(":")
    getattr(import_module(place), name)()
    place, _, name = registered["EagleJakiroLlamaForCausalLM"].partition(":")
    config = SimpleNamespace(
        hidden_size=32,
        intermediate_size=48,
        hidden_act="silu",
        jakiro={"fc_bias": head.config.fc_bias},
        **({"num_local_experts": 2} if head.config.num_experts > 1 else {}),
    )
    draft = SimpleNamespace(draft_model_config=SimpleNamespace(hf_config=config))
    model = SimpleNamespace(dtype=torch.float32)
    settings = SimpleNamespace(speculative_config=draft, model_config=model)
    return getattr(import_module(place), name)(vllm_config=settings)


@pytest.mark.parametrize("experts", [2, 1])
def test_it_computes_what_the_head_computes(registered: dict[str, str], experts: int) -> None:
    contrast = {"contrast_levels": 1 if experts > 1 else 0, "active_experts": experts}
    head = DraftHead(
        HeadConfig("any", **SIZES, vocab_size=40, num_experts=experts, **contrast)  # type: ignore[arg-type]
    )
    theirs = made(registered, head)
    theirs.load_weights(head.state_dict().items())
    pairs, states = torch.randn(2, 3, 64), torch.randn(2, 3, 32)
    torch.testing.assert_close(theirs.model.fc(pairs), head.fc(pairs))
    layer = head.layers[0]
    if experts == 1:
        expected = layer.mlp(states)
    else:
        expected = layer.mlp_moe(torch.zeros_like(states), states, 0).next
    torch.testing.assert_close(theirs.model.layers[0].mlp(states), expected)


def test_a_lacking_tensor_is_named(registered: dict[str, str]) -> None:
    head = DraftHead(HeadConfig("any", **SIZES, vocab_size=40))  # type: ignore[arg-type]
    weights = head.state_dict()
    del weights["layers.0.mlp_moe.experts.1.up_proj.weight"], weights["fc.bias"]
    with pytest.raises(ValueError, match=r"lacks .* fc.bias, layers.0.mlp.experts.1.up_proj"):
        made(registered, head).load_weights(weights.items())
