"""The model class of an exported head: SGLang's EAGLE Llama with two experts in place of the MLP
(arXiv 2502.06282). Never run, see the package.

SGLang finds it by ``EntryClass`` and by its name, which the exported config states. Its tree is
drafted by the sum of the experts; the rows of the gate for the contrast are loaded and not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.models.llama import LlamaMLP
from sglang.srt.models.llama_eagle import LlamaForCausalLMEagle
from torch import Tensor, nn


class ExpertMix(nn.Module):
    """``sum_j softmax(gate(x))_j E_j(x)`` over all experts, [..., H] to [..., H]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_experts: int = config.num_local_experts
        self.gate = nn.Linear(config.hidden_size, 2 * self.num_experts, bias=False)
        self.experts = nn.ModuleList(
            LlamaMLP(config.hidden_size, config.intermediate_size, config.hidden_act)
            for _ in range(self.num_experts)
        )

    def forward(self, states: Tensor, *_: Any) -> Tensor:
        weights: Tensor = self.gate(states)[..., : self.num_experts].softmax(-1)
        outputs = torch.stack([expert(states) for expert in self.experts], -1)
        return (outputs * weights[..., None, :]).sum(-1)


class EagleJakiroLlamaForCausalLM(LlamaForCausalLMEagle):
    """A Jakiro head, or an EAGLE head with a bias in ``fc``."""

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__(config, quant_config, prefix)
        hidden = config.hidden_size
        self.model.fc = nn.Linear(2 * hidden, hidden, bias=config.jakiro["fc_bias"])
        if getattr(config, "num_local_experts", 1) > 1:
            self.model.layers[0].mlp = ExpertMix(config)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        super().load_weights(
            (name.replace(".mlp_moe.", ".mlp."), tensor) for name, tensor in weights
        )


EntryClass = [EagleJakiroLlamaForCausalLM]
