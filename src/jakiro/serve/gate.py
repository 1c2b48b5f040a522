"""What is refused before anything is read: strangers, and bodies that are too long."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jakiro.serve.errors import ApiError
from jakiro.serve.settings import Settings

_GUARDED = ("/v1/", "/tokenize", "/detokenize")


class Gate:
    """An ASGI middleware. Health, metrics, version and page need no key."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(_route(scope), headers)
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        num_read, limit = 0, self._settings.max_body_bytes

        async def counted() -> Message:
            nonlocal num_read
            message = await receive()
            num_read += len(message.get("body", b""))
            if num_read > limit:
                raise HTTPException(413, _too_long(limit))
            return message

        await self._app(scope, counted, send)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        key, limit = self._settings.api_key, self._settings.max_body_bytes
        if key is not None and path.startswith(_GUARDED):
            sent = headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(sent.encode(), key.encode()):
                return ApiError(
                    401,
                    "this server needs its API key, as Authorization: Bearer KEY",
                    kind="authentication_error",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and len(length) < 20 and int(length) > limit:
            return ApiError(413, _too_long(limit), code="body_too_large")
        return None


def _route(scope: Scope) -> str:
    """The path as routes see it: below the prefix that the application is mounted under, if any."""
    path: str = scope["path"]
    below = path.removeprefix(scope.get("root_path", ""))
    return below if below.startswith("/") else path


def _too_long(limit: int) -> str:
    return f"the body is longer than {limit} bytes; send less"
