"""A store that a server has, as a `HybridStore` asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from tars_rag.errors import FingerprintError, StoreError
from tars_rag.retrieval import http_contract as said
from tars_rag.retrieval.address import split_store
from tars_rag.retrieval.indexes.chroma.filters import Where, parse
from tars_rag.retrieval.indexes.codec import same_content
from tars_rag.retrieval.passage import Passage, Progress, ScoredPassage, TextEmbedder
from tars_rag.retrieval.remote.client import Client, TooLargeError
from tars_rag.retrieval.remote.models import RemoteEmbedder
from tars_rag.retrieval.searching import Request
from tars_rag.retrieval.storage.backup import Backup
from tars_rag.retrieval.storage.store_json import StoreJson, named
from tars_rag.retrieval.timing import Step, Stopwatch

_A = TypeVar("_A", bound=BaseModel)

_THERE: Final = "on the machine that has it"


class RemoteAccess:
    """A store of a server (see `StoreAccess`).

    Args:
        url: ``http://host:port/name``.
        embedder: Must have the fingerprint of the store.
        api_key: Of the server; None: TARS_API_KEY, or none.
        read_only: Nothing may be written.
        transport: How the server is reached; None: by the network.

    Raises:
        ConfigError: The address names no store, or the server has none of that name.
        FingerprintError: Its vectors were made by another embedder.
        StoreError: The server cannot be reached.
    """

    directory = None

    def __init__(
        self,
        url: str,
        embedder: TextEmbedder | None,
        *,
        api_key: str | None = None,
        read_only: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        base, name = split_store(url)
        self.path = url.rstrip("/")
        self._at = f"/v1/stores/{name}"
        self._read_only = read_only
        self._closed = False
        self.client = Client(base, api_key, transport=transport)
        try:
            self.about = self.client.get(self._at, said.StoreAnswer)
            if embedder is not None and embedder.fingerprint != self.about.fingerprint:
                ours = named(getattr(embedder, "model", None), embedder.fingerprint)
                theirs = named(self.about.model, self.about.fingerprint)
                msg = (
                    f"The store {self.path} was made with {theirs}, and this embedder is {ours}. "
                    "Leave the embedder out to use the server's."
                )
                raise FingerprintError(msg)
        except BaseException:
            self.client.close()
            raise

    def embedder(self) -> RemoteEmbedder:
        """The server's own embedder, which made the vectors of this store."""
        return RemoteEmbedder(self.client.base_url, client=self.client)

    @property
    def store_json(self) -> StoreJson:
        """See `StoreAccess`."""
        if self.about.dimension is None and not self._closed:
            self.about = self._get("", said.StoreAnswer)
        known = self.about
        return StoreJson(
            known.fingerprint,
            "",
            dimension=known.dimension,
            ready=True,
            model=known.model,
            language=known.language,
        )

    def probe(self) -> NDArray[np.float32] | None:
        """See `StoreAccess`."""
        packed = self._get("", said.StoreAnswer).probe
        return None if packed is None else said.unpack_vector(packed)

    def record_probe(self, probe: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `StoreAccess`. The server's embedder has a fingerprint that says enough."""
        known = self.probe()
        return probe if known is None else known

    def check_writable(self) -> None:
        """See `StoreAccess`."""
        self._check_open()
        if self._read_only or self.about.read_only:
            whose = "the server only reads" if self.about.read_only else "it is open read-only"
            msg = f"The store {self.path} cannot be written: {whose}."
            raise StoreError(msg)

    def changed(self, batch: Sequence[Passage]) -> list[Passage]:
        """See `StoreAccess`."""
        held = self.get([passage.id for passage in batch], None, None)
        return [p for p in batch if p.id not in held or not same_content(p, held[p.id])]

    def upsert(self, batch: Sequence[Passage], vectors: NDArray[np.float32]) -> None:
        """See `StoreAccess`. Written in several requests where one would be too large."""

        def write(start: int, end: int) -> None:
            body = said.UpsertRequest(
                passages=[said.PassageBody.of(passage) for passage in batch[start:end]],
                vectors=[said.pack_vector(row) for row in vectors[start:end]],
                fingerprint=self.about.fingerprint,
            )
            self._post("/passages", body, said.UpsertAnswer)

        self._halved(write, 0, len(batch))

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """See `StoreAccess`."""
        _check_filter(where)

        def ask(some: Sequence[str] | None) -> list[str]:
            body = said.MatchingRequest(ids=some, where=where)
            return self._post("/matching", body, said.MatchingAnswer).ids

        return [key for part in _parts(ids) for key in ask(part)]

    def delete(self, batch: Sequence[str], where: Where | None) -> int:
        """See `StoreAccess`."""
        _check_filter(where)
        # What was cut off may have been done: asked again it would count nothing.
        return sum(
            self._post(
                "/delete",
                said.DeleteRequest(ids=part, where=where),
                said.DeleteAnswer,
                again=False,
            ).deleted
            for part in _parts(batch)
        )

    def get(
        self, ids: Sequence[str] | None, where: Where | None, limit: int | None
    ) -> dict[str, Passage]:
        """See `StoreAccess`."""
        _check_filter(where)
        found: dict[str, Passage] = {}
        for part in _parts(ids):
            body = said.GetRequest(ids=part, where=where, limit=limit)
            for one in self._post("/get", body, said.GetAnswer).passages:
                found[one.id] = one.passage()
        return found

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """See `StoreAccess`."""
        found: dict[str, NDArray[np.float32]] = {}
        for part in _parts(ids):
            body = said.VectorsRequest(ids=part or [])
            for key, packed in self._post("/vectors", body, said.VectorsAnswer).vectors.items():
                found[key] = said.unpack_vector(packed)
        return found

    def search(
        self, request: Request, vector: NDArray[np.float32] | None, watch: Stopwatch
    ) -> list[ScoredPassage]:
        """See `StoreAccess`."""
        _check_filter(request.where)
        body = said.SearchRequest(
            query=request.query,
            k=request.k,
            strategy=request.strategy,
            where=request.where,
            vector=None if vector is None else said.pack_vector(vector),
            weight=request.weight,
            min_score=request.min_score,
            every=request.every,
            rerank=False,
        )
        answer = self._post("/search", body, said.SearchAnswer)
        watch.steps.extend(
            Step(step.name, step.milliseconds, step.device, step.note) for step in answer.steps
        )
        return [one.hit() for one in answer.passages]

    def count(self) -> int:
        """See `StoreAccess`."""
        return self._get("/count", said.CountAnswer).count

    def flush(self) -> None:
        """See `StoreAccess`."""
        self._post("/flush", said.NothingRequest(), said.CountAnswer)

    def compact(self, progress: Progress | None) -> None:
        """See `StoreAccess`."""
        raise StoreError(self._elsewhere("compacted", "tars-rag store compact"))

    def backup(self, path: Path, progress: Progress | None) -> Backup:
        """See `StoreAccess`."""
        raise StoreError(self._elsewhere("backed up", "tars-rag store backup"))

    def close(self, *, flush: bool = True) -> None:
        """See `StoreAccess`."""
        self._closed = True
        self.client.close()

    def _elsewhere(self, done: str, command: str) -> str:
        return f"The store {self.path} can only be {done} {_THERE}: {command}"

    def _check_open(self) -> None:
        if self._closed:
            msg = f"The store {self.path} is closed. Open it again."
            raise StoreError(msg)

    def _get(self, path: str, answer: type[_A]) -> _A:
        self._check_open()
        return self.client.get(self._at + path, answer)

    def _post(self, path: str, body: said.Said, answer: type[_A], *, again: bool = True) -> _A:
        self._check_open()
        return self.client.post(self._at + path, body, answer, again=again)

    def _halved(self, do: Callable[[int, int], None], start: int, end: int) -> None:
        try:
            do(start, end)
        except TooLargeError:
            if end - start < 2:
                raise
            middle = (start + end) // 2
            self._halved(do, start, middle)
            self._halved(do, middle, end)


def _check_filter(where: Where | None) -> None:
    if where is not None:
        parse(where)  # refused here, before anything is sent


def _parts(ids: Sequence[str] | None) -> list[list[str] | None]:
    """Ids in as many requests as they need; None: all passages, in one."""
    if ids is None:
        return [None]
    most = said.MOST_PASSAGES
    return [list(ids[start : start + most]) for start in range(0, len(ids), most)]
