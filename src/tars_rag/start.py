"""Where the ``tars-rag`` command starts: at a process that has everything imported, or here.

Most of what a short command takes is the import of its libraries. `tars-rag serve` keeps a process
that has imported them (`standby`); a command beside it hands over its arguments, environment,
directory and open files, and waits. What runs there is the same command. So nothing heavy is
imported here.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import struct
import sys
from itertools import pairwise
from typing import Any, Final

from tars_rag import __version__
from tars_rag.retrieval.storage.listener import STANDBY, connect

HANDED_OVER: Final = ("query", "ask", "show")
"""Commands that are short, and read no input."""

FILES: Final = (0, 1, 2)
_LENGTH: Final = struct.Struct("!I")
_PATIENCE: Final = 2.0  # seconds until it is clear that nobody will take it
_SIGNALLED: Final = 128


def main() -> None:
    """The ``tars-rag`` command."""
    code = _handed_over(sys.argv[1:])
    if code is not None:
        raise SystemExit(code)
    from tars_rag.cli import main as run

    run()


def describe() -> dict[str, Any]:
    """What both ends must agree on: the same package, run by the same Python."""
    return {"version": __version__, "python": sys.executable, "package": __file__}


def send(line: socket.socket, message: dict[str, Any], files: tuple[int, ...] = ()) -> None:
    """Send a JSON object, and open files with it."""
    data = json.dumps(message).encode()
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    line.sendmsg([_LENGTH.pack(len(data))], ancillary)
    line.sendall(data)


def receive(line: socket.socket, files: int = 0) -> tuple[dict[str, Any], list[int]]:
    """Receive what `send` sent, and the descriptors.

    Raises:
        EOFError: The other end is gone.
    """
    length, descriptors, _, _ = socket.recv_fds(line, _LENGTH.size, files)
    if len(length) < _LENGTH.size:
        raise EOFError
    wanted, data = _LENGTH.unpack(length)[0], bytearray()
    while len(data) < wanted:
        piece = line.recv(min(1 << 16, wanted - len(data)))
        if not piece:
            raise EOFError
        data += piece
    message: dict[str, Any] = json.loads(data)
    return message, descriptors


def _handed_over(words: list[str]) -> int | None:
    """Let the process beside the store run the command; None: there is none, or it will not.

    Returns:
        The exit code.
    """
    store = _store_of(words)
    if store is None or not _writes_utf8():
        return None
    try:
        line = connect(store, STANDBY)
    except OSError:
        return None
    with line, _Interrupts() as interrupts:
        try:
            line.settimeout(_PATIENCE)
            asked = {
                **describe(),
                "words": words,
                "environment": dict(os.environ),
                "directory": os.getcwd(),  # noqa: PTH109
                "umask": _umask(),
            }
            send(line, asked, FILES)
            taken, _ = receive(line)
        except (OSError, EOFError, ValueError):
            return None
        process = taken.get("process")
        if not isinstance(process, int):
            return None
        interrupts.go_to(process)
        line.settimeout(None)
        try:
            said, _ = receive(line)
            return int(said["code"])
        except (OSError, EOFError):  # it was killed, and has said nothing
            print("error: the process that ran the command died", file=sys.stderr)  # noqa: T201
            return _SIGNALLED + signal.SIGKILL


class _Interrupts:
    """Ctrl-C while a command is handed over: for who runs it, who is not of this terminal's group.

    What comes before it is known who that is waits; if nobody takes the command it is ours.
    """

    def __init__(self) -> None:
        self._process: int | None = None
        self._came = False

    def __enter__(self) -> _Interrupts:
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        if self._came and self._process is None:
            raise KeyboardInterrupt

    def go_to(self, process: int) -> None:
        """Send on those that came, and those that will."""
        self._process = process
        if self._came:
            self._interrupt()

    def _interrupt(self, *_: object) -> None:
        self._came = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGINT)


def _store_of(words: list[str]) -> str | None:
    """The directory of the store that a command line names, if it is one that is handed over."""
    if not words or words[0] not in HANDED_OVER:
        return None
    named = os.environ.get("TARS_STORE")
    for before, word in pairwise(words):
        if before == "--":
            break
        if before == "--store":
            named = word
        elif word.startswith("--store="):
            named = word.removeprefix("--store=")
    return None if not named or "://" in named else os.path.expanduser(named)  # noqa: PTH111


def _writes_utf8() -> bool:
    """As the other process does."""
    streams = (sys.stdout, sys.stderr)
    return all(s is not None and s.encoding.lower() in ("utf-8", "utf8") for s in streams)


def _umask() -> int:
    held = os.umask(0)
    os.umask(held)
    return held


if __name__ == "__main__":
    main()
