"""What is learned, apart from the loop that learns it: one subclass per kind of drafter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jakiro.errors import ConfigError
from jakiro.target.target import Target
from jakiro.train.config import TrainConfig
from jakiro.train.samples import Batch, Samples

Tally = dict[str, Tensor]
"""Named measures [2, K]: what was summed, and over how much. Tallies of disjoint batches add up.

``alpha`` is common to all learners: of the greedy chains (or paths) that start at every position,
how many were accepted at each depth, and how many got there and had a token left to be judged at.
"""


METHOD_OPTIONS = frozenset(
    {"acceptance", "head", "loss", "model", "noise", "one_shot", "start", "unroll"}
)
"""Settings of a ``TrainConfig`` that only some methods have."""


class Outcome(NamedTuple):
    """``loss``: the scalar to minimise. ``tally``: what a line of the history says of it."""

    loss: Tensor
    tally: Tally


class Learner(ABC):
    """Builds a network for ``target`` and says how wrong it is.

    The loop owns everything else: data, optimiser, schedule, checkpoints, processes. It may spread
    ``module`` over processes, so ``loss`` and ``judge`` call ``module`` itself and nothing inside.
    """

    module: nn.Module
    options: frozenset[str]
    """Which of ``METHOD_OPTIONS`` it reads."""
    recompute: bool = False
    """Whether ``loss`` computes again in the backward what its forward would have to keep."""
    can_recompute: bool = True
    """Whether there is enough of that to ask for it."""

    def __init__(self, target: Target, config: TrainConfig) -> None:
        self.target, self.config = target, config
        usual = TrainConfig()
        for name in sorted(METHOD_OPTIONS - self.options):
            if (got := getattr(config, name)) != getattr(usual, name):
                raise ConfigError(
                    f"training of {config.method} has no use for {name}, got {got}; leave it as it "
                    f"is by default, {getattr(usual, name)}"
                )
        torch.manual_seed(config.seed)
        self.module = self.build().to(target.device)

    def compile(self, backend: str) -> None:
        """Compile what pays, from now on, by a ``backend`` of ``torch.compile``. Raises
        ``ConfigError`` where nothing does."""
        raise ConfigError(
            f"training of {self.config.method} has nothing that is compiled; leave out --compile"
        )

    @abstractmethod
    def build(self) -> nn.Module:
        """A new network of the sizes that target and config ask for, in float32."""

    def identity(self) -> dict[str, Any]:
        """Settings of the config that say less than they depend on, said fully: what must be the
        same for a run to be continued."""
        return {}

    def prepare(  # noqa: B027  most have nothing to learn from it
        self, samples: Samples, special: Collection[int]
    ) -> None:
        """Learn what the data are, and which of their tokens are ``special``; called once, before a
        new run and one that goes on."""

    @abstractmethod
    def counts(self, batch: Batch) -> Tensor:
        """[K] float64 on the CPU: over how many terms each of the K means of the loss goes. Added
        up over all parts of a step, they come back as the ``totals`` of ``loss``."""

    @abstractmethod
    def loss(self, batch: Batch, totals: Tensor, seed: int) -> Outcome:
        """The share of ``batch`` in the loss of a step: every sum divided by its entry of
        ``totals`` [K], so that the losses of the parts of a step add up to the loss of the whole.
        What is random depends on ``seed`` and on ``batch.indices``, never on the rest of the
        batch."""

    @abstractmethod
    def judge(self, batch: Batch) -> Tally:
        """Quality on texts that were not trained on; holds at least ``alpha``."""

    @abstractmethod
    def save(self, module: nn.Module, directory: Path, notes: Mapping[str, Any]) -> None:
        """Write ``module``, a whole network as ``build`` makes it, to ``directory`` so that
        ``jakiro.load(target, directory)`` opens it; each file whole or not at all. Raises
        ``CheckpointError``."""


def add_up(tallies: Iterable[Tally]) -> Tally:
    """The sum of tallies of the same names."""
    total: Tally = {}
    for tally in tallies:
        for name, counted in tally.items():
            total[name] = total[name] + counted if name in total else counted
    return total


def readings(tally: Tally) -> dict[str, Any]:
    """Every measure as a list of ratios, and ``tau``: the tokens per verification that ``alpha``
    promises."""
    ratios: dict[str, Any] = {
        name: (part / whole.clamp_min(1)).tolist() for name, (part, whole) in tally.items()
    }
    if "alpha" in tally:
        ratios["tau"] = chain_tau(tally["alpha"])
    return ratios


def chain_tau(levels: Tensor) -> float:
    """Expected tokens per verification, ``1 + a_1 + a_1 a_2 + ...``, from an ``alpha`` [2, D]."""
    return 1.0 + float((levels[0] / levels[1].clamp_min(1)).cumprod(0).sum())
