"""HybridStore: passages in indexes that never disagree.

Chroma holds texts, metadata and vectors and is the truth; the exact vector index and the lexical
one, which searches look into, follow it. What makes them trustworthy (journal, lock, repair) is in
`storage`, how several processes have one is in `sharing`; both are told in docs/store.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tars_rag.errors import InvalidInputError, shown
from tars_rag.retrieval import writing
from tars_rag.retrieval.address import is_lance
from tars_rag.retrieval.indexes import checks
from tars_rag.retrieval.indexes.chroma.filters import Where
from tars_rag.retrieval.opening import opened
from tars_rag.retrieval.passage import Passage, Progress, ScoredPassage, TextEmbedder
from tars_rag.retrieval.searching import check_request
from tars_rag.retrieval.sharing.peer import Peer
from tars_rag.retrieval.storage.backup import Backup
from tars_rag.retrieval.storage.directory import StoreDirectory
from tars_rag.retrieval.storage.layout import store_path
from tars_rag.retrieval.timing import Stopwatch
from tars_rag.settings import Strategy

if TYPE_CHECKING:
    from tars_rag.retrieval.lance.access import LanceAccess


class HybridStore:
    """A directory of passages, searched by meaning and by words.

    The first process holds the store from open to close. Further ones, of the same user on the same
    machine, are its guests: they ask the holder, and one of them takes the store over when that
    closes it or dies. Any number of threads may call any method.

    Args:
        path: The store's directory; made, if missing, once everything in it is complete. Or
            ``http://host:port/name`` of a `tars-rag serve` that has it; or ``lance:///directory``
            or ``lance+s3://bucket/name``, which many machines share (docs/lance.md).
        embedder: Anything with `embed(texts) -> float32 [n, dim]` and `fingerprint`. None: the
            server's, of a store that a server has.
        read_only: Calls write nothing; nor does opening it, unless that takes over from a holder
            that had guests or was killed.
        chroma_url: ``http://host:port`` of a Chroma server, instead of an embedded Chroma.
        language: How words are read: a code of docs/words.md such as ``"de"``, ``"none"`` or
            ``"multi"``. None: as the store has it; a new store is ``"en"``.
        progress: Called with (done, total) while a damaged index is rebuilt.
        share: Be a guest, and have guests; False: one process at a time, others are refused.
        api_key: Of the server; None: TARS_API_KEY, or none.

    Raises:
        StoreLockedError: It is open in this process, or in one that does not share it, such as
            another user's, another machine's or another version's; the message names its pid.
        FingerprintError: Its vectors were made by another embedder.
        StoreError: It is damaged beyond what opening repairs, or cannot be read or written.
    """

    def __init__(
        self,
        path: str | Path,
        embedder: TextEmbedder | None = None,
        *,
        read_only: bool = False,
        chroma_url: str | None = None,
        language: str | None = None,
        progress: Progress | None = None,
        share: bool = True,
        api_key: str | None = None,
    ) -> None:
        self._access, self.embedder = opened(
            path,
            embedder,
            read_only=read_only,
            chroma_url=chroma_url,
            language=language,
            progress=progress,
            share=share,
            api_key=api_key,
        )

    @property
    def path(self) -> Path | str:
        """The store's directory, absolute; its address, where it is no directory."""
        return self._access.path

    @property
    def local_path(self) -> Path:
        """The store's directory.

        Raises:
            InvalidInputError: A server has it, or LanceDB.
        """
        path = self.path
        if isinstance(path, str):
            away = "on another machine, and files are indexed where it is: start its server with "
            away += "--watch FOLDER, or run tars-rag index there."
            here = "in LanceDB, not in a directory."
            msg = f"The store {path} is {here if is_lance(path) else away}"
            raise InvalidInputError(msg)
        return path

    @property
    def shared_table(self) -> LanceAccess | None:
        """What it is asked in LanceDB, which also keeps from which files its passages are."""
        return cast("LanceAccess", self._access) if is_lance(self.path) else None

    @property
    def fingerprint(self) -> str:
        """Of the embedder that made the vectors."""
        return self._access.store_json.fingerprint

    @property
    def language(self) -> str:
        """How its words are read."""
        return self._access.store_json.language

    @property
    def probe(self) -> NDArray[np.float32] | None:
        """What its embedder made of one fixed text, where that was recorded: float32 [dim]."""
        return self._access.probe()

    def record_probe(self, probe: NDArray[np.float32]) -> NDArray[np.float32]:
        """Record what the embedder makes of one fixed text, unless another process was faster.

        For embedders of other libraries, whose fingerprint says too little.

        Returns:
            What is recorded, float32 [dim].

        Raises:
            StoreError: It cannot be written.
        """
        return self._access.record_probe(probe)

    @property
    def dimension(self) -> int | None:
        """Length of the vectors; None while the store is empty and the embedder does not say."""
        return writing.dimension_of(self._access, self.embedder)

    def upsert(
        self,
        passages: Iterable[Passage],
        vectors: Iterable[ArrayLike] | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Store passages; one with a known id replaces the old one whole.

        Anything iterable is taken, and read in batches of 256, so that memory does not grow with
        it. Each batch is durable before the next is read. Lists, tuples and arrays are checked
        whole, passages and vectors, before anything is written. Passages that are there already,
        the same in text and metadata, are not embedded again, so that a long upsert that was
        killed can simply be repeated.

        Args:
            passages: What to store; left as it is.
            vectors: Vectors [n, dim] of this store's embedder, one for each passage, where they
                are there already.
            progress: Called with (done, total or None) after each batch.

        Returns:
            How many passages are stored, those that were there already included.

        Raises:
            InvalidInputError: An id that is empty or occurs twice, metadata that is not JSON, a
                vector that is not finite, of another dimension or all zeros; the message names the
                passage. Nothing is stored then; of an iterator, the batches before it are.
            StoreError: Writing failed; the message says what to do. The batches before are stored.
        """
        return writing.upsert(self._access, self.embedder, passages, vectors, progress)

    def delete(self, ids: Iterable[str] | None = None, where: Where | None = None) -> int:
        """Delete passages by id, by filter, or by both; unknown ids are ignored.

        Returns:
            How many passages were deleted.

        Raises:
            InvalidInputError: Neither `ids` nor `where` is given, or the filter is none.
        """
        if ids is None and not where:
            msg = "delete needs ids or a filter (where): nothing was deleted."
            raise InvalidInputError(msg)
        return writing.delete(
            self._access, None if ids is None else checks.distinct_ids(ids), where
        )

    def clear(self) -> int:
        """Delete every passage.

        Returns:
            How many passages were deleted.

        Raises:
            StoreError: Writing failed; the message says what to do.
        """
        return writing.delete(self._access, None, None)

    def get(
        self,
        ids: Iterable[str] | None = None,
        where: Where | None = None,
        limit: int | None = None,
    ) -> list[Passage]:
        """Passages by id, by filter, or by both, exactly as they were stored.

        Returns:
            In the order of `ids`, each once, unknown ones left out; without `ids` in no
            particular order.
        """
        if limit is not None and (not isinstance(limit, int) or limit < 0):
            msg = f"limit must be a whole number or None, got {shown(limit)}."
            raise InvalidInputError(msg)
        if ids is None:
            return list(self._access.get(None, where, limit).values())[:limit]
        wanted = checks.distinct_ids(ids)
        found = self._access.get(wanted, where, None)
        return [found[key] for key in wanted if key in found][:limit]

    def matching(self, ids: Iterable[str] | None = None, where: Where | None = None) -> list[str]:
        """Those of the ids (None: all) that are there and pass the filter."""
        return self._access.matching(None if ids is None else checks.distinct_ids(ids), where)

    def vectors(self, ids: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """Stored vectors [dim] by id, as the embedder made them; unknown ids left out."""
        return self._access.vectors(checks.distinct_ids(ids))

    def search(
        self,
        query: str | None,
        k: int = 5,
        strategy: Strategy = "hybrid",
        where: Where | None = None,
        *,
        vector: ArrayLike | None = None,
        weight: float | None = None,
        min_score: float | None = None,
        watch: Stopwatch | None = None,
        every: bool = False,
    ) -> list[ScoredPassage]:
        """The best `k` passages for a query, best first.

        Args:
            query: Plain text; it has no operators. Without any word in it only vectors count.
                May be None with `vector` and strategy "naive".
            k: How many; fewer come back if the store holds fewer.
            strategy: "hybrid" (vectors and words, fused), "naive" (vectors) or "lexical" (words).
            where: Chroma's filter on the metadata; holds for both sides.
            vector: The query's vector [dim], where it is there already.
            weight: Share of the vectors in "hybrid", 0 to 1; default 0.5.
            min_score: The least `ScoredPassage.relevance` of a hit, 0 to 1: nothing comes back
                where nothing fits. Of "hybrid" the fused score, of "naive" the cosine, of
                "lexical" the share of the query that was matched.
            watch: Collects how long each step took.
            every: Of "hybrid" all that was fused for these `k`, to weigh it anew (`fusion.convex`).

        Raises:
            InvalidInputError: An argument is not usable; the message says which and why.
            StoreError: The store cannot be read.
        """
        given = vector is not None
        request = check_request(query, k, strategy, where, weight, min_score, has_vector=given)
        watch = Stopwatch() if watch is None else watch
        row: NDArray[np.float32] | None = None
        if request.needs_vector:
            if vector is None:
                with watch.step("embed", getattr(self.embedder, "device", "cpu")):
                    row = self._embed_query(request.query)
            else:
                row = checks.matrix([vector], ["the query"])[0]
            checks.check_vectors(
                row[np.newaxis], ["the query"], self.dimension, writing.advice_of(self._access)
            )
            if request.strategy == "hybrid":
                floor = getattr(self.embedder, "unrelated_cosine", 0.0)
                request = replace(request, floor=floor, every=every)
        return self._access.search(request, row, watch)

    def compact(self, progress: Progress | None = None) -> None:
        """Free what deleted passages hold, as is done by itself where they outnumber the others.

        Raises:
            StoreError: There is no room for a copy of the vectors, or Chroma is a server.
        """
        self._access.compact(progress)

    def count(self) -> int:
        """Number of passages."""
        return self._access.count()

    def flush(self) -> None:
        """Bring small writes into the indexes now; they are durable and found without it, too."""
        self._access.flush()

    def backup(self, path: str | Path, progress: Progress | None = None) -> Backup:
        """Write everything to one file while reads and writes go on; see `maintenance.backup`."""
        return self._access.backup(store_path(path), progress)

    def close(self) -> None:
        """Wait for running calls and release files, threads and the lock. May be called twice.

        Raises:
            StoreError: Small writes could not be brought into the indexes; they are kept.
        """
        self._access.close()

    def __enter__(self) -> HybridStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # a constructor that failed, interpreter shutdown
            self._access.close(flush=False)

    @property
    def _directory(self) -> StoreDirectory:
        """What this process has open, if it is the holder."""
        directory = self._access.directory
        assert directory is not None
        return directory

    def lend(
        self, name: str, answer: Callable[[Mapping[str, Any]], Iterator[tuple[Any, None]]]
    ) -> None:
        """Answer guests one more kind of question while this process holds the store.

        Args:
            name: Of the question.
            answer: From its message to the parts of the answer; any number of threads call it.
        """
        if isinstance(self._access, Peer):
            self._access.lent[name] = answer

    def __repr__(self) -> str:
        return f"HybridStore({str(self.path)!r}, fingerprint={self.fingerprint!r})"

    def _embed_query(self, query: str) -> NDArray[np.float32]:
        embed: Any = getattr(self.embedder, "embed_query", None)
        made = self.embedder.embed([query])[0] if embed is None else embed(query)
        return np.asarray(made, np.float32)
