"""Medusa-1 (arXiv 2401.10774; github.com/FasterDecoding/Medusa).

Per head ``k`` the residual blocks ``k.i.linear`` and, behind them, an LM head ``k.R.weight``; the
oldest checkpoints lack the latter and share the target's. The numbers of heads and blocks are
counted: published configs name wrong ones. Medusa-2 tunes the target together with the heads and
publishes both as one model, which is refused by name.
"""

from __future__ import annotations

import re

from jakiro.drafters.medusa import MedusaConfig
from jakiro.errors import CheckpointError, PairMismatch
from jakiro.hub.convert.layout import Layout, Settings
from jakiro.hub.convert.source import Source
from jakiro.target.target import Target

_BLOCK = "0.0.linear.weight"
_WITH_BACKBONE = "medusa_head."


def _recognises(source: Source) -> bool:
    if any(name.startswith(_WITH_BACKBONE) for name in source.tensors):
        raise CheckpointError(
            f"{source.directory} holds Medusa heads inside a whole model (Medusa-2), which was "
            "tuned with them; supported are the heads alone, in medusa_lm_head.pt"
        )
    return _BLOCK in source.tensors


def _config(source: Source, target: Target) -> MedusaConfig:
    heads = _count(source, r"(\d+)\.0\.linear\.weight")
    blocks = _count(source, r"0\.(\d+)\.linear\.weight")
    hidden, _ = source.matrix(_BLOCK)
    last = f"0.{blocks}.weight"
    own_head = last in source.tensors
    vocabulary = source.matrix(last)[0] if own_head else target.vocab_size
    sizes = (hidden, vocabulary), (target.hidden_size, target.vocab_size)
    if sizes[0] != sizes[1]:
        raise PairMismatch(
            f"the heads in {source.directory} were made for another target: hidden size and "
            f"vocabulary {sizes[0]}, but this target has {sizes[1]}"
        )
    return MedusaConfig("medusa", hidden, vocabulary, heads, blocks, own_head)


def _count(source: Source, pattern: str) -> int:
    """How many tensors are called so."""
    return sum(re.fullmatch(pattern, name) is not None for name in source.tensors)


def _original(config: MedusaConfig) -> Settings:
    return {
        "hidden_size": config.hidden_size,
        "medusa_num_heads": config.num_heads,
        "medusa_num_layers": config.num_layers,
        "vocab_size": config.vocab_size,
    }


LAYOUT = Layout(
    "Medusa",
    ("medusa",),
    _recognises,
    _config,
    {"original": _original},
    files=("medusa_lm_head.pt", "medusa_lm_head.safetensors"),
    from_target=("base_model_name_or_path",),
)
