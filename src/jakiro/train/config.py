"""The settings of a training run, and the sizes of the head they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jakiro.drafters.nn import EXPERTS, HeadConfig
from jakiro.errors import ConfigError, UnknownName
from jakiro.target.target import Target


@dataclass(frozen=True)
class TrainConfig:
    """Defaults are the published recipe (arXiv 2502.06282) where it says something.

    ``expert_size``: inner width of an expert (None: that of the target's MLP; published: the hidden
    size). ``steps`` wins over ``epochs``. ``batch_tokens``: padded tokens per step. ``length``:
    longest sample, in tokens. ``noise``: width of the uniform noise on input features at 512
    tokens. ``unroll``: how many levels deep the head is trained on its own predictions (1:
    published). ``held_out``: samples kept aside for evaluation at every save.
    """

    method: str = "jakiro"
    expert_size: int | None = None
    epochs: float = 20.0
    steps: int | None = None
    batch_tokens: int = 8192
    length: int = 2048
    lr: float = 9e-5
    warmup: int = 2000
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-3
    clip_value: float = 0.5
    noise: float = 0.2
    feature_weight: float = 1.0
    token_weight: float = 0.1
    second_branch: float = 0.5
    unroll: int = 1
    seed: int = 0
    save_every: int = 500
    held_out: int = 64
    precision: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.method not in EXPERTS:
            raise UnknownName("head method", self.method, list(EXPERTS))
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision must be float32 or bfloat16, got {self.precision!r}")
        counts = ("batch_tokens", "unroll", "save_every")
        least = {**dict.fromkeys(counts, 1), "length": 4, "warmup": 0, "held_out": 0, "seed": 0}
        for name in ("steps", "expert_size"):
            if getattr(self, name) is not None:
                least[name] = 1
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
        for name in ("epochs", "lr", "clip_value"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        weights = ("feature_weight", "token_weight", "second_branch")
        for name in (*weights, "weight_decay", "noise"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas must lie in [0, 1), got {self.betas}")

    @property
    def contrast(self) -> bool:
        """Whether the second branch is trained."""
        return EXPERTS[self.method] == 2


def head_config(target: Target, config: TrainConfig) -> HeadConfig:
    """Sizes of a head for ``target``: attention like one of its layers."""
    model: Any = target.config
    heads = int(model.num_attention_heads)
    head_dim = getattr(model, "head_dim", None) or target.hidden_size // heads
    inner = getattr(model, "intermediate_size", None) or 4 * target.hidden_size
    return HeadConfig(
        method=config.method,
        hidden_size=target.hidden_size,
        num_heads=heads,
        num_kv_heads=int(getattr(model, "num_key_value_heads", None) or heads),
        head_dim=int(head_dim),
        expert_size=config.expert_size or int(inner),
        vocab_size=target.vocab_size,
        rope_theta=_rope_theta(model),
        rms_norm_eps=float(getattr(model, "rms_norm_eps", None) or 1e-6),
    )


def _rope_theta(model: Any) -> float:
    """The rotary base of the target; of its global layers where layer types differ."""
    rope = getattr(model, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    return float(rope.get("rope_theta") or 10000.0)
