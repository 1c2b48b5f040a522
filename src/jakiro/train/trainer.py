"""The training loop: a function of (config, data, step), so that a resumed run is the same run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jakiro.drafters.registry import find
from jakiro.errors import CheckpointError, ConfigError
from jakiro.hub import checkpoint
from jakiro.hub.files import replace_files
from jakiro.target.target import Target
from jakiro.train.config import TrainConfig
from jakiro.train.data import Batch, Samples
from jakiro.train.history import History, draw
from jakiro.train.learner import Learner, Tally, add_up, readings

STATE_FILE, HISTORY_FILE, PLOT_FILE = "training.pt", "history.jsonl", "curves.png"


@dataclass(frozen=True)
class Progress:
    """What a step reports. ``readings`` are the learner's, of the step's own batch;
    ``tokens_per_s`` counts real tokens, not padding."""

    step: int
    num_steps: int
    loss: float
    readings: dict[str, Any]
    tokens_per_s: float


class Trainer:
    """Trains what ``config.method`` names for ``target`` on ``samples`` and leaves everything in
    ``out``: the checkpoint, ``training.pt`` to go on from, ``history.jsonl`` and ``curves.png``.

    A run that finds a ``training.pt`` continues it; a different config, data set or target then
    raises ``ConfigError`` or ``PairMismatch``.
    """

    def __init__(self, target: Target, samples: Samples, config: TrainConfig, out: Path) -> None:
        self.config, self.out, self._target, self._samples = config, Path(out), target, samples
        self._learner: Learner = find(config.method).load_learner()(target, config)
        self._optimizer = torch.optim.AdamW(
            self._learner.module.parameters(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._training, held_out = samples.split(config.held_out, config.seed)
        self._held_out = [
            samples.batch(indices)
            for indices in samples.epoch(held_out, config.batch_tokens, (config.seed,))
        ]
        self.num_steps = config.steps or self._steps_of_epochs()
        self.step = 0
        self._history = History(self.out / HISTORY_FILE)

    def run(self, report: Callable[[Progress], None] = lambda progress: None) -> None:
        """Train to the last step, saving at every interval and at the end."""
        self._resume()
        self._learner.module.train()
        for batch in self._batches():
            began = time.perf_counter()
            loss, tally = self._step(batch)
            self.step += 1
            progress = Progress(
                self.step,
                self.num_steps,
                loss,
                readings(tally),
                float(batch.lengths.sum()) / (time.perf_counter() - began),
            )
            self._history.add(self._record(progress))
            report(progress)
            if self.step % self.config.save_every == 0 or self.step == self.num_steps:
                self._save()

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero at the last step."""
        config = self.config
        if step < config.warmup:
            return config.lr * (step + 1) / config.warmup
        share = (step - config.warmup) / max(1, self.num_steps - config.warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    # -- one step -----------------------------------------------------------------------------

    def _step(self, batch: Batch) -> tuple[float, Tally]:
        config = self.config
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        seed = config.seed * 1_000_003 + self.step
        with self._autocast():
            loss, tally = self._learner.loss(batch, self._learner.counts(batch), seed)
        loss.backward()
        nn.utils.clip_grad_value_(self._learner.module.parameters(), config.clip_value)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item(), tally

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self._target.device.type, torch.bfloat16, enabled=enabled)

    def _record(self, progress: Progress) -> dict[str, Any]:
        """A line of the history."""
        return {
            "step": progress.step,
            "loss": progress.loss,
            **progress.readings,
            "lr": self.learning_rate(self.step - 1),
            "tokens_per_s": round(progress.tokens_per_s),
        }

    # -- data ---------------------------------------------------------------------------------

    def _epoch(self, number: int) -> list[list[int]]:
        seed = (self.config.seed, number)
        return self._samples.epoch(self._training, self.config.batch_tokens, seed)

    def _steps_of_epochs(self) -> int:
        whole, part = divmod(self.config.epochs, 1)
        steps = sum(len(self._epoch(number)) for number in range(int(whole)))
        return max(1, steps + int(part * len(self._epoch(int(whole)))))

    def _batches(self) -> Iterator[Batch]:
        """The batches of the steps still to do."""
        number, passed = 0, 0
        while passed < self.num_steps:
            epoch = self._epoch(number)
            for indices in epoch[max(0, self.step - passed) :][: self.num_steps - self.step]:
                yield self._samples.batch(indices)
            passed += len(epoch)
            number += 1

    # -- files --------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        tokens = int(self._samples.lengths.sum())
        return {**asdict(self.config), "samples": len(self._samples), "tokens": tokens}

    def _resume(self) -> None:
        path = self.out / STATE_FILE
        if not path.exists():
            self._history.keep(0)
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            stored, target, step = state["identity"], state["target"], int(state["step"])
            head, optimizer = state["head"], state["optimizer"]
        except Exception as error:  # a damaged archive raises many kinds
            raise CheckpointError(
                f"{path} is damaged ({error}); delete it to start again"
            ) from error
        checkpoint.check_target(path, target, self._target.fingerprint())
        for name, value in self._identity().items():
            if stored.get(name) != value:
                raise ConfigError(
                    f"{path} belongs to another run: {name} was {stored.get(name)!r}, now "
                    f"{value!r}; use the old setting, or another --out"
                )
        self._learner.module.load_state_dict(head)
        self._optimizer.load_state_dict(optimizer)
        self.step = step
        self._history.keep(step)

    @torch.no_grad()
    def _judge(self) -> dict[str, Any]:
        """Quality on the held-out samples."""
        self._learner.module.eval()
        with self._autocast():
            quality = readings(add_up(self._learner.judge(batch) for batch in self._held_out))
        self._learner.module.train()
        return quality

    def _save(self) -> None:
        """Evaluate, then write the head and the state; the state last, each whole or not at all."""
        notes: dict[str, Any] = {"step": self.step, "training": asdict(self.config)}
        if self._held_out:
            notes["held_out"] = self._judge()
            self._history.add({"step": self.step, "held_out": notes["held_out"]})
        module = self._learner.module
        self._learner.save(module, self.out, notes)
        state = {
            "identity": self._identity(),
            "target": self._target.fingerprint(),
            "step": self.step,
            "head": module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        replace_files({self.out / STATE_FILE: partial(_write_state, state)})
        draw(self._history.read(), self.out / PLOT_FILE)


def _write_state(state: dict[str, Any], path: Path) -> None:
    # Through a file of ours, so that a full disk is reported as one.
    with path.open("wb") as file:
        torch.save(state, file)
