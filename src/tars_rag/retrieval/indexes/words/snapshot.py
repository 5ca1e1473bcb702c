"""The word index after some commit: what tantivy is asked, and how its answers are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tars_rag.retrieval.indexes.codec import decode, encode, unpack_content
from tars_rag.retrieval.indexes.words.bm25 import explained_mean
from tars_rag.retrieval.indexes.words.files import digest
from tars_rag.retrieval.passage import Passage

_FEW_IDS = 128  # are looked up one by one, in a third of the time that a set of them takes
MOST_NESTED = 64  # queries within each other: each takes some of tantivy's stack
_REMEMBERED = 1 << 15  # ids, in about 6 MB


class WeightedTerm(NamedTuple):
    """A term of a query.

    Attributes:
        term: As it is indexed.
        weight: What its score is multiplied with.
        held: How many passages of the index hold it.
    """

    term: str
    weight: float
    held: int


class Snapshot:
    """One state of a tantivy index. Any thread may ask.

    Args:
        schema: Of the index: ``id``, ``content`` and ``text``.
        searcher: tantivy's.
        documents: How many of its segments hold, removed ones included.
    """

    def __init__(self, schema: Any, searcher: Any, documents: int) -> None:
        import tantivy

        self._make, self._occur = tantivy.Query, tantivy.Occur
        self._schema, self._searcher = schema, searcher
        self.count = int(searcher.num_docs)
        self.documents = max(documents, self.count)
        self._mean: float | None = None
        self._places = _Places()
        self._most: dict[str, float] = {}

    def holding(self, term: str) -> int:
        """How many passages hold a term."""
        return int(self._searcher.doc_freq("text", term))

    def most(self, term: str) -> float:
        """The best score of a passage for one term; terms of many passages are asked for often."""
        if term not in self._most:
            hits = self.hits(self.clauses([WeightedTerm(term, 1, 0)])[0], 1)
            self._most[term] = hits[0][0] if hits else 0.0
        return self._most[term]

    def scores(self, terms: Sequence[WeightedTerm], ids: Sequence[str]) -> dict[str, float]:
        """The scores of those of the ids that hold one of the terms."""
        if not terms or not ids:
            return {}
        clauses = self.clauses(terms)
        if len(ids) > _FEW_IDS or len(clauses) > MOST_NESTED:
            clauses = [self.any_of(clauses)]
        if len(ids) <= _FEW_IDS:
            self._locate(ids)
        query = self.also(self._make.const_score_query(self.with_ids(ids), 0.0), clauses)
        return dict(self.read(self.hits(query, len(ids))))

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Passages by id; unknown ids left out."""
        found: dict[str, Passage] = {}
        for start in range(0, len(ids), _FEW_IDS):
            for address in self._locate(ids[start : start + _FEW_IDS]):
                passage = _passage(self._searcher.doc(address))
                found[passage.id] = passage
        return found

    def digests(self) -> Iterator[tuple[str, str]]:
        """Every (id, digest of the content), in no particular order."""
        for key, content in self.contents():
            yield decode(key), digest(content)

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """Every encoded id and packed content (see `codec`), in batches underneath."""
        everything, step = self._make.all_query(), 10_000
        for offset in range(0, self.count, step):
            found = self._searcher.search(everything, step, count=False, offset=offset)
            for _, address in found.hits:
                document = self._searcher.doc(address)
                yield document["id"][0], bytes(document["content"][0])

    def mean_length(self, terms_of: Callable[[str], Sequence[str]]) -> float:
        """How many terms a passage has on average, as BM25 reckons; 0 where there is none.

        Args:
            terms_of: The terms of a text.
        """
        if self._mean is None:
            self._mean = explained_mean(
                self._searcher,
                self._make,
                self._schema,
                lambda document: terms_of(_passage(document).indexed),
            )
        return self._mean

    def clauses(self, terms: Sequence[WeightedTerm]) -> list[Any]:
        """A query for each term."""
        clauses = []
        for term, weight, _ in terms:
            clause = self._make.term_query(self._schema, "text", term, index_option="freq")
            clauses.append(clause if weight == 1 else self._make.boost_query(clause, weight))
        return clauses

    def also(self, needed: Any, clauses: Sequence[Any]) -> Any:
        """What `needed` finds; of the clauses, `MOST_NESTED` at most, each counts where it does."""
        # In the list of one term tantivy skips from id to id; a union of terms it reads whole.
        for clause in clauses:
            pair = [(self._occur.Must, needed), (self._occur.Should, clause)]
            needed = self._make.boolean_query(pair)
        return needed

    def without(self, query: Any, gone: Any) -> Any:
        """What the one query finds and the other does not."""
        return self._make.boolean_query([(self._occur.Must, query), (self._occur.MustNot, gone)])

    def any_of(self, clauses: Sequence[Any]) -> Any:
        """What any of the queries finds."""
        return self._make.boolean_query([(self._occur.Should, clause) for clause in clauses])

    def with_ids(self, ids: Sequence[str]) -> Any:
        """A query for those of the ids that there are."""
        if len(ids) > _FEW_IDS:
            return self._make.term_set_query(self._schema, "id", [encode(key) for key in ids])
        return self.any_of([self._with_id(key) for key in ids])

    def _with_id(self, key: str) -> Any:
        return self._make.term_query(self._schema, "id", encode(key), index_option="basic")

    def _locate(self, ids: Sequence[str]) -> list[Any]:
        """Where those of a few ids lie that there are. Nothing stored is read for it."""
        places = self._remembered()
        unknown = [key for key in dict.fromkeys(ids) if key not in places.addresses]
        if unknown:
            # Each id scores its own number, and is known by it.
            numbered = [
                self._make.const_score_query(self._with_id(key), float(number))
                for number, key in enumerate(unknown, 1)
            ]
            for score, address in self.hits(self.any_of(numbered), len(unknown)):
                places.add(unknown[round(score) - 1], address)
        return [places.addresses[key] for key in dict.fromkeys(ids) if key in places.addresses]

    def hits(self, query: Any, limit: int) -> list[tuple[float, Any]]:
        """The best hits, never more than there are passages.

        tantivy reserves memory for as many as it is asked for, and ends the process where it
        cannot.
        """
        limit = min(limit, self.count)
        if limit < 1:
            return []
        hits: list[tuple[float, Any]] = self._searcher.search(query, limit, count=False).hits
        return hits

    def read(self, hits: Iterable[tuple[float, Any]]) -> Iterator[tuple[str, float]]:
        """Ids and scores of the hits that hold a term."""
        places = self._remembered()
        for score, address in hits:
            if score > 0:
                key = places.ids.get((address.segment_ord, address.doc))
                if key is None:
                    key = decode(self._searcher.doc(address)["id"][0])
                    places.add(key, address)
                yield key, float(score)

    def _remembered(self) -> _Places:
        """Where passages were found lately."""
        if len(self._places.ids) > _REMEMBERED:
            self._places = _Places()
        return self._places


class _Places:
    """Which id lies where: tantivy takes a hundred times as long to read one that is stored."""

    def __init__(self) -> None:
        self.addresses: dict[str, Any] = {}
        self.ids: dict[tuple[int, int], str] = {}

    def add(self, key: str, address: Any) -> None:
        self.ids[address.segment_ord, address.doc] = key
        self.addresses[key] = address


def _passage(document: Any) -> Passage:
    return unpack_content(document["id"][0], document["content"][0])
