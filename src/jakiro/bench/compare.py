"""A run of this machine against a committed one: what is equal, what differs, and does it matter.

Texts differ by near-ties only, or there is a bug. Where all texts of a method are equal, τ and α
may still move a little, since drafts are rounded too; they fail where their intervals over
three prompts or more have nothing in common. Speeds are compared and never fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from jakiro.bench.equality import Judge
from jakiro.bench.grid import Prompts
from jakiro.bench.report import Cell, Report
from jakiro.bench.runner import PLAIN, Request
from jakiro.bench.settings import Place
from jakiro.bench.statistics import LEAST_PROMPTS, Ratio, Spread
from jakiro.bench.summary import Summary
from jakiro.errors import ConfigError

TAU = "τ"
TOLERANCE = 1e-9
"""Counts are integers: ratios of the same counts agree to rounding."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison."""

    place: Place
    method: str
    quantity: str
    is_equal: bool
    is_failure: bool
    detail: str


def compare(
    committed: Report, found: Report, prompts: Mapping[str, Prompts], judge: Judge
) -> Iterator[Finding]:
    """Every method of every cell of ``committed`` that ``found`` has as well.

    ``judge`` and ``prompts`` belong to ``found``.

    Raises:
        ConfigError: a cell was measured with other prompts.
    """
    cells = {cell.place: cell for cell in found.cells}
    for cell in committed.cells:
        other = cells.get(cell.place)
        if other is None:
            continue
        if cell.prompts_sha256 != other.prompts_sha256:
            raise ConfigError(
                f"{cell.place}: the prompts are not those of the committed run; give the same "
                "files, tokenizer and chat template"
            )
        requests = found.settings.requests(prompts[cell.task].token_ids, cell.temperature)
        yield from _plain_texts(cell, other, requests, judge)
        yield from _methods(cell, other)


def _plain_texts(
    cell: Cell, other: Cell, requests: list[Request], judge: Judge
) -> Iterator[Finding]:
    """The texts of plain decoding that are not those of ``cell``."""
    for index, request in enumerate(requests):
        before, now = _ids(cell.texts[index]), _ids(other.texts[index])
        divergence = judge.compare(request.prompt_ids, request.params, before, now)
        if divergence is not None:
            margin = "none" if divergence.margin is None else f"{divergence.margin:.3g}"
            detail = (
                f"{divergence.outcome}: token {divergence.position} is {divergence.found}, was "
                f"{divergence.expected}, margin {margin}"
            )
            is_bug = not divergence.is_near_tie
            yield Finding(cell.place, PLAIN, f"text {index}", False, is_bug, detail)


def _methods(cell: Cell, other: Cell) -> Iterator[Finding]:
    found = {summary.method: summary for summary in other.methods}
    for summary in cell.methods:
        if (now := found.get(summary.method)) is not None:
            yield _texts(cell.place, summary, now)
            few = min(summary.num_prompts, now.num_prompts) < LEAST_PROMPTS
            yield _ratio(cell.place, summary.method, TAU, (summary.tau, now.tau), few)
            for depth, pair in enumerate(zip_longest(summary.alpha, now.alpha), start=1):
                yield _ratio(cell.place, summary.method, f"α at depth {depth}", pair, few)
            yield _speed(cell.place, summary.method, summary.speedup, now.speedup)


def _texts(place: Place, before: Summary, now: Summary) -> Finding:
    """All texts of a method by their digests; a difference from the plain texts of this machine
    has been judged when they were measured."""
    is_equal = before.output_sha256 == now.output_sha256
    num_bugs = now.equality.num_bugs if now.equality else 0
    detail = "same SHA-256" if is_equal else "another SHA-256"
    if num_bugs:
        detail += f"; {num_bugs} texts differ from plain decoding on this machine: BUG"
    return Finding(place, before.method, "texts", is_equal, num_bugs > 0, detail)


def _ratio(
    place: Place,
    method: str,
    quantity: str,
    pair: tuple[Ratio | None, Ratio | None],
    is_of_few: bool,
) -> Finding:
    before, now = pair
    if before is None or now is None:
        # How deep the deepest draft goes may depend on a rounding, or on times.
        is_equal = before is now
        is_failure = not is_equal and quantity == TAU and not is_of_few
        return Finding(place, method, quantity, is_equal, is_failure, "not measured on one side")
    is_equal = abs(before.value - now.value) <= TOLERANCE
    detail = f"{now.value:.4f}"
    if not is_equal:
        word = "inside" if before.overlaps(now) else "OUTSIDE"
        word = "too few prompts to know" if is_of_few else word
        detail += (
            f", was {before.value:.4f} ({before.interval_low:.4f} - {before.interval_high:.4f}): "
            f"{word} the spread over prompts"
        )
    is_outside = not before.overlaps(now) and not is_of_few
    return Finding(place, method, quantity, is_equal, is_outside, detail)


def _speed(place: Place, method: str, before: Spread | None, now: Spread | None) -> Finding:
    """Equal means: this median lies between the quartiles of the other."""
    if before is None or now is None:
        return Finding(place, method, "speedup", before is now, False, "not measured on one side")
    is_inside = before.quartile_low <= now.median <= before.quartile_high
    detail = (
        f"{now.median:.2f}, was {before.median:.2f} "
        f"({before.quartile_low:.2f} - {before.quartile_high:.2f})"
    )
    return Finding(place, method, "speedup", is_inside, False, detail)


def _ids(text: str) -> list[int]:
    return [int(token) for token in text.split()]
