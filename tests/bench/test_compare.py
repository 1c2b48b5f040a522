"""A second run against a first: what is equal, what fails, what is only said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from jakiro.bench.compare import Finding, compare
from jakiro.bench.equality import Divergence, Judge, first_difference
from jakiro.bench.grid import Prompts
from jakiro.bench.report import Report
from jakiro.bench.statistics import Ratio, Spread
from jakiro.bench.summary import Equality, Summary
from jakiro.errors import ConfigError
from jakiro.sampling.params import SamplingParams
from tests.bench.support import DRAFTED, cell, report, whole_report

PROMPTS = {name: Prompts([[1], [2], [3]]) for name in ("gsm8k", "mine")}


class Lenient(Judge):
    """Calls a difference at token 1 a near-tie and any other a bug."""

    def __init__(self) -> None:
        super().__init__(None)

    def compare(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        expected: Sequence[int],
        found: Sequence[int],
    ) -> Divergence | None:
        place = first_difference(expected, found)
        if place is None:
            return None
        return Divergence(place, expected[place], found[place], 2e-5, is_near_tie=place == 1)


def against(found: Report) -> list[Finding]:
    return list(compare(report([cell("gsm8k", 0.0)]), found, PROMPTS, Lenient()))


def with_drafted(summary: Summary) -> Report:
    """The same cell with another drafted row."""
    changed = cell("gsm8k", 0.0)
    changed.methods[1] = summary
    return report([changed])


def differing(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if not finding.is_equal]


def test_equal_runs_are_equal() -> None:
    """Texts, τ and speed of two methods, and three depths of one of them."""
    findings = against(whole_report())
    assert len(findings) == 2 * 3 + 3
    assert differing(findings) == []
    assert {finding.place.task for finding in findings} == {"gsm8k"}


@pytest.mark.parametrize(("text", "is_bug"), [("1 9 3", False), ("9 2 3", True)])
def test_another_plain_text_is_judged(text: str, is_bug: bool) -> None:
    changed = cell("gsm8k", 0.0)
    changed.texts[0] = text
    (finding,) = differing(against(report([changed])))
    assert (finding.method, finding.quantity) == ("plain", "text 0")
    assert finding.is_failure == is_bug
    word, place = ("bug", 0) if is_bug else ("near-tie", 1)
    assert finding.detail == f"{word}: token {place} is 9, was {place + 1}, margin 2e-05"


@pytest.mark.parametrize(("num_bugs", "is_failure"), [(0, False), (1, True)])
def test_another_digest_fails_where_this_machine_found_a_bug(
    num_bugs: int, is_failure: bool
) -> None:
    equality = Equality(2, 1 - num_bugs, num_bugs)
    changed = replace(DRAFTED, output_sha256="c" * 64, equality=equality)
    (finding,) = differing(against(with_drafted(changed)))
    assert (finding.quantity, finding.is_failure) == ("texts", is_failure)


@pytest.mark.parametrize(
    ("tau", "is_failure"), [(Ratio(3.2, 2.9, 3.4), False), (Ratio(2.5, 2.2, 2.9), True)]
)
def test_tau_may_move_within_its_spread(tau: Ratio, is_failure: bool) -> None:
    (finding,) = differing(against(with_drafted(replace(DRAFTED, tau=tau))))
    assert (finding.quantity, finding.is_failure) == ("τ", is_failure)
    assert ("OUTSIDE" in finding.detail) == is_failure


def test_of_two_prompts_no_interval_is_known() -> None:
    moved = replace(DRAFTED, tau=Ratio(2.5, 2.2, 2.9), num_prompts=2)
    (finding,) = differing(against(with_drafted(moved)))
    assert (finding.quantity, finding.is_failure) == ("τ", False)
    assert "too few prompts to know" in finding.detail


def test_alpha_is_compared_at_every_depth() -> None:
    alpha = [Ratio(0.8, 0.7, 0.9), Ratio(0.1, 0.0, 0.2), None]
    (finding,) = differing(against(with_drafted(replace(DRAFTED, alpha=alpha))))
    assert (finding.quantity, finding.is_failure) == ("α at depth 2", True)


def test_a_depth_that_is_there_on_one_side_only_is_told() -> None:
    deeper = [*DRAFTED.alpha, Ratio(0.5, 0.4, 0.6)]
    (finding,) = differing(against(with_drafted(replace(DRAFTED, alpha=deeper))))
    assert finding.quantity == f"α at depth {len(deeper)}" and not finding.is_failure


def test_a_speed_never_fails() -> None:
    slow = Spread(0.2, 0.1, 0.3, 0.1, 0.3, 3)
    (finding,) = differing(against(with_drafted(replace(DRAFTED, speedup=slow))))
    assert (finding.quantity, finding.is_failure) == ("speedup", False)
    assert finding.detail == "0.20, was 1.75 (1.50 - 2.00)"


def test_a_figure_that_has_gone_fails() -> None:
    (finding,) = differing(against(with_drafted(replace(DRAFTED, tau=None))))
    assert (finding.quantity, finding.is_failure) == ("τ", True)


def test_what_was_not_measured_again_is_left_out() -> None:
    fewer = cell("gsm8k", 0.0)
    del fewer.methods[1]
    assert {finding.method for finding in against(report([fewer]))} == {"plain"}
    assert against(report([cell("mine", 0.0)])) == []


def test_other_prompts_are_no_comparison() -> None:
    other = replace(cell("gsm8k", 0.0), prompts_sha256="2" * 64)
    with pytest.raises(ConfigError, match="prompts are not those"):
        against(report([other]))
