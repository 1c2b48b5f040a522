"""The record of a run: one JSON line per step and per evaluation, and the curves drawn from it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from jakiro.errors import CheckpointError
from jakiro.hub.files import replace_files

Records = list[dict[str, Any]]


class History:
    """A JSONL file. Lines of steps carry ``loss`` and more, lines of evaluations ``held_out``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, record: dict[str, Any]) -> None:
        """Append a record; it outlives a kill of the process."""
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error}") from error

    def read(self) -> Records:
        """All records. A last line that a kill cut short is left out; any other that is no record
        raises ``CheckpointError``."""
        try:
            lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        except OSError as error:
            raise CheckpointError(f"cannot read {self._path}: {error}") from error
        records: Records = []
        for number, line in enumerate(lines, start=1):
            record = _record(line)
            if record is not None:
                records.append(record)
            elif number < len(lines):
                raise CheckpointError(
                    f"{self._path}, line {number} is no record of a step: {line[:60]!r}; remove "
                    "that line, or the whole file to go on without what it tells"
                )
        return records

    def keep(self, step: int) -> None:
        """Drop the records after ``step``, whose steps are about to be done again."""
        kept = [json.dumps(record) + "\n" for record in self.read() if record["step"] <= step]
        replace_files({self._path: lambda path: path.write_text("".join(kept))})


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if it is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def draw(records: Records, path: Path) -> bool:
    """Draw loss, accuracy and τ over the steps as a PNG. False: matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    steps = [record for record in records if "loss" in record]
    marks = [record for record in records if "held_out" in record]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, accuracy, tau = figure.subplots(1, 3)
    _line(loss, "loss", steps, [record["loss"] for record in steps])
    branches = ("next token", "token after next")
    for branch, name in enumerate(branches[: len(steps[0]["accuracy"])] if steps else []):
        _line(accuracy, name, steps, [record["accuracy"][branch] for record in steps])
        held_out = [record["held_out"]["accuracy"][branch] for record in marks]
        accuracy.plot(
            [record["step"] for record in marks], held_out, "o", label=f"{name}, held out"
        )
    _line(tau, "τ of the batch, as deep as unrolled", steps, [record["tau"] for record in steps])
    held_out = [record["held_out"]["tau"] for record in marks]
    tau.plot([record["step"] for record in marks], held_out, "o", label="τ, held out")
    for axes, title in ((loss, "loss"), (accuracy, "top-1 agreement"), (tau, "simulated τ")):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.legend(fontsize="small")
    replace_files({path: lambda place: figure.savefig(place, format="png", dpi=120)})
    return True


def _line(axes: Any, name: str, records: Records, values: list[float]) -> None:
    """A curve, smoothed over a fiftieth of the run: single batches are noisy."""
    width = max(1, len(values) // 50)
    smooth, total = [], 0.0
    for place, value in enumerate(values):
        total += value - (values[place - width] if place >= width else 0.0)
        smooth.append(total / min(place + 1, width))
    axes.plot([record["step"] for record in records], smooth, label=name)
