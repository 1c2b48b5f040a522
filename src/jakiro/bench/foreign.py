"""What other engines reached, measured by scripts of their own (``scripts/engines``)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jakiro.errors import DataError


@dataclass(frozen=True, slots=True)
class Foreign:
    """One method of another engine on one task, greedy, one prompt at a time."""

    name: str
    task: str
    tokens_per_s: float


def read_foreign(path: Path) -> list[Foreign]:
    """The rows of a report of ``scripts/engines/vllm_bench.py``: a JSON object whose ``rows`` have
    ``engine``, ``version``, ``method``, ``task`` and, per prompt, ``num_tokens`` and
    ``tokens_per_s``. Rows of this package are left out.

    Raises:
        DataError: the file is no such report.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))["rows"]
        return [
            Foreign(
                f"{row['engine']} {row['version']} {row['method']}",
                str(row["task"]),
                _rate(row["num_tokens"], row["tokens_per_s"]),
            )
            for row in rows
            if row["engine"] != "jakiro"
        ]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise DataError(
            f"{str(path)!r} is no report of another engine ({type(error).__name__}: {error}); make "
            "one with scripts/engines/vllm_bench.py"
        ) from error


def _rate(counts: list[int], rates: list[float]) -> float:
    """Tokens per second over all prompts."""
    return sum(counts) / sum(n / rate for n, rate in zip(counts, rates, strict=True))
