"""Rows of other engines beside our own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jakiro.bench.foreign import Foreign, read_foreign
from jakiro.bench.tables import against, to_markdown
from jakiro.errors import DataError
from tests.bench import support

ROW = {
    "engine": "vllm",
    "version": "1.0",
    "method": "ngram",
    "task": "gsm8k",
    "num_tokens": [100, 50],
    "tokens_per_s": [100.0, 25.0],
}


def test_a_report_of_another_engine_joins_the_table(tmp_path: Path) -> None:
    path = tmp_path / "vllm.json"
    path.write_text(json.dumps({"rows": [ROW, ROW | {"engine": "jakiro"}]}))
    (found,) = read_foreign(path)
    assert found == Foreign("vllm 1.0 ngram", "gsm8k", 50.0)
    theirs = replace(support.UNDRAFTED, method="transformers", tokens_per_s=35.0)
    cell = replace(support.cell("gsm8k", 0.0), methods=[support.UNDRAFTED, support.DRAFTED, theirs])
    lines = against(cell, [found])
    assert "| drafted | 123.5 | 1.76 | 3.53 |" in lines
    assert "| vllm 1.0 ngram * | 50.0 | 0.71 | 1.43 |" in lines
    assert against(replace(cell, methods=cell.methods[:2]), [found]) == []
    other = replace(cell, temperature=1.0)
    assert not any("vllm" in line for line in against(other, [found]))
    report = replace(support.report([cell]), foreign=[found])
    assert "vllm 1.0 ngram *" in to_markdown(report)


@pytest.mark.parametrize("text", ["", "{}", '{"rows": [{"engine": "vllm"}]}', '{"rows": 1}'])
def test_what_is_no_such_report(text: str, tmp_path: Path) -> None:
    path = tmp_path / "vllm.json"
    path.write_text(text)
    with pytest.raises(DataError, match="no report of another engine"):
        read_foreign(path)
