"""The page at ``/``, and what a browser may do with it."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.responses import Response
from starlette.types import Scope

PAGE = Path(__file__).parent / "page"
"""``index.html``; its other files are served below ``/page``."""

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Browsers refuse scripts of another type, and some systems register a wrong one."""

HEADERS = {
    # Everything comes from this server and speaks to it alone; nothing inline runs.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Another version of the package must not meet the scripts of this one.
    "Cache-Control": "no-cache",
}


class _Files(StaticFiles):
    """Files with the headers of the page."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS | _typed(Path(full_path)))
        return response


def install(app: FastAPI) -> None:
    """Serve the page."""

    async def page() -> FileResponse:
        index = PAGE / "index.html"
        return FileResponse(index, headers=HEADERS | _typed(index))

    app.add_api_route("/", page, include_in_schema=False)
    app.mount("/page", _Files(directory=PAGE))


def _typed(path: Path) -> dict[str, str]:
    return {"Content-Type": TYPES[path.suffix]}
