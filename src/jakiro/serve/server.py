"""The application behind a socket, until a signal ends it."""

from __future__ import annotations

import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from jakiro.engine.scheduler import Scheduler
from jakiro.errors import ConfigError
from jakiro.serve import logs
from jakiro.serve.app import create_app
from jakiro.serve.settings import Settings

_LAST_WORDS_S = 5
"""What ended streams get to send their last events."""


class Server(uvicorn.Server):
    """On SIGTERM or SIGINT no more connections and requests are taken; what runs has ``grace_s``
    seconds to finish, then its streams are told so and end. A second SIGINT ends all at once."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler, grace_s: float) -> None:
        super().__init__(config)
        self._scheduler, self._grace_s = scheduler, grace_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = self.force_exit or sig == signal.SIGINT
            return
        self.should_exit = True
        logs.event("shutting down", signal=signal.Signals(sig).name, grace_s=self._grace_s)
        threading.Thread(target=self._scheduler.close, args=(self._grace_s,), daemon=True).start()


def serve(
    scheduler: Scheduler,
    settings: Settings,
    *,
    host: str,
    port: int,
    grace_s: float,
    announce: Callable[[], None],
) -> None:
    """Serve until a signal says otherwise; ``announce`` is called once the address is taken.
    Raises ``ConfigError``."""
    if not math.isfinite(grace_s):
        raise ConfigError(f"grace_s must be a finite number of seconds from 0 on, got {grace_s}")
    app, taken = create_app(scheduler, settings), list(_bound(host, port))
    announce()
    logs.to_stderr()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(grace_s) + _LAST_WORDS_S,
    )
    Server(config, scheduler, grace_s).run(sockets=taken)


def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Listening at every address that ``host`` has."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, *_, address in dict.fromkeys(found):
            yield socket.create_server(address, family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen at {host}, port {port}: {error}; give another --host or --port"
        ) from error
