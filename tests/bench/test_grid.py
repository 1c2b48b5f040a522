from __future__ import annotations

import pytest

from jakiro.bench.grid import Prompts, run
from jakiro.bench.report import Report
from jakiro.bench.runner import PLAIN
from jakiro.bench.settings import Place
from jakiro.bench.summary import digest
from jakiro.errors import ConfigError
from tests.bench.support import PROMPTS, Counting, report


def finished(into: Report, drafted: Counting, prompts: dict[str, Prompts] = PROMPTS) -> list[Place]:
    methods = [Counting(PLAIN), drafted]
    return [cell.place for cell in run(into, methods, prompts, None)]


def test_every_cell_is_measured_once_in_order() -> None:
    into = report([])
    places = finished(into, Counting("drafted"))
    assert places == [
        ("gsm8k", 0.0, 1), ("mine", 0.0, 1), ("gsm8k", 1.0, 1), ("mine", 1.0, 1)
    ]  # fmt: skip
    assert places == [cell.place for cell in into.cells]
    first = into.cells[0]
    assert first.texts == ["1 1 1 1", "3 3 3 3"]
    assert first.prompts_sha256 == digest([[1, 2], [3, 4]])
    assert [one.method for one in first.methods] == [PLAIN, "drafted"]
    assert first.methods[1].output_sha256 == digest([[1] * 4, [3] * 4])
    assert into.cells[1].num_skipped == 2
    assert list(into.pending()) == []


def test_an_interrupted_run_repeats_no_finished_cell() -> None:
    """The warm-up and the two prompts of the first cell are three calls; the fifth is in the
    second cell."""
    into = report([])
    with pytest.raises(KeyboardInterrupt):
        finished(into, Counting("drafted", fails_at=5))
    assert [cell.place for cell in into.cells] == [("gsm8k", 0.0, 1)]
    again = Counting("drafted")
    assert finished(into, again) == [("mine", 0.0, 1), ("gsm8k", 1.0, 1), ("mine", 1.0, 1)]
    assert again.calls == [[5], [5], [1], [1], [3], [5], [5]]


def test_the_temperature_belongs_to_the_requests() -> None:
    seen = []

    def noted(request: object) -> list[int]:
        seen.append(request.params.temperature)  # type: ignore[attr-defined]
        return [0]

    finished(report([]), Counting("drafted", text=noted))
    assert seen == [0.0] * 5 + [1.0] * 5


def test_other_prompts_do_not_continue_a_run() -> None:
    into = report([])
    finished(into, Counting("drafted"))
    into.cells.pop()
    with pytest.raises(ConfigError, match="prompts of 'gsm8k' are not those"):
        finished(into, Counting("drafted"), {**PROMPTS, "gsm8k": Prompts([[1, 2], [3, 5]])})
