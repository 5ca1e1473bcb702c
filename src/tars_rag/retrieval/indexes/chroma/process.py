"""Embedded Chroma in a process of its own.

Chroma's bindings hold the interpreter's lock for the whole of a write, and every thousand writes
one rewrites the vector files: in the program's own process an event loop would stand still
meanwhile, for hundreds of milliseconds in a large store. A fault in its native code would end the
program. So it runs in a child: this is the parent's end, `chroma_child` the other.

The child holds the store's lock too. Killed with SIGKILL the parent leaves a write that the child
finishes, and until then nobody else can open the store.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from multiprocessing import reduction
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tars_rag.child import Child, Link, pack
from tars_rag.errors import StoreError
from tars_rag.retrieval.commands import check_command
from tars_rag.retrieval.indexes.chroma.client import Answer, ChromaError

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
KEEP_IDLE = 0
"""How many processes stay after close, for the next store: it saves that one a second. The tests,
which open hundreds, keep one; a program that closes a store expects nothing to be left."""
_idle: list[Child] = []
os.register_at_fork(after_in_child=_idle.clear)


class ChromaProcess:
    """The client of a Chroma in `path` that runs in a process of its own.

    Any number of threads may use it; `asking` lets one thread ask before it needs the answer.

    Args:
        path: Chroma's directory.
        lock: Descriptor of the store's lock, which the process will hold as long as it lives.
        links: How many questions may be under way at once.

    Raises:
        ChromaError: Chroma cannot be opened.
        StoreError: The process cannot be started, or died; its last words are in the message.
    """

    exclusive = True

    def __init__(self, path: Path, lock: int, links: int) -> None:
        self.place = str(path)
        self._child = _start(links)
        self._free: queue.LifoQueue[Link] = queue.LifoQueue()
        for link in self._child.links:
            self._free.put(link)
        self._mutex = threading.Lock()
        self._fate = ""
        self._closed = False
        self.alive = True
        try:
            with self._asking({"op": "open", "path": str(path)}, {}, lock) as answer:
                answer()
        except BaseException:
            self.abandon()
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._child.pid

    def get_max_batch_size(self) -> int:
        """See Chroma."""
        return int(self._ask("get_max_batch_size"))

    def get_or_create_collection(
        self, name: str, configuration: Any, metadata: Mapping[str, Any]
    ) -> ChromaCollection:
        """See Chroma. One that is there keeps its metadata."""
        its = self._ask(
            "get_or_create_collection", name=name, configuration=configuration, metadata=metadata
        )
        return ChromaCollection(self, name, its)

    def get_collection(self, name: str) -> ChromaCollection:
        """See Chroma."""
        return ChromaCollection(self, name, self._ask("get_collection", name=name))

    def delete_collection(self, name: str) -> None:
        """See Chroma."""
        self._ask("delete_collection", name=name)

    def collection_names(self) -> list[str]:
        """Of all collections."""
        return list(self._ask("list_collections"))

    def close(self) -> None:
        """End the process, once nobody asks it any more. May be called twice."""
        if self._closed:
            return
        self._closed = True
        idle = False
        if self.alive:
            with contextlib.suppress(StoreError, ChromaError):
                self._ask("close")
                idle = len(_idle) < KEEP_IDLE
        self.alive = False
        if idle:
            _idle.append(self._child)
        else:
            self._child.close()

    def abandon(self) -> None:
        """Kill the process: after a failure Chroma may wait for itself for ever."""
        self.alive = False
        self._child.kill()

    @contextlib.contextmanager
    def asking(
        self, collection: str, op: str, arguments: Mapping[str, Any], arrays: Arrays
    ) -> Iterator[Answer]:
        """Ask a collection on entry; what is yielded waits for the answer.

        Raises:
            ChromaError: From the answer: Chroma refused or failed.
            StoreError: The process died.
            TypeError, ValueError: An argument cannot be written as JSON.
        """
        header = {"op": op, "collection": collection, "arguments": arguments}
        with self._asking(header, arrays) as answer:
            yield answer

    def _ask(self, op: str, **arguments: Any) -> Any:
        with self._asking({"op": op, "arguments": arguments}, {}) as answer:
            return answer()

    @contextlib.contextmanager
    def _asking(
        self, header: Mapping[str, Any], arrays: Arrays, descriptor: int | None = None
    ) -> Iterator[Answer]:
        link = self._free.get()
        answered = False

        def answer() -> Any:
            nonlocal answered
            answered = True
            return self._receive(link)

        try:
            self._send(link, header, arrays, descriptor)
            try:
                yield answer
            finally:
                if not answered:  # or the next question would get this one's answer
                    with contextlib.suppress(ChromaError, StoreError):
                        self._receive(link)
        finally:
            self._free.put(link)

    def _send(
        self, link: Link, header: Mapping[str, Any], arrays: Arrays, descriptor: int | None
    ) -> None:
        if not self.alive:
            raise self._death(self._fate or "is not running.")
        message = pack(header, arrays)  # an argument that is not JSON: nothing was sent
        try:
            link.post(message)
            if descriptor is not None:
                reduction.send_handle(link.connection, descriptor, self._child.pid)
        except OSError as error:
            raise self._died() from error
        except BaseException:  # Ctrl-C in the middle of a message
            self.abandon()
            raise

    def _receive(self, link: Link) -> Any:
        try:
            interrupt = _wait(link)
            header, arrays = link.receive()
        except (EOFError, OSError) as error:
            raise self._died() from error
        except BaseException:  # raised by a signal: the next question would get this one's answer
            self.abandon()
            raise
        if interrupt is not None:
            raise interrupt
        if "error" in header:
            raise ChromaError(**header["error"])
        result = header["result"]
        if arrays:
            result |= arrays
        return result

    def _died(self) -> StoreError:
        with self._mutex:
            self._fate = self._fate or self._child.obituary()
        self.abandon()
        return self._death(self._fate)

    def _death(self, how: str) -> StoreError:
        return StoreError(
            f"The process of Chroma ({self.place}) {how} The next call starts it again. If it goes "
            f"on dying, see what is wrong: {check_command(Path(self.place).parent)}"
        )


class ChromaCollection:
    """A collection of a `ChromaProcess`, as `vectors` uses it."""

    replaces = False

    def __init__(
        self, process: ChromaProcess, name: str, metadata: Mapping[str, Any] | None
    ) -> None:
        self.name = name
        self.metadata = metadata
        self._process = process

    @contextlib.contextmanager
    def asking(self, op: str, **arguments: Any) -> Iterator[Answer]:
        """See `ChromaProcess.asking`; arrays among the arguments are sent as such."""
        arrays = {key: value for key, value in arguments.items() if isinstance(value, np.ndarray)}
        plain = {key: value for key, value in arguments.items() if key not in arrays}
        with self._process.asking(self.name, op, plain, arrays) as answer:
            yield answer

    def refresh(self) -> None:
        """Nobody else writes."""

    def lost(self) -> list[str]:
        """None: what is there is what Chroma says."""
        return []

    def sweep(self) -> None:
        """Nothing is left over: a write ends with the process, or before it."""


def _start(links: int) -> Child:
    while _idle:
        child = _idle.pop()
        if len(child.links) >= links:
            return child
        child.close()
    try:
        return Child("tars_rag.retrieval.indexes.chroma.child:serve", links)
    except OSError as error:
        msg = f"The process of Chroma cannot be started: {error}. Is there memory left?"
        raise StoreError(msg) from error


def _wait(link: Link) -> KeyboardInterrupt | None:
    """Wait for an answer, whatever happens: a write is not left half-way.

    Ctrl-C could not end one in this process either: it is returned, to be raised afterwards.
    """
    try:
        link.wait()
    except KeyboardInterrupt as interrupt:
        return _wait(link) or interrupt
    return None
