"""The two attentions of our own that copies of a model are given in place of ``sdpa``.

``GROUPED``. Handed a mask, the attention of ``transformers`` repeats keys and values for every
group of queries, because kernels of GPUs need that. The kernel of CPUs takes the groups as they
are, and at a few hundred slots the copies cost a fifth of the attention itself.

``DEFERRED``. For compiled forwards: see ``cache/deferred.py``.
"""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from jakiro.cache.deferred import attend
from jakiro.target.modules import Change

GROUPED, DEFERRED = "jakiro_grouped", "jakiro_deferred"


def attend_grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """``sdpa`` of ``transformers``; with a mask and nothing else that is special, the kernel."""
    is_special = kwargs.get("softcap") is not None or kwargs.get("position_bias") is not None
    if attention_mask is None or is_special:
        done: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return done
    mixed = F.scaled_dot_product_attention(
        query, key, value, attention_mask, scale=scaling, enable_gqa=True
    )
    return mixed.transpose(1, 2).contiguous(), None


def _deferred(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, attention_mask, module.layer_idx, scale), None


AttentionInterface.register(GROUPED, attend_grouped)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
AttentionInterface.register(DEFERRED, _deferred)


def attends(name: str) -> Change:
    """A change for ``shared_copy``: every module that used ``sdpa``, or what stood for it, attends
    by ``name``.

    The config that says so is replaced by a copy; the model's own stays.
    """
    copies: dict[int, PreTrainedConfig] = {}

    def change(_: str, module: nn.Module) -> None:
        config = vars(module).get("config")
        if not isinstance(config, PreTrainedConfig):
            return
        if config._attn_implementation in ("sdpa", GROUPED):
            if id(config) not in copies:
                copies[id(config)] = copy.copy(config)
                copies[id(config)]._attn_implementation = name
            vars(module)["config"] = copies[id(config)]

    return change
