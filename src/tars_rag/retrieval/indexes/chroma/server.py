"""Chroma behind a server, which other processes use too.

How requests are sent is in `requests`; what those may do that are carried out too late, in
`revisions`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tars_rag.errors import ConfigError, StoreError
from tars_rag.retrieval.indexes.chroma.client import Answer, ChromaError, Collection
from tars_rag.retrieval.indexes.chroma.requests import Asker, url_parts
from tars_rag.retrieval.indexes.chroma.revisions import (
    Revisions,
    new_revision,
    parts_of,
    record_id,
)

REVISIONS = "revisions"
"""The directory, in the store's, that says which records count."""
_IDS_BATCH = 20_000
_SHOWN = 3
_log = logging.getLogger(__name__)


class ServerClient:
    """Chroma behind a server.

    Args:
        url: ``http://host:port``.
        directory: The store's, where the revisions are.
        read_only: Nothing may be written there.

    Raises:
        ConfigError: The url is not usable.
        StoreError: The client cannot be made.
    """

    alive = True
    exclusive = False

    def __init__(self, url: str, directory: Path, *, read_only: bool = False) -> None:
        self.place = url
        self._revisions = directory / REVISIONS
        self._read_only = read_only
        parts = url_parts(url)
        settings = _settings(parts.hostname, parts.port, https=parts.scheme == "https")
        from chromadb.api.fastapi import FastAPI
        from chromadb.config import System

        try:
            self._system = System(settings)
            self._server: Any = self._system.instance(FastAPI)
        except Exception as error:
            msg = f"The client of the Chroma server {url} cannot be made: {error}"
            raise StoreError(msg) from error
        self._asker = Asker(url, self._server._session)

    def get_max_batch_size(self) -> int:
        """See Chroma."""
        return int(self._asker.ask(self._server.get_max_batch_size))

    def get_or_create_collection(
        self, name: str, configuration: Any, metadata: Mapping[str, Any]
    ) -> Collection:
        """See Chroma. One that is there keeps its metadata."""
        model = self._asker.ask(
            self._server.get_or_create_collection,
            name=name,
            configuration=configuration,
            metadata=dict(metadata),
        )
        return self._collection(model)

    def get_collection(self, name: str) -> Collection:
        """See Chroma.

        Raises:
            ConfigError: There is none of that name: it is another server.
        """
        try:
            model = self._asker.ask(self._server.get_collection, name=name)
        except ChromaError as error:
            if error.kind != "NotFoundError":
                raise
            msg = (
                f"The Chroma server {self.place} has no collection {name!r}: it is not the server "
                f"of the store {self._revisions.parent}, or runs on another data directory. Give "
                "the url of the server that the store was made with, or start that one with its "
                "data: chroma run --path DIR"
            )
            raise ConfigError(msg) from error
        return self._collection(model)

    def delete_collection(self, name: str) -> None:
        """See Chroma."""
        self._asker.ask(self._server.delete_collection, name=name)
        with contextlib.suppress(OSError):
            self._file(name).unlink(missing_ok=True)

    def collection_names(self) -> list[str]:
        """Of all collections."""
        return [model.name for model in self._asker.ask(self._server.list_collections)]

    def close(self) -> None:
        """Close the connections. May be called twice."""
        with contextlib.suppress(Exception):
            self._server._session.close()
        with contextlib.suppress(Exception):
            self._system.stop()

    def abandon(self) -> None:
        """The server looks after itself."""

    def _collection(self, model: Any) -> ServerCollection:
        from chromadb.api.models.Collection import Collection as Chromas

        found = Chromas(client=self._server, model=model, embedding_function=None)
        return ServerCollection(found, self._asker, self._file(found.name), self._read_only)

    def _file(self, name: str) -> Path:
        return self._revisions / name


class ServerCollection:
    """A collection of a server, of whose records only those count that `Revisions` names."""

    replaces = True

    def __init__(self, collection: Any, asker: Asker, file: Path, read_only: bool) -> None:
        self.name: str = collection.name
        self.metadata: Mapping[str, Any] | None = collection.metadata
        self._collection = collection
        self._asker = asker
        self._read_only = read_only
        self._doomed: set[str] = set()
        try:
            self._revisions = Revisions(file)
        except FileNotFoundError:
            self._revisions = self._adopted(file)

    @contextlib.contextmanager
    def asking(self, op: str, **arguments: Any) -> Iterator[Answer]:
        """See `Collection.asking`: answered on entry."""
        result = getattr(self, f"_{op}")(**arguments)
        yield lambda: result

    def refresh(self) -> None:
        """See what other processes wrote."""
        self._revisions.refresh()

    def lost(self) -> list[str]:
        """Ids whose record the server has no more."""
        there = {key for key in self._records() if self._revisions.counts(key)}
        keys = self._revisions.page(0, None)
        records = self._revisions.record_ids(keys)
        return [key for key, own in zip(keys, records, strict=True) if own not in there]

    def sweep(self) -> None:
        """Delete the records that count for nothing: what requests that came too late left."""
        if int(self._ask("count")) == len(self._revisions):
            return
        strangers = [key for key in self._records() if not self._revisions.counts(key)]
        if strangers:
            _log.info("%s: %d leftover records are deleted", self._asker.place, len(strangers))
            self._discard(strangers)

    def _upsert(self, ids: Sequence[str], embeddings: Any, metadatas: Sequence[Any]) -> None:
        old = self._revisions.record_ids(ids)
        revision = new_revision()
        self._ask(
            "add",
            ids=[record_id(key, revision) for key in ids],
            embeddings=embeddings,
            metadatas=list(metadatas),
        )
        self._revisions.commit(dict.fromkeys(ids, revision))
        self._discard(old)

    def _delete(self, ids: Sequence[str]) -> None:
        old = self._revisions.record_ids(ids)
        self._revisions.commit({key: None for key in ids if key in self._revisions})
        self._discard(old)

    def _update(self, ids: Sequence[str], metadatas: Sequence[Any]) -> None:
        self._ask("update", ids=self._revisions.record_ids(ids), metadatas=list(metadatas))

    def _modify(self, metadata: Mapping[str, Any]) -> None:
        self._ask("modify", metadata=dict(metadata))

    def _count(self) -> int:
        return len(self._revisions)

    def _get(
        self,
        include: list[str],
        ids: Sequence[str] | None = None,
        where: Any = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> dict[str, Any]:
        if where is None:
            keys = self._revisions.page(offset, limit) if ids is None else ids
            return self._by_key([key for key in keys if key in self._revisions], include)
        found = self._ask("get", where=where, limit=limit, include=include)
        rows = self._counting(found)
        if limit is not None and len(rows["ids"]) < len(found["ids"]):
            found = self._ask("get", where=where, include=include)
            rows = self._counting(found, limit)
        return rows

    def _by_key(self, keys: Sequence[str], include: list[str]) -> dict[str, Any]:
        if not include or not keys:
            return {"ids": list(keys), **{name: [] for name in include}}
        found = self._ask("get", ids=self._revisions.record_ids(keys), include=include)
        rows = self._counting(found)
        missing = {*keys}.difference(rows["ids"])
        if missing:
            some = ", ".join(map(repr, sorted(missing)[:_SHOWN]))
            problem = (
                f"the server has lost {len(missing)} of the store's passages ({some}): its data "
                "are older than the store, or another program deleted them"
            )
            raise ChromaError(problem, "LostError")
        return rows

    def _counting(self, found: Mapping[str, Any], limit: int | None = None) -> dict[str, Any]:
        """Of an answer, what counts, by the ids of passages."""
        ids = found["ids"]
        kept = [n for n, key in enumerate(ids) if self._revisions.counts(key)][:limit]
        rows: dict[str, Any] = {"ids": [parts_of(ids[n])[0] for n in kept]}
        for name in ("metadatas", "embeddings"):
            if found.get(name) is not None:
                rows[name] = [found[name][n] for n in kept]
        return rows

    def _discard(self, records: Sequence[str]) -> None:
        """Delete records that stopped counting. If that fails they harm nobody, until a sweep."""
        self._doomed.update(records)
        doomed = list(self._doomed)
        try:
            for start in range(0, len(doomed), 1000):
                piece = doomed[start : start + 1000]
                self._ask("delete", ids=piece)
                self._doomed.difference_update(piece)
        except ChromaError as error:
            _log.info("%s: old records are deleted later: %s", self._asker.place, error)

    def _records(self) -> list[str]:
        """The ids of all records that the server has."""
        found: list[str] = []
        while True:
            step = self._ask("get", limit=_IDS_BATCH, offset=len(found), include=[])["ids"]
            found += step
            if len(step) < _IDS_BATCH:
                return found

    def _adopted(self, file: Path) -> Revisions:
        """The revisions of a collection that has none: it is new, older, or they were lost."""
        records = self._records()
        if self._read_only:
            problem = f"{file} is missing"
            raise ChromaError(problem, "Lost", advice="Open the store once for writing.")
        known: dict[str, str] = {}
        for record in records:
            key, revision = parts_of(record)
            known[key] = max(revision, known.get(key, ""))
        if any(known.values()):
            _log.warning(
                "%s was lost and is made anew from the server's records, the last of each passage. "
                "A passage that was just deleted may be back",
                file,
            )
        return Revisions.create(file, known)

    def _ask(self, op: str, **arguments: Any) -> Any:
        return self._asker.ask(getattr(self._collection, op), **arguments)


def _settings(host: str, port: int | None, *, https: bool) -> Any:
    try:
        from chromadb.config import Settings
    except UnicodeDecodeError as error:
        msg = (
            f"Chroma's client reads {Path('.env').absolute()} and takes only UTF-8 ({error}). "
            "Start in another directory, or convert the file: iconv -f LATIN1 -t UTF-8 .env > "
            ".env.utf8 && mv .env.utf8 .env"
        )
        raise ConfigError(msg) from error
    return Settings(
        anonymized_telemetry=False,
        chroma_api_impl="chromadb.api.fastapi.FastAPI",
        chroma_server_host=host,
        chroma_server_http_port=port or (443 if https else 8000),
        chroma_server_ssl_enabled=https,
    )
