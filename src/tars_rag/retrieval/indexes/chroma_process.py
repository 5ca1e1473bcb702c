"""Embedded Chroma in a process of its own.

Chroma's bindings hold the interpreter's lock for the whole of a write, and every thousand writes
one rewrites the vector files: in the program's own process an event loop would stand still
meanwhile, for hundreds of milliseconds in a large store. A fault in its native code would end the
program. So it runs in a child, and this module is both ends: `ChromaProcess` is a `chroma.Client`,
`serve` the child.

The child holds the store's lock too. Killed with SIGKILL the parent leaves a write that the child
finishes, and until then nobody else can open the store.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from functools import partial
from multiprocessing import reduction
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tars_rag.child import Child, Link, Reply, pack, trim_log
from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.chroma_client import Answer, ChromaError

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
KEEP_IDLE = 0
"""How many processes stay after close, for the next store: it saves that one a second. The tests,
which open hundreds, keep one; a program that closes a store expects nothing to be left."""
_idle: list[Child] = []
os.register_at_fork(after_in_child=_idle.clear)

_WRITES = {"upsert", "delete"}


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

    def get_max_batch_size(self) -> int:
        """See Chroma."""
        return int(self._ask("get_max_batch_size"))

    def get_or_create_collection(self, name: str, configuration: Any) -> ChromaCollection:
        """See Chroma."""
        self._ask("get_or_create_collection", name=name, configuration=configuration)
        return ChromaCollection(self, name)

    def get_collection(self, name: str) -> ChromaCollection:
        """See Chroma."""
        self._ask("get_collection", name=name)
        return ChromaCollection(self, name)

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
        interrupt = _wait(link)
        try:
            header, arrays = link.receive()
        except (EOFError, OSError) as error:
            raise self._died() from error
        except BaseException:  # Ctrl-C in the middle of a message
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
            "on dying, see what is wrong: tars-rag store check DIR"
        )


class ChromaCollection:
    """A collection of a `ChromaProcess`, as `vectors` uses it."""

    def __init__(self, process: ChromaProcess, name: str) -> None:
        self.name = name
        self._process = process

    @contextlib.contextmanager
    def asking(self, op: str, **arguments: Any) -> Iterator[Answer]:
        """See `ChromaProcess.asking`; arrays among the arguments are sent as such."""
        arrays = {key: value for key, value in arguments.items() if isinstance(value, np.ndarray)}
        plain = {key: value for key, value in arguments.items() if key not in arrays}
        with self._process.asking(self.name, op, plain, arrays) as answer:
            yield answer


def _start(links: int) -> Child:
    while _idle:
        child = _idle.pop()
        if len(child.links) >= links:
            return child
        child.close()
    try:
        return Child("tars_rag.retrieval.indexes.chroma_process:serve", links)
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


def serve(links: list[Link]) -> None:
    """The child: one thread for each link, until the parent closes them or is gone."""
    # Whoever ends the parent ends us; but not in the middle of a write.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    server = _Server()
    for link in links[1:]:
        threading.Thread(target=server.answer, args=(link,), daemon=True).start()
    server.answer(links[0])


class _Server:
    """The real client, in the child."""

    def __init__(self) -> None:
        self._client: Any = None
        self._collections: dict[str, Any] = {}
        self._lock = -1
        self._writing = threading.Lock()

    def answer(self, link: Link) -> None:
        """Answer the questions of one link; whatever ends that ends the process."""
        code = 0
        try:
            while True:
                header, arrays = link.receive()
                if header["op"] == "open":
                    self._lock = reduction.recv_handle(link.connection)
                link.reply(partial(self._run, header, arrays), _as_header)
                trim_log()
        except (EOFError, OSError):
            pass  # the parent is gone, or has closed the store
        except BaseException:
            traceback.print_exc()  # the process's last words
            code = 1
        finally:
            with self._writing:
                os._exit(code)

    def _run(self, header: Mapping[str, Any], arrays: Arrays) -> Reply:
        result, found = self._answer_to(header, arrays)
        return {"result": result}, found

    def _answer_to(self, header: Mapping[str, Any], arrays: Arrays) -> tuple[Any, Arrays]:
        """What is asked for, as JSON and arrays."""
        op = header["op"]
        arguments = {**header.get("arguments", {}), **arrays}
        collection = header.get("collection")
        if op == "open":
            self._client = _open(header["path"])
        elif op == "close":
            self._close()
        elif collection is not None:
            return self._run_on_collection(collection, op, arguments)
        elif op == "get_max_batch_size":
            return self._client.get_max_batch_size(), {}
        elif op == "list_collections":
            return [found.name for found in self._client.list_collections()], {}
        else:
            with self._writing:
                self._change_collections(op, **arguments)
        return None, {}

    def _run_on_collection(
        self, name: str, op: str, arguments: dict[str, Any]
    ) -> tuple[Any, Arrays]:
        run = getattr(self._collections[name], op)
        if op in _WRITES:
            with self._writing:
                run(**arguments)
            return None, {}
        result = run(**arguments)
        if op == "count":
            return result, {}
        # Only what was asked for is not None.
        plain = {key: value for key, value in result.items() if value is not None}
        vectors = plain.pop("embeddings", None)
        found = {} if vectors is None else {"embeddings": np.asarray(vectors, np.float32)}
        return plain, found

    def _change_collections(self, op: str, name: str, configuration: Any = None) -> None:
        if op == "delete_collection":
            self._collections.pop(name, None)
            self._client.delete_collection(name)
        elif op == "get_collection":
            self._collections[name] = self._client.get_collection(name, embedding_function=None)
        else:
            self._collections[name] = self._client.get_or_create_collection(
                name, embedding_function=None, configuration=configuration
            )

    def _close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            client.close()
        self._collections.clear()
        if self._lock >= 0:
            descriptor, self._lock = self._lock, -1
            os.close(descriptor)


def _open(path: str) -> Any:
    import chromadb
    from chromadb.config import Settings

    return chromadb.PersistentClient(path, settings=Settings(anonymized_telemetry=False))


def _as_header(error: BaseException) -> dict[str, Any]:
    ours = ChromaError.of(error)
    content = {"message": str(ours), "kind": ours.kind, "is_value_error": ours.is_value_error}
    return {"error": content}
