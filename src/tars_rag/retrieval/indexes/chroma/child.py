"""Embedded Chroma's process: the real client, asked over links by `chroma_process`."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Mapping
from functools import partial
from multiprocessing import reduction
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tars_rag.child import Link, Reply, trim_log
from tars_rag.retrieval.indexes.chroma.client import ChromaError

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

_WRITES = {"upsert", "update", "delete", "modify"}


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
                return self._change_collections(op, **arguments), {}
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

    def _change_collections(self, op: str, name: str, **arguments: Any) -> Any:
        """Open, make or drop a collection; the metadata of one that is open now."""
        if op == "delete_collection":
            self._collections.pop(name, None)
            self._client.delete_collection(name)
            return None
        found = getattr(self._client, op)(name, embedding_function=None, **arguments)
        self._collections[name] = found
        return found.metadata

    def _close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            client.close()
        self._collections.clear()
        if self._lock >= 0:
            descriptor, self._lock = self._lock, -1
            os.close(descriptor)


def _open(path: str) -> Any:
    # Chroma reads the .env of the working directory, when it is imported already: one that is
    # another program's, may not be UTF-8, and may set what Chroma takes for its own settings.
    directory = Path(path).absolute()
    os.chdir(directory.parent)
    import chromadb
    from chromadb.config import Settings

    return chromadb.PersistentClient(str(directory), settings=Settings(anonymized_telemetry=False))


def _as_header(error: BaseException) -> dict[str, Any]:
    ours = ChromaError.of(error)
    content = {"message": str(ours), "kind": ours.kind, "is_value_error": ours.is_value_error}
    return {"error": content}
