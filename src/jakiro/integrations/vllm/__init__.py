"""vLLM: heads of ``jakiro export --format eagle-vllm`` under its method ``eagle``.

vLLM finds ``register`` by the entry point ``vllm.general_plugins`` and calls it in each of its
processes. It drafts chains only, by the sum of the experts: neither tree nor contrast.
"""

from __future__ import annotations

ARCHITECTURE = "EagleJakiroLlamaForCausalLM"
"""What an exported head names as its model class."""


def register() -> None:
    """Tell vLLM which class runs an exported head; the class is imported when one is loaded."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.head:{ARCHITECTURE}")
