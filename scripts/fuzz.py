"""Random requests, made from the server's own OpenAPI document, valid and not: none may end in 5xx.

    make fuzz

Starts ``jakiro serve`` with the bundled pair. Bodies name the served model and ask for few tokens,
so that more of them get past the first checks.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation.modes import GenerationMode

from scripts.server import Server

NUM_EXAMPLES = int(sys.argv[1]) if len(sys.argv) > 1 else 100


def main() -> None:
    with Server([]) as server:
        for label, codes in fuzz(server.url, server.wait()).items():
            print(label, dict(sorted(codes.items())))
        server.terminate()
        raise SystemExit(server.exit_code())


def fuzz(url: str, model: str) -> dict[str, dict[int, int]]:
    """How the requests to each route ended: counts by status."""
    schema: Any = schemathesis.openapi.from_url(f"{url}/openapi.json")
    seen: dict[str, dict[int, int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            cases = operation.as_strategy(generation_mode=mode)
            put(cases, model, seen.setdefault(operation.label, {}))
    return seen


def put(cases: Any, model: str, codes: dict[int, int]) -> None:
    """Send examples of ``cases`` and count how they end."""

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def send(case: Any) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            case.body |= {"model": model} | ({"max_tokens": 4} if "n" in case.body else {})
        response = case.call(timeout=120)
        codes[response.status_code] = codes.get(response.status_code, 0) + 1
        assert response.status_code < 500, f"{case.as_curl_command()}\n{response.text}"
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    # A route without parameters has nothing that could be sent wrongly.
    with suppress(Unsatisfiable):
        send()


if __name__ == "__main__":
    main()
