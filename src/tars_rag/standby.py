"""A process that has imported what short commands need, and forks itself for each of them.

    python -m tars_rag.standby DIR...

`tars-rag serve` starts it and holds its standard input open; it leaves when that is closed. It
listens in the directories of the stores that are served, for processes of the same user.
"""

from __future__ import annotations

import contextlib
import io
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from tars_rag.retrieval.storage.listener import STANDBY, Listener
from tars_rag.start import FILES, describe, receive, send

# Not `tars_rag.cli` itself: its consoles look at the terminal when they are made.
_IMPORTED: Final = (
    "rich.console",
    "rich.progress",
    "rich.table",
    "typer.main",
    "tars_rag.settings",
    "tars_rag.splitting",
    "tars_rag.splitting.splitter",
    "tars_rag.ingest.formats",
    "tars_rag.ingest.sources",
    "tars_rag.retrieval.commands",
    "tars_rag.retrieval.indexes.words.analysers",
    "tars_rag.retrieval.sharing.warm",
    "tars_rag.retrieval.storage.layout",
)
_SECONDS: Final = 5.0  # a client has to say what it wants


def main(directories: list[str]) -> None:
    """Listen until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the server's terminal; it tells us by stdin
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    for name in _IMPORTED:
        import_module(name)
    listeners = [Listener(Path(directory), STANDBY) for directory in directories]
    with selectors.DefaultSelector() as ready:
        for listener in listeners:
            if listener.open():
                ready.register(listener, selectors.EVENT_READ, listener)
        ready.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.data is None:  # nobody writes there: it ended
                    for listener in listeners:
                        listener.close()
                    return
                line = key.data.accept_now()
                if line is not None:
                    _fork(line)


def _fork(line: socket.socket) -> None:
    if os.fork() == 0:
        try:
            try:
                code = _serve(line)
            except KeyboardInterrupt:  # before there was a command to stop
                code = 1
            with contextlib.suppress(OSError):
                send(line, {"code": code})
        finally:
            os._exit(0)
    line.close()


def _serve(line: socket.socket) -> int:
    """In the child: become the client's process, and run its command."""
    line.settimeout(_SECONDS)
    asked, files = receive(line, len(FILES))
    if {name: asked.get(name) for name in describe()} != describe() or len(files) != len(FILES):
        send(line, {"process": None})
        os._exit(0)
    try:
        os.chdir(asked["directory"])
    except OSError:
        send(line, {"process": None})
        os._exit(0)
    line.settimeout(None)
    for own, theirs in zip(FILES, files, strict=True):
        os.dup2(theirs, own)
        os.close(theirs)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.umask(asked["umask"])
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    send(line, {"process": os.getpid()})
    threading.Thread(target=_end_with, args=(line,), daemon=True).start()
    return _run(asked["words"])


def _end_with(line: socket.socket) -> None:
    """What a client that was killed has asked for is of no use any more."""
    with contextlib.suppress(OSError):
        if not line.recv(1):
            os.kill(os.getpid(), signal.SIGTERM)


def _run(words: list[str]) -> int:
    sys.argv = ["tars-rag", *words]
    with _streams():
        try:
            from tars_rag.cli import main as run

            run()
        except SystemExit as end:
            if end.code is None or isinstance(end.code, int):
                return end.code or 0
            print(end.code, file=sys.stderr)  # noqa: T201
            return 1
        except BaseException:
            traceback.print_exc()
            return 1
    return 0


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Standard streams over the client's files, as Python makes them at its start."""
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = _writer(1, "strict"), _writer(2, "backslashreplace")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def _writer(descriptor: int, errors: str) -> Any:
    raw = open(descriptor, "wb", closefd=False)  # noqa: SIM115
    buffered = descriptor == 1 and not os.isatty(descriptor)
    return io.TextIOWrapper(raw, "utf-8", errors, line_buffering=not buffered)


if __name__ == "__main__":
    main(sys.argv[1:])
