"""The training loop: a function of (config, data, step), so that a resumed run is the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jakiro.drafters.registry import find
from jakiro.errors import ConfigError
from jakiro.hub import checkpoint
from jakiro.target.target import Target
from jakiro.train.config import TrainConfig, Work
from jakiro.train.cost import Pace, estimate
from jakiro.train.history import History, draw
from jakiro.train.learner import Learner, Tally, add_up, readings
from jakiro.train.optimizers import optimizers
from jakiro.train.processes import Processes
from jakiro.train.samples import Epoch, Samples
from jakiro.train.state import State, is_spread, spread, whole_weights

STATE_FILE, HISTORY_FILE, PLOT_FILE = "training.pt", "history.jsonl", "curves.png"
_ALONE = Processes()


@dataclass(frozen=True)
class Progress:
    """What a step reports. ``readings`` are the learner's, of the step's own batch;
    ``tokens_per_s`` counts real tokens, not padding, of all processes, and like ``seconds_left``
    leaves out the first steps, which are slow, and is None during them."""

    step: int
    num_steps: int
    loss: float
    readings: dict[str, Any]
    tokens_per_s: float | None
    seconds_left: float | None


class Trainer:
    """Trains what ``config.method`` names for ``target`` on ``samples`` and leaves everything in
    ``out``: the checkpoint, ``training.pt`` to go on from, ``history.jsonl`` and ``curves.png``.

    A step is over the same batch, and a run therefore the same run, however ``work`` and
    ``processes`` divide it. A run that finds a ``training.pt`` continues it; a different config,
    data set or target then raises ``ConfigError`` or ``PairMismatch``. One that diverges raises
    ``ConfigError`` and leaves what it saved before.
    """

    def __init__(
        self,
        target: Target,
        samples: Samples,
        config: TrainConfig,
        out: Path,
        work: Work = Work(),  # noqa: B008  frozen
        processes: Processes = _ALONE,
    ) -> None:
        self.config, self.out, self._target, self._samples = config, Path(out), target, samples
        self._work, self._processes = work, processes
        self.learner: Learner = find(config.method).load_learner()(target, config)
        if work.recompute and not self.learner.can_recompute:
            raise ConfigError(
                f"training of {config.method} keeps little that could be computed again; leave out "
                "--recompute"
            )
        self.learner.recompute = work.recompute
        if work.compile:
            self.learner.compile("inductor")
        if work.shard and processes.count == 1:
            raise ConfigError("sharding needs several processes; start them with torchrun")
        self._training, held_out = samples.split(config.held_out, config.seed)
        self._held_out = samples.epoch(held_out, config.batch_tokens, (config.seed,))
        with self._autocast():
            self.cost = estimate(self.learner, samples, self._training, work, processes.count)
        self.cost.check(config, work, self.learner.can_recompute)
        if work.shard:
            spread(self.learner.module)
        module = self.learner.module
        self._optimizers = optimizers(module, config, target.vocab_size)
        self._state = State(self.out / STATE_FILE, module, self._optimizers, processes)
        self.num_steps = config.steps or self._steps_of_epochs()
        self.step = 0
        self._history = History(self.out / HISTORY_FILE)

    def run(self, report: Callable[[Progress], None] = lambda progress: None) -> None:
        """Train to the last step, saving at every interval and at the end."""
        self._resume()
        is_gone = not any(self.out.glob(f"{checkpoint.WEIGHTS_FILE}*"))
        self._processes.wait()  # before the first of them writes it
        if is_gone and self.step == self.num_steps:
            self._save()
        self.learner.module.train()
        pace = Pace()
        for indices in self._batches():
            loss, tally = self._step(indices)
            self.step += 1
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss}")
            pace.step(int(self._samples.lengths[indices].sum()))
            progress = Progress(
                self.step,
                self.num_steps,
                loss,
                readings(tally),
                pace.tokens_per_s,
                pace.seconds(self.num_steps - self.step),
            )
            self._add(self._record(progress))
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

    def _step(self, indices: NDArray[np.int64]) -> tuple[float, Tally]:
        """One update; every process computes its own parts of the batch."""
        module, processes = self.learner.module, self._processes
        seed = self.config.seed * 1_000_003 + self.step
        every = slice(processes.rank, None, processes.count)
        parts = self._samples.parts(indices, self._work.accumulate * processes.count, every)
        counts = torch.stack([self.learner.counts(part) for part in parts]).sum(0)
        totals = processes.sum(counts)
        tallies = []
        for part in parts:
            with self._autocast():
                loss, tally = self.learner.loss(part, totals, seed)
            # A module that is spread adds up its gradients by itself, and takes their mean.
            (loss * processes.count if is_spread(module) else loss).backward()
            tallies.append({**tally, "loss": loss.detach()[None]})
        if not is_spread(module):
            processes.sum_gradients(module)
        nn.utils.clip_grad_value_(module.parameters(), self.config.clip_value)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(self.step)
            optimizer.step()
            optimizer.zero_grad()
        tally = processes.sum_tally(add_up(tallies))
        return tally.pop("loss").item(), tally

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self._target.device.type, torch.bfloat16, enabled=enabled)

    # -- data ---------------------------------------------------------------------------------

    def _epoch(self, number: int) -> Epoch:
        seed = (self.config.seed, number)
        return self._samples.epoch(self._training, self.config.batch_tokens, seed)

    def _steps_of_epochs(self) -> int:
        whole, part = divmod(self.config.epochs, 1)
        steps = sum(len(self._epoch(number)) for number in range(int(whole)))
        return max(1, steps + int(part * len(self._epoch(int(whole)))))

    def _batches(self) -> Iterator[NDArray[np.int64]]:
        """The samples of the steps still to do."""
        number, passed = 0, 0
        while passed < self.num_steps:
            epoch = self._epoch(number)
            first = max(0, self.step - passed)
            for place in range(first, min(len(epoch), self.num_steps - passed)):
                yield epoch[place]
            passed += len(epoch)
            number += 1

    # -- files --------------------------------------------------------------------------------

    def _record(self, progress: Progress) -> dict[str, Any]:
        """A line of the history."""
        return {
            "step": progress.step,
            "loss": progress.loss,
            **progress.readings,
            "lr": self.learning_rate(self.step - 1),
            "tokens_per_s": progress.tokens_per_s,
        }

    def _add(self, record: dict[str, Any]) -> None:
        if self._processes.is_first:
            self._history.add(record)

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        samples = self._samples
        data = {"samples": len(samples), "tokens": samples.num_tokens, "data": samples.digest}
        return {**asdict(self.config), **self.learner.identity(), **data}

    def _resume(self) -> None:
        state = self._state.read()
        if state is not None:
            path, stored = self._state.path, state["identity"]
            checkpoint.check_target(path, state["target"], self._target.fingerprint())
            # A setting added since that save has a default under which the run is what it was.
            before = _flat(asdict(TrainConfig())) | _flat(stored)
            for name, value in _flat(self._identity()).items():
                if before.get(name) != value:
                    raise ConfigError(
                        f"{path} belongs to another run: {name} was {before.get(name)!r}, now "
                        f"{value!r}; use the old setting, or another --out"
                    )
            self._state.restore(state)
            self.step = int(state["step"])
        if self._processes.is_first:
            self._history.keep(self.step)

    def _diverged(self, how: str) -> ConfigError:
        """What to raise, before anything is written."""
        return ConfigError(
            f"{how} at step {self.step}: training has diverged. What was saved before stays; start "
            f"again in another directory with a lower --lr than {self.config.lr:g}"
        )

    @torch.no_grad()
    def _judge(self) -> dict[str, Any]:
        """Quality on the held-out samples."""
        processes = self._processes
        self.learner.module.eval()
        own = slice(processes.rank, processes.rank + 1)
        tallies = []
        for number in range(len(self._held_out)):
            (part,) = self._samples.parts(self._held_out[number], processes.count, own)
            with self._autocast():
                tallies.append(self.learner.judge(part))
        self.learner.module.train()
        return readings(processes.sum_tally(add_up(tallies)))

    def _save(self) -> None:
        """Evaluate, then write the checkpoint and the state; the state last, each whole or not at
        all."""
        notes: dict[str, Any] = {"step": self.step, "training": asdict(self.config)}
        weights = whole_weights(self.learner.module)
        if not all(weight.isfinite().all() for weight in weights.values()):
            raise self._diverged("weights are not finite")
        if len(self._held_out):
            notes["held_out"] = self._judge()
            self._add({"step": self.step, "held_out": notes["held_out"]})
        if self._processes.is_first:
            whole = self.learner.build()
            whole.load_state_dict(weights)
            self.learner.save(whole, self.out, notes)
        target = self._target.fingerprint()
        self._state.save({"identity": self._identity(), "target": target, "step": self.step})
        if self._processes.is_first:
            draw(self._history.read(), self.out / PLOT_FILE)


def _flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Groups of settings as settings of longer names, ``head.expert_size``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= (
            _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
        )
    return flat
