"""What a run will need, said before it starts, and how long it still takes, said while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from jakiro.errors import ConfigError
from jakiro.target.target import Target
from jakiro.train.config import TrainConfig, Work
from jakiro.train.frozen import chunk_bytes
from jakiro.train.learner import Learner
from jakiro.train.optimizers import state_bytes
from jakiro.train.samples import Samples

_WARM_UP = 3
"""Steps that are not timed: they pay for caches, kernels and memory."""
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Cost:
    """Bytes on the device of one process, estimated.

    ``target`` and ``network``: their weights, already there. ``optimizer``: gradients and moments.
    ``kept``: what a forward keeps for the backward, and ``forward``: what the target's forward
    needs for a moment, both for the tokens of a part. ``logits``: what the loss needs for a moment,
    however many tokens there are. ``free``: what the device has left.
    """

    device: str
    target: int
    network: int
    optimizer: int
    kept: int
    forward: int
    logits: int
    free: int

    @property
    def missing(self) -> int:
        """Bytes beyond what is free; negative: to spare."""
        return self.optimizer + self.kept + self.forward + self.logits - self.free

    def __str__(self) -> str:
        parts = ("target", "network", "optimizer", "kept", "forward", "logits")
        sizes = {name: getattr(self, name) for name in parts}
        listed = ", ".join(f"{name} {_size(size)}" for name, size in sizes.items())
        return (
            f"memory on {self.device}: about {_size(sum(sizes.values()))} ({listed}); "
            f"{_size(self.free)} free once target and network are there"
        )

    def check(self, config: TrainConfig, work: Work, can_recompute: bool) -> None:
        """Raise ``ConfigError``, naming what would help, unless it fits."""
        if self.missing <= 0:
            return
        room = self.free - self.optimizer - self.logits
        parts = work.accumulate
        options = [
            *([] if work.shard else ["--shard with torchrun (the network over several GPUs)"]),
            *([] if config.target_int8 else ["--target-int8"]),
        ]
        if room > 0:
            # What a part needs goes with its tokens, by which accumulation divides.
            parts = -(-parts * (self.kept + self.forward) // room)
            tokens = config.batch_tokens * work.accumulate // parts
            lighter = [f"--accumulate {parts}", f"--batch-tokens {tokens}", "a smaller --length"]
            if can_recompute and not work.recompute:
                lighter.append("--recompute")
            if config.precision != "bfloat16":
                lighter.append("--precision bfloat16")
            options = [*lighter, *options]
        raise ConfigError(
            f"training does not fit: {self}; {_size(self.missing)} are missing. "
            f"What would help: {', '.join(options)}"
        )


def free_memory(device: torch.device) -> int:
    """Bytes a process may still take on ``device``; on a CPU within the limit of its container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no limit is the word "max", no container no file
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used + _of_files())
    return free


def _of_files() -> int:
    """Bytes of files that a container keeps in memory, which are given back when wanted."""
    with suppress(OSError, ValueError):
        counts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return sum(int(counts.get(name, 0)) for name in ("active_file", "inactive_file"))
    return 0


def estimate(
    learner: Learner, samples: Samples, training: NDArray[np.int64], work: Work, processes: int
) -> Cost:
    """The cost for each of ``processes``, from a network that is not spread yet.

    What a forward keeps is counted for one and for two of the longest samples and extrapolated to
    the largest part of a step: the rest, such as weights in another type, does not grow.
    """
    target, config = learner.target, learner.config
    longest = training[samples.lengths[training].argmax()]
    length = int(samples.lengths[longest])
    rows = -(-max(1, config.batch_tokens // length) // (work.accumulate * processes))

    def kept(count: int) -> int:
        part = samples.batch([longest] * count)
        part = replace(part, carries_loss=torch.ones_like(part.carries_loss))
        return _saved(lambda: learner.loss(part, learner.counts(part), 0).loss)

    one, two = kept(1), kept(2)
    moments = state_bytes(learner.module, config, target.vocab_size)
    return Cost(
        device=str(target.device),
        target=sum(each.nbytes for each in target.model.parameters()),
        network=sum(each.nbytes for each in learner.module.parameters()),
        optimizer=moments // (processes if work.shard else 1),
        kept=one + (rows - 1) * max(0, two - one),
        forward=_forward_bytes(target, rows * length),
        logits=chunk_bytes(target.device, target.vocab_size),
        free=free_memory(target.device),
    )


def _forward_bytes(target: Target, tokens: int) -> int:
    """What a layer of the target holds at once: a few states, and the insides of its MLP."""
    inner = getattr(target.config, "intermediate_size", None) or 4 * target.hidden_size
    return tokens * target.dtype.itemsize * (8 * target.hidden_size + 3 * int(inner))


def _saved(forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd saves in ``forward``."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    assert loss.requires_grad
    return sum(storages.values())


class Pace:
    """Tokens per second and the time left, once the first steps of this process are over."""

    def __init__(self) -> None:
        self._steps, self._tokens, self._since = 0, 0, 0.0

    def step(self, tokens: int) -> None:
        """Count a step that is just done."""
        self._steps += 1
        if self._steps <= _WARM_UP:
            self._since = time.perf_counter()
        else:
            self._tokens += tokens

    @property
    def tokens_per_s(self) -> float | None:
        """None during the warm-up."""
        if self._steps <= _WARM_UP:
            return None
        return round(self._tokens / (time.perf_counter() - self._since), 1)

    def seconds(self, steps: int) -> float | None:
        """How long ``steps`` more take; None during the warm-up."""
        if self._steps <= _WARM_UP:
            return None
        return steps * (time.perf_counter() - self._since) / (self._steps - _WARM_UP)


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 1 << 28 else f"{count / 2**20:.1f} MiB"
