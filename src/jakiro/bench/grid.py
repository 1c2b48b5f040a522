"""All cells of a run, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jakiro.bench.environment import environment
from jakiro.bench.equality import Judge
from jakiro.bench.report import Cell, Report
from jakiro.bench.runner import PLAIN, Method, Sample, measure
from jakiro.bench.settings import Place
from jakiro.bench.summary import digest, summarise, texts_of, written
from jakiro.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of one task, as token ids."""

    token_ids: list[list[int]]
    num_skipped: int = 0
    """Those that do not fit into the target's context."""


def run(
    report: Report,
    methods: Sequence[Method],
    prompts: Mapping[str, Prompts],
    judge: Judge | None,
    progress: Callable[[Place, Sample], None] = lambda *_: None,
) -> Iterator[Cell]:
    """Measure the pending cells of ``report``, append each to it and yield it.

    Raises:
        ConfigError: a cell of the report was measured with other prompts.
        RowFailed: a request ended in an error instead of a text.
    """
    for cell in report.cells:
        if digest(prompts[cell.task].token_ids) != cell.prompts_sha256:
            raise ConfigError(
                f"the prompts of {cell.task!r} are not those that were measured before; give the "
                "same files, tokenizer and chat template"
            )
    for place in list(report.pending()):
        cell = _measured(report, place, methods, prompts[place.task], judge, progress)
        report.cells.append(cell)
        yield cell


def _measured(
    report: Report,
    place: Place,
    methods: Sequence[Method],
    prompts: Prompts,
    judge: Judge | None,
    progress: Callable[[Place, Sample], None],
) -> Cell:
    settings = report.settings
    requests = settings.requests(prompts.token_ids, place.temperature)
    samples = measure(
        methods,
        requests,
        batch_size=place.batch_size,
        repetitions=settings.repetitions,
        progress=lambda sample: progress(place, sample),
    )
    where = environment()
    return Cell(
        **place._asdict(),
        prompts_sha256=digest(prompts.token_ids),
        num_skipped=prompts.num_skipped,
        commit=where.commit,
        date=where.date,
        texts=[written(text) for text in texts_of(samples, PLAIN)],
        methods=summarise(methods, requests, samples, judge),
    )
