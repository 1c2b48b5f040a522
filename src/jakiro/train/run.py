"""A whole training run, from a target and data files to a checkpoint on disk."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from jakiro.api import load
from jakiro.engine.engine import Engine
from jakiro.errors import ConfigError, DataError
from jakiro.hub.bundled import target_location
from jakiro.hub.models import check_tokenizer
from jakiro.sampling.params import SamplingParams
from jakiro.train.config import TrainConfig, Work
from jakiro.train.cost import Cost
from jakiro.train.data import Records, check_fast, tokenise
from jakiro.train.place import claimed
from jakiro.train.processes import Processes, joined
from jakiro.train.regenerate import answered, regenerate
from jakiro.train.samples import Piece, Samples, opened, stored
from jakiro.train.trainer import Progress, Trainer
from jakiro.train.vocabulary import special_tokens

ANSWERS_FILE = "regenerated.jsonl"


@dataclass(frozen=True)
class Reports:
    """Who is told of the progress: answers done of how many, the cost of the training before it
    starts, and its every step. Of several processes only the first tells."""

    answers: Callable[[int, int], None]
    cost: Callable[[Cost], None]
    step: Callable[[Progress], None]


def train(
    target: str | Path,
    data: Sequence[Path],
    out: Path,
    config: TrainConfig,
    answers: SamplingParams | None,
    reports: Reports,
    work: Work = Work(),  # noqa: B008  frozen
) -> None:
    """Train what ``config.method`` names for ``target`` (a directory or a hub name) on the JSONL
    files ``data`` and leave it in ``out``; see ``Trainer``. With ``answers`` the target first
    writes its own answers to the conversations, sampled so. Both parts go on where an earlier run
    into ``out`` stopped. Processes started by ``torchrun`` share the work. Raises
    ``CheckpointError`` for a target's directory without a tokenizer, and what ``claimed`` and
    ``Trainer`` raise.
    """
    if not data:
        raise ConfigError("no data: give at least one JSONL file")
    if config.start is not None and Path(config.start).resolve() == out.resolve():
        raise ConfigError(
            f"{out} is the head to start from and would be written over; give another directory"
        )
    check_tokenizer(target_location(target))
    records = Records(data)
    with joined() as processes, claimed(out) if processes.is_first else nullcontext():
        engine = _load(target, config, work, processes)
        check_fast(engine.tokenizer)
        if answers is not None and processes.is_first:
            regenerate(engine, records, out / ANSWERS_FILE, answers, reports.answers)
        processes.wait()
        samples = _samples(engine, records, out, config, answers, processes)
        trainer = Trainer(engine.target, samples, config, out, work, processes)
        trainer.learner.prepare(samples, special_tokens(engine))
        if processes.is_first:
            reports.cost(trainer.cost)
        trainer.run(reports.step if processes.is_first else lambda progress: None)


def _load(target: str | Path, config: TrainConfig, work: Work, processes: Processes) -> Engine:
    """The target without a drafter; each of several processes has its own."""
    if processes.count > 1 and work.device is not None:
        raise ConfigError(
            f"device {work.device!r} with {processes.count} processes: each of them takes the GPU "
            "of its number, or the CPU where there is none; leave the device out"
        )
    device = work.device
    if device is None:
        device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    is_split = device == "auto"
    # Autocast narrows what it should. Loading the target narrower than it is stored would change
    # its embedding, and with it the fingerprint.
    dtype = "float32" if config.precision == "float32" else None
    try:
        engine = load(
            target,
            "none",
            dtype=dtype,
            device=None if is_split else "cpu" if config.target_int8 else device,
            device_map="auto" if is_split else None,
            max_batch_size=32,
        )
        if not config.target_int8:
            return engine
        model = quantised(engine.target.model)
        placed = model if is_split else model.to(device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the target does not fit on {device}; --target-int8 makes it smaller, --device auto "
            "splits it over all GPUs"
        ) from error
    return load(placed, "none", tokenizer=engine.tokenizer, max_batch_size=32)


def quantised(model: Any) -> Any:
    """``model`` with the weights of its layers in int8, a scale per output row; embedding and LM
    head stay, for the drafter shares them. Raises ``ConfigError`` without torchao."""
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError("a target in int8 needs torchao: pip install torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model.base_model, Int8WeightOnlyConfig())
    return model


def _samples(
    engine: Engine,
    records: Records,
    out: Path,
    config: TrainConfig,
    answers: SamplingParams | None,
    processes: Processes,
) -> Samples:
    """The tokenised data, written by the first process and mapped into memory by all."""
    length, vocab_size = min(config.length, engine.target.context_length), engine.target.vocab_size
    kept = out / ANSWERS_FILE
    files = [*records.paths, *([kept] if answers is not None and kept.exists() else [])]
    key = _key(files, engine.tokenizer, f"{length} {vocab_size}")

    def pieces() -> Iterator[Piece]:
        source = records if answers is None else answered(engine, records, kept, answers)
        return tokenise(source, engine.tokenizer, length, vocab_size)

    if processes.is_first:
        stored(pieces, out, key)
    processes.wait()
    return opened(out, key)


def _key(files: Sequence[Path], tokenizer: Any, sizes: str) -> str:
    """What tokens depend on. Files go by size and time of change: reading them takes long, and a
    new time costs a tokenisation, no more, for a run knows its samples by their content."""
    # How the last call wanted its tokens cut and filled up is no part of what tokens are.
    told = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    parts = [json.dumps(told), str(tokenizer.chat_template), sizes]
    for path in files:
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error}") from error
        parts.append(f"{path.resolve()} {found.st_size} {found.st_mtime_ns}")
    return sha256("\0".join(parts).encode()).hexdigest()[:16]
