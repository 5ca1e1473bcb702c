"""The process: sockets, signals, log."""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import uvicorn

from tars_rag.server.connection import MOST_HEADERS, Connection
from tars_rag.server.gate import App

HTTP: Final[Mapping[str, Any]] = {
    "http": Connection,  # "auto" takes httptools where it is installed, which bounds no header
    "h11_max_incomplete_event_size": MOST_HEADERS,
    "timeout_keep_alive": 30,
    "server_header": False,
    "ws": "none",
}
"""How uvicorn speaks with clients."""


def run(
    app: App,
    host: str,
    port: int,
    *,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    graceful_seconds: int = 30,
) -> None:
    """Serve until SIGTERM or Ctrl-C: then finish what was begun, and return.

    Args:
        app: The application.
        host: Where to listen.
        port: Where to listen; 0: any free one, which the log names.
        tls_cert: A PEM file.
        tls_key: A PEM file.
        graceful_seconds: How long what was begun may take after the signal.
    """
    _write_log()
    with contextlib.suppress(ValueError, OSError):  # idle connections must not use them up
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that closes is no reason to stop
    # When all is answered, uvicorn raises the signal again: what is open is then closed in order.
    signal.signal(signal.SIGTERM, _leave)
    uvicorn.run(
        app,
        host=host,
        port=port,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        access_log=False,  # the gate writes it
        log_config=None,
        timeout_graceful_shutdown=graceful_seconds,
        **HTTP,
    )


def _write_log() -> None:
    """One line for each request and event, on stderr; the root logger is left alone."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("tars_rag", "uvicorn"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _leave(*_: object) -> None:
    raise SystemExit(0)
