"""Chroma is the truth; the lexical index follows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tars_rag.retrieval.indexes.codec import pack_content
from tars_rag.retrieval.indexes.lexical import LexicalIndex
from tars_rag.retrieval.indexes.tantivy_files import digest
from tars_rag.retrieval.indexes.vectors import VectorIndex
from tars_rag.retrieval.passage import Progress

_BATCH = 1000


def reconcile(vectors: VectorIndex, lexical: LexicalIndex, ids: Sequence[str]) -> None:
    """Make the lexical index hold of these ids what Chroma holds of them."""
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        held = vectors.get(batch)
        gone = [passage_id for passage_id in batch if passage_id not in held]
        lexical.apply(gone, held.values())


def differences(
    vectors: VectorIndex, lexical: LexicalIndex, progress: Progress | None = None
) -> Iterator[str]:
    """Ids that one index lacks, or whose content the lexical index has otherwise or twice."""
    digests: dict[str, list[str]] = {}
    for passage_id, found in lexical.digests():
        digests.setdefault(passage_id, []).append(found)
    done, total = 0, vectors.count()
    for batch in vectors.scan():
        for passage, _, _ in batch:
            if digests.pop(passage.id, None) != [digest(pack_content(passage))]:
                yield passage.id
        done += len(batch)
        if progress is not None:
            progress(done, total)
    yield from digests
