"""BM25 on tantivy: incremental, persistent, in the words of one language or of all.

A passage is one document: its id (to delete and find it by), the indexed terms, and its content
whole: reading what a search returns takes tantivy a tenth of the time it takes Chroma, and the two
indexes can be compared. The terms come from `analysers`; tantivy only splits them at spaces.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tars_rag.errors import StoreError
from tars_rag.files import sync, widen, writing_problem
from tars_rag.retrieval.commands import check_command
from tars_rag.retrieval.indexes.codec import encode, pack_content
from tars_rag.retrieval.indexes.words.analysers import ANALYSER_VERSION, analyser
from tars_rag.retrieval.indexes.words.asked import MOST_TERMS, counting, reach
from tars_rag.retrieval.indexes.words.bm25 import NOTHING, Beside, Term, Terms, idf
from tars_rag.retrieval.indexes.words.files import begin_small_blocks, committed
from tars_rag.retrieval.indexes.words.languages import DEFAULT_LANGUAGE, check_language
from tars_rag.retrieval.indexes.words.snapshot import Snapshot, WeightedTerm
from tars_rag.retrieval.indexes.words.top import top
from tars_rag.retrieval.passage import Passage, Ranking

_HEAP_BYTES = 32_000_000
_MOST_COUNTED = 10_000


class LexicalIndex:
    """A directory with a tantivy index of passages.

    One thread may write while any number search; a search sees the last commit and nothing else.

    Args:
        path: The directory; made if missing, unless `read_only`.
        language: Whose words they are: a code, an English name or a locale (`languages`).
        read_only: Only search.

    Attributes:
        opstamp: Counts what was written, in the whole life of the index.

    Raises:
        InvalidInputError: There is no such language; the message names those that there are.
        StoreError: The directory holds something that is not such an index, or one of another
            language or of another version of the analyser.
    """

    def __init__(
        self, path: Path, *, language: str = DEFAULT_LANGUAGE, read_only: bool = False
    ) -> None:
        import tantivy

        self._tantivy = tantivy
        self.path = path
        self.language = check_language(language)
        self.read_only = read_only
        self._analyser = analyser(self.language)
        self._last_terms: tuple[object, object, str, list[Term]] = (None, None, "", [])
        try:
            if not read_only:
                path.mkdir(parents=True, exist_ok=True)
            # An index of other terms has another name for them, and is refused by tantivy.
            name = f"tars_{ANALYSER_VERSION}_{self.language}"
            self._schema = _schema(name)
            made = not read_only and not (path / "meta.json").exists()
            self._index = tantivy.Index(self._schema, str(path))
            if made and begin_small_blocks(path):
                self._index = tantivy.Index(self._schema, str(path))
            if not read_only:
                self._widen()
            self._index.register_tokenizer(name, _at_spaces())
            self._index.config_reader(reload_policy="manual")
            self.refresh()
        except (ValueError, OSError) as error:
            msg = (
                f"The lexical index {path} cannot be opened ({error}). "
                f"Rebuild it: {check_command(path.parent, repair=True)}"
            )
            raise StoreError(msg) from error
        self._writer: Any = None

    def apply(self, delete: Iterable[str], add: Iterable[Passage]) -> None:
        """Delete ids, add passages (replacing their ids), and commit. Durable on return."""
        with self._writing() as writer:
            for passage_id in delete:
                writer.delete_documents_by_term("id", encode(passage_id))
            for passage in add:
                key = encode(passage.id)
                writer.delete_documents_by_term("id", key)
                document = self._tantivy.Document()
                document.add_text("id", key)
                document.add_bytes("content", pack_content(passage))
                document.add_text("text", self._analyser.passage_terms(passage.indexed))
                writer.add_document(document)

    def refresh(self) -> None:
        """See what was committed since, here or in another process."""
        self._index.reload()
        documents, self.opstamp = committed(self.path)
        self._counted: dict[str, Terms] = {}
        self._snapshot = Snapshot(self._schema, self._index.searcher(), documents)

    def stamp(self) -> object:
        """Something that differs after a commit by any process."""
        status = (self.path / "meta.json").stat()
        return status.st_mtime_ns, status.st_ino

    def search(self, query: str, limit: int, beside: Beside = NOTHING) -> Ranking:
        """The best `limit` ids by BM25; never one that shares no term with the query.

        The text is analysed like a passage, never parsed: it has no operators. Equal scores are in
        the order of the ids, also where the limit cuts through them.
        """
        return top(self._snapshot, self._weighted(query, beside), limit, beside.replaces)

    def scores(self, query: str, ids: Sequence[str], beside: Beside = NOTHING) -> dict[str, float]:
        """BM25 of `query` for the given ids; those that share no term with it are left out."""
        return self._snapshot.scores(self._weighted(query, beside), ids)

    def reach(self, query: str, beside: Beside = NOTHING) -> float:
        """What BM25 of `query` could come to at most (see `asked.reach`)."""
        return reach(self.terms(query, beside), self.documents + beside.documents)

    @property
    def documents(self) -> int:
        """How many passages BM25 reckons with: removed ones count until they are merged away."""
        return self._snapshot.documents

    def mean_length(self) -> float:
        """How many terms a passage has on average, as BM25 reckons; 0 where there is none."""
        return self._snapshot.mean_length(self.terms_of)

    def terms_of(self, text: str) -> list[str]:
        """The terms that a passage with this text is found by, as often as it has them."""
        return self._analyser.passage_terms(text).split()

    def counted(self, ids: Sequence[str]) -> dict[str, Terms]:
        """The terms of passages, by id, remembered until the next commit."""
        known = self._counted
        for key, passage in self.passages([key for key in ids if key not in known]).items():
            known[key] = Terms.of(self.terms_of(passage.indexed))
        found = {key: known[key] for key in ids if key in known}
        if len(known) > _MOST_COUNTED:
            self._counted = {}
        return found

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Passages by id, as they were added; unknown ids left out."""
        return self._snapshot.passages(ids)

    def count(self) -> int:
        """Number of passages."""
        return self._snapshot.count

    @property
    def snapshot(self) -> Snapshot:
        """The index as it is now, whatever is committed later."""
        return self._snapshot

    def digests(self) -> Iterator[tuple[str, str]]:
        """Every (id, digest of the content), in batches underneath, in no particular order."""
        return self._snapshot.digests()

    def release_writer(self) -> None:
        """Let another process write."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.wait_merging_threads()
            self._widen()

    def _widen(self) -> None:
        """Let others read what tantivy writes for its owner only."""
        for name in ("meta.json", ".managed.json"):
            widen(self.path / name)

    def close(self) -> None:
        """Wait for merges and drop every handle. May be called twice."""
        with contextlib.suppress(AttributeError):
            self.release_writer()
            self._last_terms = (None, None, "", [])
            del self._snapshot, self._index

    def __enter__(self) -> LexicalIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Any]:
        """A writer whose changes are committed at the end of the block, and seen from then on."""
        if self.read_only:
            msg = f"The lexical index {self.path} is open read-only."
            raise StoreError(msg)
        try:
            if self._writer is None:
                self._writer = self._index.writer(_HEAP_BYTES, 1)
                # A process killed between a segment's deletes and the commit leaves a file whose
                # name the next commit would choose again, and fail.
                self._writer.garbage_collect_files()
            yield self._writer
            self._writer.commit()
            self._widen()
            sync(self.path)  # tantivy renames meta.json and leaves it at that
        except BaseException as error:
            self._abandon_writer()
            if isinstance(error, OSError | ValueError):
                raise StoreError(self._not_written(error)) from error
            raise
        self.refresh()

    def _abandon_writer(self) -> None:
        """Drop what was not committed, and tantivy's lock.

        The exception that is on its way keeps the writer alive in its traceback, so letting go of
        the name is not enough: only the end of its threads gives the lock back.
        """
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(ValueError, OSError, RuntimeError):
                writer.rollback()
            with contextlib.suppress(ValueError, OSError, RuntimeError):
                writer.wait_merging_threads()

    def _not_written(self, error: Exception) -> str:
        """What a failed write says: tantivy itself may only know that a thread of it ended."""
        cause = writing_problem(self.path, _HEAP_BYTES)
        told = f"{cause}. tantivy said: {error}" if cause else str(error)
        return (
            f"The lexical index {self.path} cannot be written: {told}. Check space and "
            "permissions, then repeat the call: what was acknowledged before is kept."
        )

    def _weighted(self, text: str, beside: Beside) -> list[WeightedTerm]:
        """The terms of a query that some passage of the index holds, and what each counts."""
        weighted = []
        for found in self.terms(text, beside):
            if found.here:
                boost = found.weight
                if beside.documents:  # tantivy reckons with its own documents alone
                    boost *= idf(self.documents + beside.documents, found.held)
                    boost /= idf(self.documents, found.here)
                weighted.append(WeightedTerm(found.term, boost, found.here))
        return weighted

    def terms(self, text: str, beside: Beside = NOTHING) -> list[Term]:
        """The terms of a query, what each weighs, and how many passages hold it."""
        snapshot = self._snapshot
        last_snapshot, last_beside, last_text, found = self._last_terms
        if last_snapshot is snapshot and last_beside is beside and last_text == text:
            return found  # a search asks for the same terms up to three times
        terms = self._analyser.query_terms(text)
        here = {term: snapshot.holding(term) for term in islice(terms, MOST_TERMS)}
        held = {term: count + beside.held(term) for term, count in here.items()}
        found = counting(terms, held, here)
        self._last_terms = snapshot, beside, text, found
        return found


def _schema(tokenizer: str) -> Any:
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_bytes_field("content", stored=True, indexed=False)
    builder.add_text_field("text", tokenizer_name=tokenizer, index_option="freq")
    return builder.build()


def _at_spaces() -> Any:
    from tantivy import TextAnalyzerBuilder, Tokenizer

    return TextAnalyzerBuilder(Tokenizer.whitespace()).build()
