"""What a run needs to go on: weights and optimisers, in one file or in shards.

One file for copies of one module. A module that is spread over processes is written by all of them
at once, each its own shards, into a directory beside that file; the file then names the directory
and is written last, so that a kill leaves the old state or the new one. Either can be read by any
number of processes.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.fsdp import FSDPModule, fully_shard

from jakiro.errors import CheckpointError
from jakiro.hub.files import replace_files
from jakiro.train.processes import Processes

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def spread(module: nn.Module) -> None:
    """Spread the parameters of ``module`` over all processes (FSDP2): each holds a share of every
    one, its gradient and its optimiser state, and gathers a block only while it computes."""
    # What a block returns is never changed in place, view or not.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    for block in _blocks(module):
        fully_shard(block)
    fully_shard(module)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The members of the outermost module lists."""
    blocks: list[nn.Module] = []
    for child in module.children():
        blocks += child.children() if isinstance(child, nn.ModuleList) else _blocks(child)
    return blocks


def is_spread(module: nn.Module) -> bool:
    """Whether each process holds a share of ``module`` only."""
    return isinstance(module, FSDPModule)


def whole_weights(module: nn.Module) -> dict[str, Any]:
    """The weights of a module on the CPU; of one that is spread over processes, all take part and
    the first gets them (the others an empty dict)."""
    return dict(get_model_state_dict(module, options=_WHOLE))


@dataclass(frozen=True)
class State:
    """The state of a run in the file ``path``."""

    path: Path
    module: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    processes: Processes

    def save(self, head: dict[str, Any]) -> None:
        """Write weights and optimisers, and ``head``, plain values of the run. All processes call
        it together."""
        if is_spread(self.module):
            name = f"{self.path.stem}-{head['step']}"
            self._save_shards(self.path.with_name(name))
            head = {**head, "shards": name}
        elif self.processes.is_first:
            weights, optimizer = get_state_dict(self.module, self.optimizers, options=_WHOLE)
            head = {**head, "weights": weights, "optimizer": optimizer}
        if self.processes.is_first:
            replace_files({self.path: partial(_write, head)})
            for found in self.path.parent.glob(f"{self.path.stem}-*"):
                # Others are directories of the user.
                is_ours = found.name.removeprefix(f"{self.path.stem}-").isdecimal()
                is_ours &= any(found.glob("*.distcp"))
                if is_ours and found.name != head.get("shards"):
                    shutil.rmtree(found, ignore_errors=True)
        self.processes.wait()

    def _save_shards(self, directory: Path) -> None:
        weights, optimizer = get_state_dict(self.module, self.optimizers)
        try:
            save_shards({"weights": weights, "optimizer": optimizer}, checkpoint_id=directory)
        except Exception as error:  # a failure of any process, wrapped
            raise CheckpointError(f"cannot save {directory}: {error}") from error

    def read(self) -> dict[str, Any] | None:
        """What ``save`` was given and its weights or the name of its shards; None if there is no
        state. Raises ``CheckpointError``."""
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            missing = {"identity", "target", "step"} - set(state)
            if missing or not ("shards" in state or {"weights", "optimizer"} <= set(state)):
                raise ValueError("entries are missing")
        except Exception as error:  # a damaged archive raises many kinds
            raise CheckpointError(
                f"{self.path} is damaged ({error}); delete it to start again"
            ) from error
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Put weights and optimisers of a ``state`` that was read in place."""
        options = StateDictOptions(full_state_dict="shards" not in state)
        if "shards" in state:
            weights, optimizer = get_state_dict(self.module, self.optimizers)
            state = {**state, "weights": weights, "optimizer": optimizer}
            parts = {name: state[name] for name in ("weights", "optimizer")}
            directory = self.path.with_name(state["shards"])
            try:
                with warnings.catch_warnings():
                    # One process may well go on where several stopped.
                    warnings.filterwarnings("ignore", "torch.distributed is disabled")
                    load_shards(parts, checkpoint_id=directory)
            except Exception as error:
                raise CheckpointError(
                    f"{directory} is damaged ({error}); delete it and {self.path} to start again"
                ) from error
        set_state_dict(
            self.module,
            self.optimizers,
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizer"],
            options=options,
        )


def _write(state: dict[str, Any], path: Path) -> None:
    # Through a file of ours, so that a full disk is reported as one.
    with path.open("wb") as file:
        torch.save(state, file)
