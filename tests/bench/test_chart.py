from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from jakiro.bench.chart import chart
from tests.bench.support import DRAFTED, UNDRAFTED, report, whole_report


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved, besides being saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def noted(self: Figure, *arguments: object, **settings: object) -> None:
        figures.append(self)
        save(self, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", noted)
    return figures


def test_a_panel_per_temperature_a_group_per_task_a_bar_per_method(
    drawn: list[Figure], tmp_path: Path
) -> None:
    whole = whole_report()
    for each in whole.cells:
        each.methods.append(replace(DRAFTED, method="slow", speedup=UNDRAFTED.speedup))
    chart(whole, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["T = 0", "T = 1"]
    for axes in figure.axes:
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["gsm8k", "mine"]
        assert sorted(bar.get_height() for bar in axes.patches) == [1, 1, 1.75, 1.75]
        places = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
        assert [round(place) for place in places] == [0, 1, 0, 1], "around their task's tick"
        low, high = axes.collections[0].get_segments()[0][:, 1]
        assert (low, high) == pytest.approx((1.6, 1.9)), "the error bar is the 95% interval"


def test_a_chart_of_plain_decoding_alone(tmp_path: Path) -> None:
    whole = whole_report()
    for each in whole.cells:
        del each.methods[1:]
    chart(report(whole.cells), tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size
