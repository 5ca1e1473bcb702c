"""A store in a table of LanceDB, as a `HybridStore` asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import ConfigError, StoreError
from tars_rag.retrieval.address import lance_address
from tars_rag.retrieval.indexes.chroma.filters import Where, parse
from tars_rag.retrieval.indexes.codec import pack_content
from tars_rag.retrieval.indexes.words.languages import DEFAULT_LANGUAGE
from tars_rag.retrieval.lance import library, table, upkeep
from tars_rag.retrieval.lance.facts import quoted, with_ids
from tars_rag.retrieval.lance.moment import Moment
from tars_rag.retrieval.lance.table import FILES, PASSAGES, PROBE, About
from tars_rag.retrieval.lance.told import as_store_json
from tars_rag.retrieval.lance.words import MomentWords
from tars_rag.retrieval.lance.writing import again
from tars_rag.retrieval.passage import Passage, Progress, ScoredPassage, TextEmbedder
from tars_rag.retrieval.searching import Request, Sides, search
from tars_rag.retrieval.storage.backup import Backup
from tars_rag.retrieval.storage.store_json import StoreJson
from tars_rag.retrieval.timing import Stopwatch

_A = TypeVar("_A")


class LanceAccess:
    """A store that many machines share (see `StoreAccess`).

    Args:
        address: ``lance:///directory`` or ``lance+s3://bucket/name``.
        embedder: Must have the fingerprint of the store.
        read_only: Nothing may be written, nor made.
        language: Of a new store; None: English. Of one that is there it must be its own.

    Raises:
        ConfigError: The address is none, LanceDB is not installed, or the store has another
            language.
        FingerprintError: Its vectors were made by another embedder.
        StoreError: It cannot be reached or made; or there is none, and it is `read_only`.
    """

    directory = None

    def __init__(
        self,
        address: str,
        embedder: TextEmbedder,
        *,
        read_only: bool = False,
        language: str | None = None,
    ) -> None:
        self.path = lance_address(address)
        self._embedder, self._read_only, self._language = embedder, read_only, language
        self._closed = False
        self._mutex = threading.Lock()
        self._about: About | None = None
        self._latest: Any = None
        self._moment: tuple[Moment, MomentWords] | None = None
        self._upkeep = upkeep.Upkeep(lambda: self._connection.open_table(PASSAGES))
        library.library()
        library.check_place(self.path, read_only=read_only)
        self._connection = library.connected(self.path)
        with library.asking(self.path, "opened"):
            if not self._find() and read_only:
                raise StoreError(library.no_store(self.path))
            dimension = getattr(embedder, "dimension", None)
            if self._about is None and isinstance(dimension, int):
                self._make(dimension)

    @property
    def store_json(self) -> StoreJson:
        """See `StoreAccess`."""
        held = self._about
        if held is None and not self._closed:
            with library.asking(self.path, "read"):
                self._find()
            held = self._about
        if held is None:
            model = getattr(self._embedder, "model", None)
            language = self._language or DEFAULT_LANGUAGE
            return StoreJson(self._embedder.fingerprint, "", model=model, language=language)
        return as_store_json(held)

    def probe(self) -> NDArray[np.float32] | None:
        """See `StoreAccess`."""
        self._check_open()
        with library.asking(self.path, "read"):
            if not table.exists(self._connection, PROBE):
                return None
            held = self._connection.open_table(PROBE).search().limit(1).to_arrow()["vector"]
        return np.asarray(held[0].as_py(), np.float32)

    def record_probe(self, probe: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `StoreAccess`. It is a table of its own: making one is a step that one wins."""
        self.check_writable()
        with library.asking(self.path, "written"):
            self._ready(len(probe))
            rows = library.arrow().table({"vector": [[float(value) for value in probe]]})
            table.make(self._connection, PROBE, data=rows)
        held = self.probe()
        return probe if held is None else held

    def check_writable(self) -> None:
        """See `StoreAccess`."""
        self._check_open()
        if self._read_only:
            msg = f"The store {self.path} cannot be written: it is open read-only."
            raise StoreError(msg)

    def changed(self, batch: Sequence[Passage]) -> list[Passage]:
        """See `StoreAccess`."""
        with library.asking(self.path, "read"):
            now = self.now()
            held = {} if now is None else now[0].digests([passage.id for passage in batch])
        return [p for p in batch if held.get(p.id) != table.digest(pack_content(p))]

    def upsert(self, batch: Sequence[Passage], vectors: NDArray[np.float32]) -> None:
        """See `StoreAccess`. One batch is one version of the table."""
        self.check_writable()
        with library.asking(self.path, "written"):
            self._ready(vectors.shape[1])
            rows = table.rows(batch, vectors, self.store_json.language, self._latest.schema)

            def write(writer: Any) -> None:
                merge = writer.merge_insert("id")
                merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

            self.written(write)

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """See `StoreAccess`."""
        return self._asked(where, lambda moment: list(moment.matching(ids, where)), [])

    def delete(self, batch: Sequence[str], where: Where | None) -> int:
        """See `StoreAccess`."""
        self.check_writable()
        with library.asking(self.path, "written"):
            if not self._find():
                return 0
            condition = with_ids(batch)
            if where is not None:
                # What was judged by the filter is deleted, and nothing that replaced it meanwhile.
                found: dict[str, str] = self._asked(
                    where, lambda moment: moment.digests(moment.matching(batch, where)), {}
                )
                if not found:
                    return 0
                digests = ", ".join(map(quoted, found.values()))
                condition = f"{with_ids(list(found))} AND digest IN ({digests})"
            return self.written(lambda writer: int(writer.delete(condition).num_deleted_rows))

    def get(
        self, ids: Sequence[str] | None, where: Where | None, limit: int | None
    ) -> dict[str, Passage]:
        """See `StoreAccess`."""
        return self._asked(where, lambda moment: moment.get(ids, where, limit), {})

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """See `StoreAccess`."""
        return self._asked(None, lambda moment: moment.vectors(ids), {})

    def search(
        self, request: Request, vector: NDArray[np.float32] | None, watch: Stopwatch
    ) -> list[ScoredPassage]:
        """See `StoreAccess`. The whole search is of one version of the table."""
        if request.where is not None:
            parse(request.where)
        self._check_open()
        with library.asking(self.path, "searched"):
            with watch.step("version") as notes:
                now = self.now()
                notes.append("none" if now is None else str(now[0].version))
            if now is None:
                return []
            moment, words = now
            return search(Sides(moment, moment, words, exhaustive=False), request, vector, watch)

    def whole(self) -> Iterator[tuple[list[Passage], NDArray[np.float32]]]:
        """All passages and their vectors [n, dim], of one version, in parts."""
        with library.asking(self.path, "read"):
            now = self.now()
            if now is not None:
                yield from now[0].whole()

    def count(self) -> int:
        """See `StoreAccess`."""
        return self._asked(None, lambda moment: moment.count(), 0)

    def flush(self) -> None:
        """See `StoreAccess`. Whatever was acknowledged is in the table."""
        self._check_open()

    def compact(self, progress: Progress | None) -> None:
        """See `StoreAccess`. Also brings the indexes up to date."""
        self.check_writable()
        with library.asking(self.path, "compacted"):
            if self._find():
                self.written(upkeep.optimise)
                if table.exists(self._connection, FILES):
                    self.written(upkeep.tidy, FILES)
        if progress is not None:
            total = self.count()
            progress(total, total)

    def backup(self, path: Path, progress: Progress | None) -> Backup:
        """See `StoreAccess`."""
        msg = (
            f"The store {self.path} has no backup file. Export it: tars-rag store export "
            f"{self.path} FILE.parquet; or copy its directory or bucket, whose files never change."
        )
        raise StoreError(msg)

    def close(self, *, flush: bool = True) -> None:
        """See `StoreAccess`. Waits for what keeps the store quick, with `flush`."""
        if flush and not self._closed:
            self._upkeep.close()
        self._closed = True
        self._moment = self._latest = None

    # -- the table ----------------------------------------------------------------------------

    def _find(self) -> bool:
        """Whether there is a table; the first time it is there it is looked at."""
        with self._mutex:
            if self._about is not None:
                return True
            if not table.exists(self._connection, PASSAGES):
                return False
            latest = self._connection.open_table(PASSAGES)
            held = table.about(latest, self.path)
            table.check_fingerprint(held, self._embedder, self.path)
            if self._language not in (None, held.language):
                msg = (
                    f"The store {self.path} is read in {held.language!r}, not {self._language!r}. "
                    "Leave the language out, or make another store."
                )
                raise ConfigError(msg)
            self._latest, self._about = latest, held
            if not self._read_only:
                table.index(self._connection.open_table(PASSAGES))
            return True

    def _make(self, dimension: int) -> None:
        model = getattr(self._embedder, "model", None)
        language = self._language or DEFAULT_LANGUAGE
        said = About(self._embedder.fingerprint, model, language, dimension)
        table.create(self._connection, self.path, said)
        self._find()

    def _ready(self, dimension: int) -> None:
        """Make the table if there is none."""
        if not self._find():
            self._make(dimension)

    def now(self) -> tuple[Moment, MomentWords] | None:
        """The newest version, whoever has written it; None: there is no table yet."""
        self._check_open()
        if not self._find():
            return None
        with self._mutex:
            self._check_open()
            self._latest.checkout_latest()
            version = int(self._latest.version)
            if self._moment is None or self._moment[0].version != version:
                assert self._about is not None
                moment = Moment(self._connection.open_table(PASSAGES, version=version), version)
                self._moment = moment, MomentWords(moment, self.path, self._about.language)
            return self._moment

    def _asked(self, where: Where | None, question: Callable[[Moment], _A], nothing: _A) -> _A:
        if where is not None and where != {}:
            parse(where)  # also refused where there is nothing
        with library.asking(self.path, "read"):
            now = self.now()
            return nothing if now is None else question(now[0])

    def written(self, write: Callable[[Any], _A], name: str = PASSAGES) -> _A:
        """What a write to one of the store's tables gives; it is one version of that."""
        done = again(self._connection, self.path, write, name)
        if name == PASSAGES:
            self._upkeep.written()
        return done

    def beside(self, name: str, schema: Callable[[], Any] | None = None) -> Any:
        """Another table of the store, newest version; made by the schema; None: there is none."""
        self._check_open()
        if not table.exists(self._connection, name):
            if schema is None:
                return None
            table.make(self._connection, name, schema=schema())
        return self._connection.open_table(name)

    def _check_open(self) -> None:
        if self._closed:
            msg = f"The store {self.path} is closed. Open it again."
            raise StoreError(msg)
