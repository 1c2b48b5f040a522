"""A whole training run, from a target and data files to a head on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jakiro.api import load
from jakiro.errors import CheckpointError, ConfigError
from jakiro.sampling.params import SamplingParams
from jakiro.train.config import TrainConfig
from jakiro.train.data import Samples, read, tokenise
from jakiro.train.regenerate import regenerate
from jakiro.train.trainer import Progress, Trainer

ANSWERS_FILE = "regenerated.jsonl"


@dataclass(frozen=True)
class Reports:
    """Who is told of the progress: answers done of how many, and every training step."""

    answers: Callable[[int, int], None]
    step: Callable[[Progress], None]


def train(
    target: str | Path,
    data: Sequence[Path],
    out: Path,
    config: TrainConfig,
    answers: SamplingParams | None,
    reports: Reports,
) -> None:
    """Train a head for ``target`` (a directory or a hub name) on the JSONL files ``data`` and
    leave it in ``out``; see ``Trainer``. With ``answers`` the target first writes its own answers
    to the conversations, sampled so. Both parts go on where an earlier run into ``out`` stopped.
    """
    if not data:
        raise ConfigError("no data: give at least one JSONL file")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write to {out}: {error}") from error
    records = list(read(data))
    # Autocast narrows what it should. Loading the target narrower than it is stored would change
    # its embedding, and with it the fingerprint.
    dtype = "float32" if config.precision == "float32" else None
    engine = load(target, "none", dtype=dtype, max_batch_size=32)
    length = min(config.length, engine.target.context_length)
    if answers is not None:
        records = list(regenerate(engine, records, out / ANSWERS_FILE, answers, reports.answers))
    samples = Samples(tokenise(records, engine.tokenizer, length))
    Trainer(engine.target, samples, config, out).run(reports.step)
