"""Lossless speculative decoding for Hugging Face causal language models.

The public names are loaded on first use, so that importing the package stays cheap: neither
``torch`` nor ``transformers`` is imported before something needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jakiro.api import load
    from jakiro.custom_generate import decode
    from jakiro.engine.engine import Engine
    from jakiro.engine.request import Completion
    from jakiro.engine.superposed import Superposed
    from jakiro.errors import JakiroError
    from jakiro.sampling.params import SamplingParams
    from jakiro.tree.shapes import TreePlan

__version__ = "0.1.0"

__all__ = [
    "Completion",
    "Engine",
    "JakiroError",
    "SamplingParams",
    "Superposed",
    "TreePlan",
    "__version__",
    "decode",
    "load",
]

_HOMES = {
    "Completion": "jakiro.engine.request",
    "Engine": "jakiro.engine.engine",
    "JakiroError": "jakiro.errors",
    "SamplingParams": "jakiro.sampling.params",
    "Superposed": "jakiro.engine.superposed",
    "TreePlan": "jakiro.tree.shapes",
    "decode": "jakiro.custom_generate",
    "load": "jakiro.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
