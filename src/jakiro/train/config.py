"""The settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from jakiro.drafters import registry
from jakiro.errors import ConfigError, UnknownName, check_int


@dataclass(frozen=True)
class HeadOptions:
    """What of a head the target does not decide; the rest is like one of the target's layers.

    ``expert_size``: inner width of an expert (None: that of the target's MLP; published: the hidden
    size). The others are those of ``HeadConfig``; None: what the method says.
    """

    expert_size: int | None = None
    num_experts: int | None = None
    active_experts: int | None = None
    contrast_levels: int | None = None
    contrast_strength: float | None = None
    branches: Literal["sum", "decoupled", "union"] | None = None
    draft_vocab_size: int | None = None
    reads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.expert_size is not None:
            at_least(self, expert_size=1)

    def settings(self) -> dict[str, Any]:
        """What is said here about the kind of a head."""
        names = [field.name for field in fields(self) if field.name != "expert_size"]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


ExpertShare = Literal["gate", "responsibility", "best"]


@dataclass(frozen=True)
class LossOptions:
    """Weights of the parts of the loss.

    ``second_branch``: of what is predicted one position further ahead; its square two further.
    ``balance``: of uneven use of the experts. ``diversity``: of the likeness of decoupled experts'
    features, the mean of ``exp(-d)`` over pairs with d their mean squared distance.
    ``expert_share``: how much the feature of each decoupled expert counts: its weight in the
    ``gate``, what it explains of the target's distribution (``responsibility``), or all for the
    ``best`` at that.
    """

    feature_weight: float = 1.0
    token_weight: float = 0.1
    second_branch: float = 0.5
    balance: float = 0.0
    diversity: float = 0.0
    expert_share: ExpertShare = "responsibility"

    def __post_init__(self) -> None:
        weights = ("feature_weight", "token_weight", "second_branch", "balance", "diversity")
        not_negative(self, *weights)
        if self.expert_share not in get_args(ExpertShare):
            raise ConfigError(
                f"expert_share must be one of {', '.join(get_args(ExpertShare))}, got "
                f"{self.expert_share!r}"
            )


@dataclass(frozen=True)
class OneShotOptions:
    """Of heads that each guess one token ahead: how many, the residual blocks of each, whether
    each ends in a language model head of its own, the weight of each head's loss next to that of
    the one before, and the nodes of the tree that the held-out ranks then recommend."""

    num_heads: int = 4
    num_layers: int = 1
    own_head: bool = True
    decay: float = 0.8
    tree_nodes: int = 63

    def __post_init__(self) -> None:
        at_least(self, num_heads=1, num_layers=0, tree_nodes=1)
        if self.num_layers == 0 and not self.own_head:
            raise ConfigError(
                "num_layers 0 without own_head leaves heads nothing to learn; give num_layers of "
                "at least 1, or own_head"
            )
        not_negative(self, "decay")


@dataclass(frozen=True)
class ModelOptions:
    """Of a draft model: layers, and its widths (None: those of the target). Whatever then has the
    name and shape of a tensor of the target starts as a copy of it. Of an early exit: how many
    layers of the target lie below it."""

    num_layers: int = 2
    hidden_size: int | None = None
    mlp_size: int | None = None

    def __post_init__(self) -> None:
        at_least(self, num_layers=1)
        for name in ("hidden_size", "mlp_size"):
            if getattr(self, name) is not None:
                at_least(self, **{name: 1})


@dataclass(frozen=True)
class AcceptanceOptions:
    """Of a head that predicts acceptance (published: arXiv 2405.19715): the directory of the draft
    model it is for, residual blocks, the share of the text's own tokens in what it reads, how much
    more a rejection weighs, the temperature at which tokens are drawn and accepted (0: first
    choices), and the threshold that the checkpoint recommends."""

    draft_model: str | None = None
    num_blocks: int = 3
    text_share: float = 0.15
    reject_weight: float = 6.0
    temperature: float = 1.0
    threshold: float = 0.3

    def __post_init__(self) -> None:
        at_least(self, num_blocks=0)
        not_negative(self, "reject_weight", "temperature")
        for name in ("text_share", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainConfig:
    """Everything the result depends on besides target and data. Defaults are the published recipe
    (arXiv 2502.06282) where it says something.

    ``optimizer``: AdamW is published; see ``train.optimizers`` for what Muon moves.
    ``steps`` wins over ``epochs``. ``batch_tokens``: padded tokens per step. ``length``: longest
    sample, in tokens. ``noise``: width of the uniform noise on input features at 512 tokens.
    ``unroll``: how many levels deep the head is trained on its own predictions (1: published).
    ``start``: directory of a head of that method whose weights, sizes and advice are gone on from
    (None: random weights), a finished one on other data, for example, or an imported one.
    ``held_out``: samples kept aside for evaluation at every save. ``target_int8``: the target's
    layers in int8, which takes a quarter to half of their memory and changes features a little.
    """

    method: str = "jakiro"
    head: HeadOptions = field(default_factory=HeadOptions)
    one_shot: OneShotOptions = field(default_factory=OneShotOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    acceptance: AcceptanceOptions = field(default_factory=AcceptanceOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    epochs: float = 20.0
    steps: int | None = None
    batch_tokens: int = 8192
    length: int = 2048
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 9e-5
    warmup: int = 2000
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-3
    clip_value: float = 0.5
    noise: float = 0.2
    unroll: int = 1
    start: str | None = None
    seed: int = 0
    save_every: int = 500
    held_out: int = 64
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    target_int8: bool = False

    def __post_init__(self) -> None:
        if self.method not in registry.trainable():
            raise UnknownName("method to train", self.method, registry.trainable())
        if self.optimizer not in ("adamw", "muon"):
            raise ConfigError(f"optimizer must be adamw or muon, got {self.optimizer!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision must be float32 or bfloat16, got {self.precision!r}")
        at_least(self, batch_tokens=1, unroll=1, save_every=1, length=4)
        at_least(self, warmup=0, held_out=0)
        check_int("seed", self.seed, 0, 2**32 - 1)
        if self.steps is not None:
            at_least(self, steps=1)
        for name in ("epochs", "lr", "clip_value"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("epochs", "lr"):
            if math.isinf(getattr(self, name)):
                raise ConfigError(f"{name} must be finite, got {getattr(self, name)}")
        not_negative(self, "weight_decay", "noise")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas must lie in [0, 1), got {self.betas}")


@dataclass(frozen=True)
class Work:
    """How the work of a run is divided: decides about memory and time, not about the result.

    ``accumulate``: parts a process computes one after another for a step. ``recompute``: give up
    what a forward would keep for the backward, and compute it again there. ``shard``: spread the
    network over the processes instead of copying it. ``compile``: what the loss does with logits,
    in one pass over memory (``torch.compile``; needs a C++ compiler). ``device``: of the target and
    the network; ``auto`` splits the target over all GPUs; None: a GPU if there is one.
    """

    accumulate: int = 1
    recompute: bool = False
    shard: bool = False
    compile: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        at_least(self, accumulate=1)


def at_least(options: Any, **least: int) -> None:
    """Raise ``ConfigError`` unless each named field of ``options`` has at least its value."""
    for name, minimum in least.items():
        if not getattr(options, name) >= minimum:
            raise ConfigError(f"{name} must be at least {minimum}, got {getattr(options, name)}")


def not_negative(options: Any, *names: str) -> None:
    """Raise ``ConfigError`` where a named field of ``options`` is below zero or not finite."""
    for name in names:
        if not 0 <= getattr(options, name) < math.inf:
            raise ConfigError(
                f"{name} must be finite and not negative, got {getattr(options, name)}"
            )
