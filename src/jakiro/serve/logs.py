"""One line of JSON per event. Prompts, answers and keys are never among the fields."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

LOGGER = logging.getLogger("jakiro.serve")


class JsonLines(logging.Formatter):
    """``{"time": .., "level": .., "event": .., fields}``."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def event(name: str, **fields: Any) -> None:
    """Something that happened in the ordinary course."""
    LOGGER.info(name, extra={"fields": fields})


def to_stderr() -> None:
    """Write the server's events, and those of the web server below it, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for logger in (LOGGER, logging.getLogger("uvicorn.error")):
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
