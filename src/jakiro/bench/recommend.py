"""Which drafter pays, for one target, workload and machine: measured, not guessed.

Every candidate is first tried on a few prompts beside plain decoding; the best few are then
measured on all of them. A candidate is recommended only if the whole interval of its speedup lies
above 1: what cannot be told from plain decoding is not worth its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jakiro.bench.statistics import LEAST_PROMPTS, Spread
from jakiro.bench.suites import Row
from jakiro.bench.summary import Summary
from jakiro.drafters import registry
from jakiro.errors import JakiroError
from jakiro.hub.bundled import usable_drafters

FINALISTS = 3
SCREENING_PROMPTS, SCREENING_ROUNDS, FINAL_ROUNDS = 2, 2, 3

Trial = Callable[[Row, int | None, int], Summary]
"""A row on so many prompts (None: all), so many rounds, in alternation with plain decoding."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """``best``: None where plain decoding is. ``finals`` and ``screened``: best first;
    ``refused``: why a candidate cannot draft for this target or its prompts."""

    best: Summary | None
    finals: list[Summary]
    screened: list[Summary]
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def drafter(self) -> str:
        """What to give as ``--drafter``."""
        return "none" if self.best is None else self.best.method

    @property
    def reason(self) -> str:
        """In one or two sentences."""
        if not self.finals:
            return "None of the candidates can draft for this target and its prompts."
        first = self.best or self.finals[0]
        if first.speedup is None:
            return (
                "Nothing surely pays: no candidate wrote texts as long as those of plain decoding, "
                "so there are no times to compare."
            )
        found = (
            f"{first.method} takes {1 / first.speedup.median:.2f} of the time of plain decoding "
            f"(speedup {first.speedup.median:.2f}, 95% interval {first.speedup.interval_low:.2f} "
            f"to {first.speedup.interval_high:.2f} over {first.speedup.count} prompts)"
        )
        if first.tau is not None and first.shares is not None:
            found += (
                f": {first.tau.value:.2f} tokens per forward of the target, of the time "
                f"{first.shares.draft:.0%} drafting and {first.shares.verify:.0%} verifying"
            )
        if self.best is None:
            few = f"; of fewer than {LEAST_PROMPTS} prompts that says nothing, give more"
            told = few if first.speedup.count < LEAST_PROMPTS else ""
            return f"Nothing surely pays. The best, {found}{told}."
        return f"{found}."


def candidates(target: str, heads: Sequence[str] = ()) -> list[Row]:
    """Every drafter that needs no training, what is bundled for ``target``, the ``heads`` given
    (directories), and every arbiter over those that are trained."""
    free = [
        entry.name
        for entry in registry.ENTRIES.values()
        if not entry.is_trained and entry.name != "none"
    ]
    trained = [n for n in usable_drafters(target) if registry.find(n).is_trained] + list(heads)
    over = [f"{arbiter}+{name}" for arbiter in registry.arbiters() for name in trained]
    return [Row(name, name) for name in [*trained, *over, *free]]


def recommend(rows: Sequence[Row], trial: Trial) -> Recommendation:
    """The fastest of ``rows``. One that refuses the target, or fails on a prompt, is left out, with
    its reason."""
    refused: dict[str, str] = {}

    def best_of(rows: Sequence[Row], count: int | None, rounds: int) -> list[Summary]:
        found = []
        for row in rows:
            try:
                summary = trial(row, count, rounds)
            except JakiroError as error:
                refused[row.name] = str(error)
                continue
            if summary.equality is not None and summary.equality.num_bugs:
                refused[row.name] = "it writes other texts than plain decoding; please report it"
                continue
            found.append(summary)
        return sorted(found, key=_speed, reverse=True)

    by_name = {row.name: row for row in rows}
    best_first = best_of(rows, SCREENING_PROMPTS, SCREENING_ROUNDS)
    named = [by_name[summary.method] for summary in best_first[:FINALISTS]]
    finals = best_of(named, None, FINAL_ROUNDS)
    sure = [one for one in finals if _surely_pays(one.speedup)]
    return Recommendation(sure[0] if sure else None, finals, best_first, refused)


def _surely_pays(speedup: Spread | None) -> bool:
    return speedup is not None and speedup.count >= LEAST_PROMPTS and speedup.interval_low > 1


def _speed(summary: Summary) -> float:
    return summary.speedup.median if summary.speedup is not None else 0.0
