"""A session in a process of its own.

A fault inside the vendor's library can hang or kill the process it happens in, and nothing in
Python can catch that. So each NPU core is driven by a small child process: if it dies or hangs,
one core is lost, and the program goes on. The child also keeps the vendor's chatter away from the
program's stdout and stderr; its last lines are quoted in the error.

A request is one message: a JSON header and the arrays, unpickled by nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from importlib import import_module
from multiprocessing import spawn
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import DeviceError, InvalidInputError
from tars_rag.runtimes.base import Feeds, FloatArray
from tars_rag.runtimes.session import NpuSpec, SessionInfo

_BOOT: Final = (
    "import json, sys; fd, sys.path[:] = json.loads(sys.argv[1]);"
    "from tars_rag.runtimes.isolate import child; child(fd)"
)
_LOG_LIMIT = 1 << 20
_LAST_WORDS = 800
_ERRORS = {"InvalidInputError": InvalidInputError, "DeviceError": DeviceError}


class IsolatedSession:
    """A session in a child process, with the same interface as one in this process.

    Args:
        spec: The model.
        core_mask: See `rknn.RknnContext`.
        backend: ``module:callable`` that the child calls with `spec` and `core_mask`.
        open_timeout: Seconds for the child to load the model and pass the self-test.

    Raises:
        DeviceError: The child could not open the model; the message has its reason.
    """

    def __init__(
        self,
        spec: NpuSpec,
        core_mask: int,
        *,
        backend: str = "tars_rag.runtimes.session:NpuSession",
        open_timeout: float = 120.0,
    ) -> None:
        # The child appends its output; the file has no name and vanishes with us.
        self._log = tempfile.TemporaryFile(mode="a+b")  # noqa: SIM115
        ours, theirs = socket.socketpair()
        with theirs:
            argument = json.dumps([theirs.fileno(), sys.path])
            self._process = subprocess.Popen(
                [os.fsdecode(spawn.get_executable() or sys.executable), "-c", _BOOT, argument],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(),),
                # One thread is enough for a word table and a mean; more cost memory.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        self._connection: Connection[Any, Any] = Connection(ours.detach())
        try:
            self._send({"spec": spec.to_json(), "core_mask": core_mask, "backend": backend}, {})
            if not self._connection.poll(open_timeout):
                self.abort()
                msg = f"The NPU worker was not ready after {open_timeout:g} s. {self._last_words()}"
                raise DeviceError(msg)
            header, _ = self._receive()
            self._info = SessionInfo(
                tuple(header["input_names"]), tuple(header["lengths"]), header["versions"]
            )
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> SessionInfo:
        """As the child reported it."""
        return self._info

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    def run(self, feed: Feeds) -> FloatArray:
        """Rows [1, dim]; see `session.Session`."""
        self._send({}, feed)
        _, arrays = self._receive()
        return arrays["rows"].astype(np.float32)

    def abort(self) -> None:
        """Kill the child; a `run` under way fails at once."""
        self._process.kill()

    def close(self) -> None:
        """Let the child release its core and leave; kill it if it does not."""
        self._connection.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            # A process stuck in the driver cannot be killed and must not hold us up.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
        self._log.close()

    def _send(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        try:
            self._connection.send_bytes(_pack(header, arrays))
        except OSError as error:
            raise self._death() from error

    def _receive(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        try:
            header, arrays = _unpack(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._death() from error
        if "error" in header:
            raise _ERRORS[header["error"]](header["message"])
        return header, arrays

    def _death(self) -> DeviceError:
        try:
            code: int | None = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        msg = f"The NPU worker process died ({how}). {self._last_words()}"
        return DeviceError(msg)

    def _last_words(self) -> str:
        if self._log.closed:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LAST_WORDS))
        words = " ".join(self._log.read().decode("utf-8", "replace").split())
        return f"It said: {words}" if words else "It said nothing."


def child(fd: int) -> None:
    """The child's whole life: open, answer, leave when the parent does."""
    import faulthandler

    faulthandler.enable(all_threads=False)
    # Ctrl-C goes to the whole group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The wheel imports it for one log line: half a second and 20 MB.
    sys.modules["pkg_resources"] = None  # type: ignore[assignment]
    connection: Connection[Any, Any] = Connection(fd)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    header, _ = _unpack(connection.recv_bytes())
    # A reader of its own, so that the end of the parent ends us even inside a call that hangs.
    threading.Thread(target=_read, args=(connection, requests), daemon=True).start()
    try:
        module, name = header["backend"].split(":")
        opened = getattr(import_module(module), name)(
            NpuSpec.from_json(header["spec"]), header["core_mask"]
        )
        info = opened.info
    except Exception as error:
        connection.send_bytes(_pack(_as_header(error), {}))
        return
    connection.send_bytes(
        _pack(
            {
                "input_names": info.input_names,
                "lengths": info.lengths,
                "versions": info.versions,
            },
            {},
        )
    )
    while request := requests.get():
        try:
            reply = _pack({}, {"rows": opened.run(_unpack(request)[1])})
        except Exception as error:
            reply = _pack(_as_header(error), {})
        connection.send_bytes(reply)
        if os.fstat(2).st_size > _LOG_LIMIT:
            os.ftruncate(2, 0)
    opened.close()


def _read(connection: Connection[Any, Any], requests: queue.SimpleQueue[bytes]) -> None:
    try:
        while True:
            requests.put(connection.recv_bytes())
    except (EOFError, OSError):
        requests.put(b"")
        # Time enough to release the core; not for a call that hangs.
        threading.Event().wait(3)
        os._exit(0)


def _as_header(error: Exception) -> dict[str, str]:
    if isinstance(error, InvalidInputError):
        return {"error": "InvalidInputError", "message": str(error)}
    if isinstance(error, DeviceError):
        return {"error": "DeviceError", "message": str(error)}
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = f"{type(error).__name__}: {error} ({last.name}, line {last.lineno})"
    return {"error": "DeviceError", "message": f"The NPU worker failed: {message}"}


def _pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    described = {name: [a.dtype.str, a.shape] for name, a in arrays.items()}
    head = json.dumps({"header": header, "arrays": described}).encode()
    body = [np.ascontiguousarray(a).tobytes() for a in arrays.values()]
    return b"".join((len(head).to_bytes(4, "little"), head, *body))


def _unpack(message: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    start = 4 + int.from_bytes(message[:4], "little")
    head = json.loads(message[4:start])
    arrays = {}
    for name, (dtype, shape) in head["arrays"].items():
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(message, dtype, count, start).reshape(shape)
        start += arrays[name].nbytes
    return head["header"], arrays
