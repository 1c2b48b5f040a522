"""The model class of an exported head: vLLM's EAGLE Llama with a bias in ``fc``, and two experts
in place of the MLP (arXiv 2502.06282).

Tensors have the published names. The gate has a row per expert and one more per expert for the
contrast, which a chain has no use for: those rows are loaded and not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models.llama import LlamaMLP
from vllm.model_executor.models.llama_eagle import EagleLlamaForCausalLM


class ExpertMix(nn.Module):
    """``sum_j softmax(gate(x))_j E_j(x)`` over all experts, [..., H] to [..., H]."""

    def __init__(self, config: Any, prefix: str) -> None:
        super().__init__()
        self.num_experts: int = config.num_local_experts
        # As in the checkpoint: the weights of the sum, then those of the contrast.
        self.gate = ReplicatedLinear(
            config.hidden_size,
            2 * self.num_experts,
            bias=False,
            prefix=f"{prefix}.gate",
            return_bias=False,
        )
        self.experts = nn.ModuleList(
            LlamaMLP(
                config.hidden_size,
                config.intermediate_size,
                config.hidden_act,
                prefix=f"{prefix}.experts.{index}",
            )
            for index in range(self.num_experts)
        )

    def forward(self, states: Tensor) -> Tensor:
        weights: Tensor = self.gate(states)[..., : self.num_experts].softmax(-1)
        outputs = torch.stack([expert(states) for expert in self.experts], -1)
        return (outputs * weights[..., None, :]).sum(-1)


class EagleJakiroLlamaForCausalLM(EagleLlamaForCausalLM):
    """A Jakiro head, or an EAGLE head with a bias in ``fc``, which vLLM's own class has not.

    Raises ``ValueError`` for a checkpoint that lacks a tensor; vLLM itself refuses unknown ones.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = self.config
        if config.jakiro["fc_bias"]:
            self.model.fc = ReplicatedLinear(
                2 * config.hidden_size,
                config.hidden_size,
                bias=True,
                params_dtype=vllm_config.model_config.dtype,
                prefix=f"{prefix}.fc",
                return_bias=False,
            )
        self.num_experts = getattr(config, "num_local_experts", 1)
        if self.num_experts > 1:
            self.model.layers[0].mlp = ExpertMix(config, f"{prefix}.layers.0.mlp")

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        found = {name.replace(".mlp_moe.", ".mlp."): tensor for name, tensor in weights}
        if missing := sorted(self._expected() - set(found)):
            raise ValueError(
                f"the exported head lacks the tensors {', '.join(missing)}; "
                "write it again with jakiro export"
            )
        super().load_weights(found.items())

    def _expected(self) -> set[str]:
        """Names in the checkpoint; embedding and LM head are the target's."""
        parts = ["post_attention_layernorm", *(f"self_attn.{part}_proj" for part in "qkvo")]
        mlps = ["mlp"]
        if self.num_experts > 1:
            parts.append("mlp.gate")
            mlps = [f"mlp.experts.{index}" for index in range(self.num_experts)]
        parts += [f"{mlp}.{part}_proj" for mlp in mlps for part in ("gate", "up", "down")]
        ends = {"fc.weight", "fc.bias"} if self.config.jakiro["fc_bias"] else {"fc.weight"}
        return ends | {f"layers.0.{part}.weight" for part in parts}
