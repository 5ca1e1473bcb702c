"""A session in a process of its own.

A fault inside the vendor's library can hang or kill the process it happens in, and nothing in
Python can catch that. So each NPU core is driven by a small child process: if it dies or hangs,
one core is lost, and the program goes on. The child also keeps the vendor's chatter away from the
program's stdout and stderr; its last lines are quoted in the error.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.child import Child, Link, Reply, trim_log
from tars_rag.errors import DeviceError, InvalidInputError, MissingLengthError, NonFiniteError
from tars_rag.runtimes.base import Feeds, FloatArray
from tars_rag.runtimes.npu.spec import NpuSpec, SessionInfo

_ERRORS = {
    kind.__name__: kind
    for kind in (InvalidInputError, NonFiniteError, MissingLengthError, DeviceError)
}


class IsolatedSession:
    """A session in a child process, with the same interface as one in this process.

    Args:
        spec: The model.
        core_mask: See `rknn.RknnContext`.
        backend: ``module:callable`` that the child calls with `spec` and `core_mask`.
        open_timeout: Seconds for the child to load the model and pass the self-test.
        python: Another interpreter to run the child, see `interpreter`; None: this one.

    Raises:
        DeviceError: The child could not open the model; the message has its reason.
    """

    def __init__(
        self,
        spec: NpuSpec,
        core_mask: int,
        *,
        backend: str = "tars_rag.runtimes.npu.session:NpuSession",
        open_timeout: float = 120.0,
        python: Path | None = None,
    ) -> None:
        try:
            self._child = Child("tars_rag.runtimes.npu.isolate:serve", python=python)
        except OSError as error:
            msg = f"The NPU worker could not be started: {error}. Run: tars-rag doctor"
            raise DeviceError(msg) from error
        self._link = self._child.links[0]
        try:
            self._send({"spec": spec.to_json(), "core_mask": core_mask, "backend": backend}, {})
            if not self._link.wait(open_timeout):
                self.abort()
                words = self._child.last_words()
                msg = f"The NPU worker was not ready after {open_timeout:g} s. {words}"
                raise DeviceError(msg)
            header, _ = self._receive()
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in header.items()
            }
            self._info = SessionInfo(**values)
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
        return self._child.pid

    def run(self, feed: Feeds) -> FloatArray:
        """Rows [1, dim]; see `session.Session`."""
        self._send({}, feed)
        _, arrays = self._receive()
        return arrays["rows"].astype(np.float32)

    def abort(self) -> None:
        """Kill the child; a `run` under way fails at once."""
        self._child.kill()

    def close(self) -> None:
        """Let the child release its core and leave; kill it if it does not."""
        self._child.close()

    def _send(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        try:
            self._link.send(header, arrays)
        except OSError as error:
            raise self._death() from error

    def _receive(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        try:
            header, arrays = self._link.receive()
        except (EOFError, OSError) as error:
            raise self._death() from error
        if "error" in header:
            raise _ERRORS[header["error"]](header["message"])
        return header, arrays

    def _death(self) -> DeviceError:
        return DeviceError(f"The NPU worker process {self._child.obituary()}")


def serve(links: list[Link]) -> None:
    """The child: open, answer, leave when the parent does."""
    # The wheel imports it for one log line: half a second and 20 MB.
    sys.modules["pkg_resources"] = None  # type: ignore[assignment]
    [link] = links
    requests: queue.SimpleQueue[dict[str, NDArray[Any]] | None] = queue.SimpleQueue()
    header, _ = link.receive()
    # A reader of its own, so that the end of the parent ends us even inside a call that hangs.
    threading.Thread(target=_read, args=(link, requests), daemon=True).start()
    opened: Any = None

    def open_backend() -> Reply:
        nonlocal opened
        module, name = header["backend"].split(":")
        spec = NpuSpec.from_json(header["spec"])
        opened = getattr(import_module(module), name)(spec, header["core_mask"])
        info: SessionInfo = opened.info
        return asdict(info), {}

    link.reply(open_backend, _as_header)
    if opened is None:
        return
    while (feed := requests.get()) is not None:
        link.reply(partial(_run, opened, feed), _as_header)
        trim_log()
    opened.close()


def _run(session: Any, feed: Feeds) -> Reply:
    return {}, {"rows": session.run(feed)}


def _read(link: Link, requests: queue.SimpleQueue[dict[str, NDArray[Any]] | None]) -> None:
    try:
        while True:
            requests.put(link.receive()[1])
    except (EOFError, OSError):
        requests.put(None)
        # Time enough to release the core; not for a call that hangs.
        threading.Event().wait(3)
        os._exit(0)


def _as_header(error: BaseException) -> dict[str, str]:
    for name, kind in _ERRORS.items():
        if isinstance(error, kind):
            return {"error": name, "message": str(error)}
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = f"{type(error).__name__}: {error} ({last.name}, line {last.lineno})"
    return {"error": "DeviceError", "message": f"The NPU worker failed: {message}"}
