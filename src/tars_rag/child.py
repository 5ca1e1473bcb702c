"""A child process of this package: how it is started, spoken to, and what it said when it died.

For code that must not take the program down with it or keep its threads waiting: the vendor's NPU
library, embedded Chroma. A message is a JSON header and arrays, unpickled by nobody. What the
child prints goes to a file without a name, and its last lines are quoted when it dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping
from importlib import import_module
from multiprocessing import spawn
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

_BOOT: Final = (
    "import json, sys; entry, fds, sys.path[:] = json.loads(sys.argv[1]);"
    "from tars_rag.child import live; live(entry, fds)"
)
# Of another Python only this package is to be seen, not what is installed beside it for ours.
_BOOT_FOREIGN: Final = (
    "import sys; sys.path[:] = [p for p in sys.path if p];"
    "import json, importlib.util as u; entry, fds, home = json.loads(sys.argv[1]);"
    "s = u.spec_from_file_location('tars_rag', home + '/__init__.py',"
    " submodule_search_locations=[home]); m = u.module_from_spec(s);"
    "sys.modules['tars_rag'] = m; s.loader.exec_module(m);"
    "from tars_rag.child import live; live(entry, fds)"
)
_LOG_LIMIT = 1 << 20
_LAST_WORDS = 800  # characters, and as many again of a crash
_LOG_READ = 64 << 10
_NO_ARRAYS: Mapping[str, NDArray[Any]] = {}
Reply: TypeAlias = tuple[Any, Mapping[str, NDArray[Any]]]
"""The header and the arrays of an answer."""


class Link:
    """One end of a connection between parent and child; one thread at a time uses it."""

    def __init__(self, descriptor: int) -> None:
        self.connection: Connection[Any, Any] = Connection(descriptor)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def send(self, header: Any, arrays: Mapping[str, NDArray[Any]] = _NO_ARRAYS) -> None:
        """Send a message.

        Raises:
            OSError: The other end is gone.
            Exception: The message cannot be packed (see `pack`); nothing was sent.
        """
        self.post(pack(header, arrays))

    def post(self, message: bytes) -> None:
        """Send what `pack` made.

        Raises:
            OSError: The other end is gone.
        """
        self.connection.send_bytes(message)

    def reply(self, work: Callable[[], Reply], as_header: Callable[[BaseException], Any]) -> None:
        """Send what `work` returns, or what `as_header` makes of its exception.

        Whoever asked is waiting: an answer that cannot be packed is answered by its exception, and
        where not even that can be sent the link is closed, so that nobody waits for ever.

        Raises:
            OSError: The other end is gone.
            BaseException: `as_header` failed; the link is closed.
        """
        try:
            try:
                message = pack(*work())
            except BaseException as error:  # a panic in native code is no Exception
                message = pack(as_header(error))
            self.post(message)
        except BaseException:
            self._hang_up()
            raise

    def _hang_up(self) -> None:
        """Close this end, and let the other know even if a thread of ours is reading from it."""
        with contextlib.suppress(OSError):
            with socket.socket(fileno=os.dup(self.connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)
            self.close()

    def receive(self) -> tuple[Any, dict[str, NDArray[Any]]]:
        """The next message: its header, and its arrays (read-only).

        Raises:
            EOFError, OSError: The other end is gone.
        """
        return unpack(self.connection.recv_bytes())

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until something, or the end, can be received; false if nothing came in time."""
        return bool(self._poll.poll(None if seconds is None else 1e3 * seconds))

    def close(self) -> None:
        """Close this end. May be called twice."""
        self.connection.close()


class Child:
    """A Python process that runs one function of this package until its links are closed.

    Args:
        entry: ``module:function``; called in the child with the list of its links.
        links: How many connections to make.
        python: Another interpreter to run it; it must have what the function imports, and gets
            this package's own modules. None: the one that runs this.

    Attributes:
        links: The parent's ends.
    """

    def __init__(self, entry: str, links: int = 1, python: Path | None = None) -> None:
        # The child appends its output; the file has no name and vanishes with us.
        self._log = tempfile.TemporaryFile(mode="a+b")  # noqa: SIM115
        with contextlib.ExitStack() as stack:
            pairs = [socket.socketpair() for _ in range(links)]
            theirs = [stack.enter_context(end).fileno() for _, end in pairs]
            self.links = [Link(end.detach()) for end, _ in pairs]
            if python is None:
                command = [os.fsdecode(spawn.get_executable() or sys.executable), "-c", _BOOT]
                argument, environment = json.dumps([entry, theirs, sys.path]), dict(os.environ)
            else:
                here = str(Path(__file__).resolve().parent)
                command = [str(python), "-c", _BOOT_FOREIGN]
                argument, environment = json.dumps([entry, theirs, here]), foreign_environment()
            try:
                self._process = subprocess.Popen(
                    [*command, argument],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=theirs,
                    # It computes next to nothing in numpy; more threads cost memory.
                    env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                )
            except BaseException:
                self._release()
                raise
        _children.add(self)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def kill(self) -> None:
        """Kill the process; whoever waits for a message of it gets an `EOFError`."""
        self._process.kill()

    def close(self, seconds: float = 5) -> None:
        """Close the links, wait for the process to leave, and kill it if it does not."""
        for link in self.links:
            link.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            # A process stuck in a driver cannot be killed and must not hold us up.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        self._release()

    def obituary(self) -> str:
        """How the process died, and its last words. Call when a link of it broke."""
        try:
            code: int | None = self._process.wait(5)
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            return f"does not answer any more. {self.last_words()}"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"died ({how}). {self.last_words()}"

    def last_words(self) -> str:
        """What it printed last, in one line; of a crash, what it was and what was said before."""
        if self._log.closed:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_READ))
        said = self._log.read().decode("utf-8", "replace")
        # A crash is named first; how many frames follow, and how long their paths are, is open.
        crash = said.rfind("Fatal Python error")
        end = len(said) if crash < 0 else crash
        words = " ".join(said[max(0, end - _LAST_WORDS) : end + _LAST_WORDS].split())
        return f"It said: {words}" if words else "It said nothing."

    def _release(self) -> None:
        for link in self.links:
            link.close()
        self._log.close()


# A fork of the parent must not keep a link open: the child leaves when the last one is closed.
_children: weakref.WeakSet[Child] = weakref.WeakSet()


def _forked() -> None:
    for child in list(_children):
        child._release()


os.register_at_fork(after_in_child=_forked)


def live(entry: str, descriptors: list[int]) -> None:
    """The child's whole life."""
    import faulthandler

    faulthandler.enable(all_threads=False)
    # Ctrl-C goes to the whole group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    module, function = entry.split(":")
    getattr(import_module(module), function)([Link(descriptor) for descriptor in descriptors])


def foreign_environment() -> dict[str, str]:
    """The environment without what tells a Python where its modules are: that was meant for us."""
    ours = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in ours}


def trim_log() -> None:
    """In the child: forget what was printed, if it has become long."""
    with contextlib.suppress(OSError):  # no reason to stop working
        if os.fstat(2).st_size > _LOG_LIMIT:
            os.ftruncate(2, 0)


def pack(header: Any, arrays: Mapping[str, NDArray[Any]] = _NO_ARRAYS) -> bytes:
    """A message as bytes.

    Raises:
        TypeError, ValueError, RecursionError: The header cannot be written as JSON, or an array
            holds Python objects.
    """
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.hasobject:
            msg = f"{name} is not an array of numbers"
            raise TypeError(msg)
    described = {name: [a.dtype.str, a.shape] for name, a in arrays.items()}
    content = {"header": header, "arrays": described}
    head = json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
    body = [np.ascontiguousarray(a).tobytes() for a in arrays.values()]
    return b"".join((len(head).to_bytes(4, "little"), head, *body))


def unpack(message: bytes) -> tuple[Any, dict[str, NDArray[Any]]]:
    """What `pack` made a message of: the header, and the arrays (read-only).

    Raises:
        ValueError, TypeError, LookupError, AttributeError, RecursionError: It is no message.
    """
    start = 4 + int.from_bytes(message[:4], "little")
    head = json.loads(message[4:start].decode("utf-8", "surrogatepass"))
    arrays = {}
    for name, (dtype, shape) in head["arrays"].items():
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(message, dtype, count, start).reshape(shape)
        start += arrays[name].nbytes
    return head["header"], arrays
