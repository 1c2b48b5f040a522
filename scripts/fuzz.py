"""Random requests, made from the server's own OpenAPI document, valid and not: none may end in 5xx.

    make fuzz

Starts ``jakiro serve`` with the bundled pair. Bodies name the served model and ask for few tokens,
and every second round has a plain conversation or prompt, so that more of them get past the first
checks.
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

HELLO = [{"role": "user", "content": "hello"}]
PLAIN: dict[str, dict[str, Any]] = {
    "POST /v1/chat/completions": {"messages": HELLO, "response_format": None},
    "POST /v1/completions": {"prompt": "hello", "response_format": None},
}
"""Fields of these routes, and what stands in them in every second round."""
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
        codes = seen.setdefault(operation.label, {})
        plain = PLAIN.get(operation.label, {})
        fixed = {"model": model} | ({"max_tokens": 4, "n": 1} if plain else {})
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            cases = operation.as_strategy(generation_mode=mode)
            put(cases, fixed, codes)
            if plain:
                put(cases, fixed | plain, codes)
    return seen


def put(cases: Any, fixed: dict[str, Any], codes: dict[int, int]) -> None:
    """Send examples of ``cases``, with ``fixed`` in them, and count how they end."""

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
            case.body |= fixed
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
