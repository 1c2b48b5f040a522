"""Several processes that train one network, as ``torchrun`` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jakiro.train.learner import Tally

_PATIENCE = timedelta(days=1)
"""How long a process waits for another; the first one prepares the data of all."""


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many. With one process nothing here does anything."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.sum(torch.zeros(1))

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor``, now the sum over all processes."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_tally(self, tally: Tally) -> Tally:
        """A tally of all processes, in float64 on the CPU."""
        whole = {name: measure.cpu().double() for name, measure in tally.items()}
        flat = self.sum(torch.cat([measure.flatten() for measure in whole.values()]))
        parts = flat.split([measure.numel() for measure in whole.values()])
        return {
            name: part.view_as(measure)
            for (name, measure), part in zip(whole.items(), parts, strict=True)
        }

    def sum_gradients(self, module: nn.Module) -> None:
        """Add up the gradients of copies of one module; one message, since a head is small."""
        if self.count == 1:
            return
        parameters = [each for each in module.parameters() if each.requires_grad]
        for each in parameters:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        gradients = [each.grad for each in parameters if each.grad is not None]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started beside this one; alone there is no one to join.

    Each process takes the GPU of its local rank as current device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
