"""Everything that goes wrong on the way, in the shape clients of the OpenAI API know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from jakiro.errors import Busy, Closed, ConfigError, JakiroError, PromptError

_MAX_REASONS = 3
"""Complaints about one body that are told at once."""
_MAX_CHARS = 600


class ApiError(Exception):
    """An answer other than the one asked for.

    ``kind`` and ``code``: the ``type`` and ``code`` of the OpenAI API; ``param``: the field.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.message, self.kind, self.param, self.code = _told(message), kind, param, code

    def body(self) -> dict[str, Any]:
        """The JSON of it."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def failed(message: str) -> ApiError:
    """The target could not finish a request: not the client's fault."""
    return ApiError(500, message, kind="server_error", code="row_failed")


def shutting_down() -> ApiError:
    """The server ends before the answer does."""
    return ApiError(
        503,
        "the server is shutting down; send the request again elsewhere",
        kind="server_error",
        code="shutting_down",
        headers={"Retry-After": "5"},
    )


def not_begun() -> ApiError:
    """The deadline came before the first token."""
    return ApiError(
        408,
        "the deadline came before the answer was begun; give it more time or come again later",
        kind="timeout_error",
        code="deadline",
    )


def busy(message: str, retry_after_s: float) -> ApiError:
    """No room: 429, with the time after which there may be some."""
    seconds = max(1, math.ceil(min(retry_after_s, 3600.0)))
    return ApiError(
        429,
        message,
        kind="rate_limit_error",
        code="busy",
        headers={"Retry-After": str(seconds)},
    )


def of_package(error: JakiroError) -> ApiError:
    """An error of the package as the server tells it."""
    if isinstance(error, Busy):
        return busy(str(error), error.retry_after_s)
    if isinstance(error, Closed):
        return shutting_down()
    if isinstance(error, PromptError):
        return ApiError(400, str(error), code="bad_prompt")
    if isinstance(error, ConfigError):
        return ApiError(400, str(error))
    return failed(str(error))


def of_validation(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """What ``pydantic`` says of a body: the first few complaints, without what was sent."""
    if any(problem["type"] == "json_invalid" for problem in problems):
        reason = problems[0].get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is not JSON: {reason}", code="bad_json")
    told = (f"{_place(problem['loc'])}: {_complaint(problem)}" for problem in problems)
    reasons = list(dict.fromkeys(told))
    more = len(reasons) - _MAX_REASONS
    message = "; ".join(reasons[:_MAX_REASONS]) + (f"; and {more} more" if more > 0 else "")
    return ApiError(400, message, param=_place(problems[0]["loc"]))


def install(app: FastAPI) -> None:
    """Let ``app`` answer every error in this shape."""

    @app.exception_handler(ApiError)
    async def own(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(JakiroError)
    async def package(request: Request, error: JakiroError) -> JSONResponse:
        return of_package(error).response()

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> JSONResponse:
        if "json" not in request.headers.get("content-type", ""):
            return ApiError(400, "send JSON, with Content-Type: application/json").response()
        return of_validation(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return _of_http(request, error).response()

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        told = "the server failed; its log says why"
        return ApiError(500, told, kind="server_error").response()


def _of_http(request: Request, error: HTTPException) -> ApiError:
    """What the framework raises by itself: unknown routes and methods, unreadable bodies."""
    message = f"{request.method} {request.url.path}: {error.detail}"
    if error.status_code == 404:
        message = f"there is no {request.method} {request.url.path}; see /openapi.json"
    elif error.status_code == 400:
        message = (
            "the body cannot be read as JSON: it is not UTF-8, nested too deeply, or has a number "
            "of thousands of digits"
        )
    return ApiError(error.status_code, message, headers=error.headers)


def _place(loc: Sequence[Any]) -> str:
    """The path of a field, without the word ``body`` and the names of union branches."""
    parts = [str(part) for part in loc if part != "body"]
    return ".".join(part for part in parts if "[" not in part and part not in _BRANCHES) or "body"


_BRANCHES = frozenset({"str", "constrained-str", "int", "float", "bool", "NamedTool"})


def _complaint(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return "this field is unknown or not supported; leave it out"
    return str(problem["msg"])


def _told(message: str) -> str:
    """``message`` as text that can be sent: of bounded length, lone surrogates escaped."""
    clean = message.encode("utf-8", "backslashreplace").decode()
    return clean if len(clean) <= _MAX_CHARS else clean[: _MAX_CHARS - 3] + "..."
