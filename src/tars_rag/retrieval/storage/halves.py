"""Indexes that do not belong together: what each holds, which is right, and how all are made so.

Chroma and the word index both hold whole passages, the exact index the vectors. Where one is of
another moment than the others (an older copy of a directory, a copy that was taken while the store
was written, a write of a server that came late) every passage is compared:

- What both hold alike is right.
- What they hold differently, or only one holds, is as the newer of the two has it.
- Where it is not known which is newer, nothing is taken away: what only one holds is given to the
  other, and where they differ Chroma is right.

What only the word index has is put back into Chroma, with the vector of the exact index if that is
of the same moment, and embedded anew otherwise. Each decision is logged, with ids.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import StoreError
from tars_rag.retrieval.commands import restore_command
from tars_rag.retrieval.indexes.checks import check_vectors
from tars_rag.retrieval.indexes.chroma.rows import records
from tars_rag.retrieval.indexes.chroma.vectors import VectorIndex
from tars_rag.retrieval.indexes.codec import matches, pack_content
from tars_rag.retrieval.indexes.exact.index import ExactIndex
from tars_rag.retrieval.indexes.words.files import digest
from tars_rag.retrieval.indexes.words.lexical import LexicalIndex
from tars_rag.retrieval.passage import Passage, Progress, TextEmbedder
from tars_rag.retrieval.storage.index_set import IndexSet
from tars_rag.retrieval.storage.layout import LOG
from tars_rag.retrieval.storage.rebuild import reconcile, restore_lost
from tars_rag.retrieval.storage.state import Mark, State, read_state
from tars_rag.retrieval.storage.write_ahead_log import stamp_before

_log = logging.getLogger(__name__)

CHROMA: Final = "chroma"
WORDS: Final = "words"
BOTH: Final = "both"
"""Which side is right where they differ: the newer one, or, not knowing which that is, both."""

_BATCH = 256
_SHOWN = 5


def right(path: Path, state: State | None, mark: Mark, now: Mark) -> str | None:
    """Which index is right where they differ; None: they belong together.

    Args:
        path: The store's directory.
        state: Its own; None: lost.
        mark: What the exact index belongs to.
        now: What the others are.
    """
    if state is not None and state.mending:
        return state.mending
    its = newer(state, mark, now)
    if its == BOTH:  # the log says as well which moments the others have reached
        by_log = newer(state, Mark.of(stamp_before(path / LOG)), now)
        its = by_log or BOTH
    if its is None and state is not None and state.moved(path):
        # Copied while it was written, Chroma's database can be of several moments at once. The
        # others have checksums: they are whole, or are not used.
        return WORDS
    return its


def newer(state: State | None, mark: Mark, now: Mark) -> str | None:
    """Which of Chroma and the word index is newer (`CHROMA`, `WORDS`), or `BOTH`: not known.

    Args:
        state: The store's; None: lost.
        mark: What the exact index belongs to.
        now: What the others are.

    Returns:
        None: they are what the exact index belongs to.
    """
    if state is None or mark.collection != now.collection:
        return BOTH
    chroma = state.order(now.chroma, mark.chroma)
    words = state.order(now.words, mark.words)
    if chroma is None or words is None:
        return BOTH
    if chroma == words:
        return BOTH if chroma else None
    return CHROMA if chroma > words else WORDS


def decide(path: Path, right: str) -> None:
    """Write down which is right, until they agree: `right` then says so, whatever was done."""
    replace(read_state(path) or State(), mending=right).write(path)


def behind(path: Path, state: State | None, now: Mark) -> str | None:
    """Why writes that were acknowledged are in no index, and not in the log; None: they are not.

    Args:
        path: The store's directory.
        state: Its own; None: lost.
        now: What Chroma and the word index are. What holds all is the newer one, and right.
    """
    needed = Mark.of(stamp_before(path / LOG))
    if state is None:
        return None
    orders = state.order(now.chroma, needed.chroma), state.order(now.words, needed.words)
    known = [order for order in orders if order is not None]
    if not known or max(known) >= 0:
        return None
    return (
        f"The log of the store {path} is newer than its indexes: writes that were acknowledged are "
        "in neither. It was copied while it was in use, or parts of it are older: copy it again "
        f"while nothing has it open, or restore a backup: {restore_command(path)}"
    )


@dataclass
class Differences:
    """Ids about which the indexes disagree.

    Attributes:
        contents: Chroma and the word index hold other contents (or the word index two).
        only_chroma: The word index lacks them.
        only_words: Chroma lacks them.
        vectors: The content agrees; the exact index has not its vector.
        damaged: Chroma's own vector is not the one that was stored with the content.
        only_exact: Vectors whose passage no index holds.
        kept: Of `damaged`, those whose vector the exact index has.
    """

    contents: list[str] = field(default_factory=list)
    only_chroma: list[str] = field(default_factory=list)
    only_words: list[str] = field(default_factory=list)
    vectors: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    only_exact: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)

    @property
    def ids(self) -> list[str]:
        """All of them."""
        return [
            *(*self.contents, *self.only_chroma, *self.only_words),
            *(*self.vectors, *self.damaged, *self.only_exact),
        ]

    def told(self, right: str) -> Iterator[str]:
        """What is done about them, for people, where `right` is right."""
        dropped = "deleted, for the other one is newer and has them no more"
        kept = "given to the other one"
        differ = {
            CHROMA: "Chroma is newer, and right",
            WORDS: "the word index is newer, and right",
            BOTH: "which is newer is not known; Chroma's are kept",
        }
        done = {
            f"differ: {differ[right]}": self.contents,
            f"only in Chroma: {dropped if right == WORDS else kept}": self.only_chroma,
            f"only in the word index: {dropped if right == CHROMA else kept}": self.only_words,
            "without their vector in the exact index: it gets Chroma's": self.vectors,
            "with a damaged vector in Chroma: put back": self.damaged,
            "only in the exact index, without a text: deleted": self.only_exact,
        }
        for what, ids in done.items():
            if ids:
                yield f"{len(ids)} {what} ({some(ids)})"


def compare(
    vectors: VectorIndex,
    exact: ExactIndex | None,
    lexical: LexicalIndex | None,
    progress: Progress | None = None,
    *,
    deep: bool = False,
) -> Differences:
    """Compare every passage.

    Args:
        vectors: Chroma.
        exact: None: not compared.
        lexical: None: not compared.
        progress: Called with (done, total).
        deep: Also compare Chroma's own vectors with what was stored beside them.
    """
    found = Differences()
    strangers = set(exact.ids()) if exact else set()
    digests: dict[str, list[str]] = {}
    for passage_id, its in lexical.digests() if lexical else ():
        digests.setdefault(passage_id, []).append(its)
    done, total = 0, vectors.count()
    for batch in vectors.scan(vectors=deep):
        held = exact.vectors([passage.id for passage, _, _ in batch]) if exact else {}
        for passage, vector, sketch in batch:
            strangers.discard(passage.id)
            words = digests.pop(passage.id, None)
            fits = exact is None or matches(held.get(passage.id), sketch)
            if lexical and words is None:
                found.only_chroma.append(passage.id)
            elif lexical and words != [digest(pack_content(passage))]:
                found.contents.append(passage.id)
            elif deep and not matches(vector, sketch):
                found.damaged.append(passage.id)
                if fits:
                    found.kept.add(passage.id)
            elif not fits:
                found.vectors.append(passage.id)
        done += len(batch)
        if progress is not None:
            progress(done, total)
    found.only_words = list(digests)
    found.only_exact = list(strangers - digests.keys())
    return found


def mend(
    indexes: IndexSet,
    right: str,
    embedder: TextEmbedder | None,
    progress: Progress | None,
    *,
    deep: bool = False,
) -> Differences:
    """Compare every passage, and make all indexes agree; then they are of one moment.

    Killed at any moment it is done again at the next opening, with the same decisions.

    Args:
        indexes: Open for writing; nobody else reads or writes.
        right: Which is right where they differ.
        embedder: The store's, for passages whose vector is lost; None: those are an error.
        progress: Called with (done, total).
        deep: See `compare`.

    Returns:
        What was found.

    Raises:
        StoreError: Vectors must be made and there is no embedder; nothing was changed.
    """
    restore_lost(indexes)
    found = compare(indexes.vectors, indexes.exact, indexes.lexical, progress, deep=deep)
    back = [*found.damaged, *([] if right == CHROMA else found.only_words)]
    follow = [*found.vectors, *found.only_exact, *(found.only_words if right == CHROMA else ())]
    gone = found.only_chroma if right == WORDS else []
    (back if right == WORDS else follow).extend(found.contents)
    follow.extend(found.only_chroma if right != WORDS else ())
    mark = Mark.of(indexes.exact.stamp)
    of_words = mark.words == indexes.mark().words and bool(mark.words.session)
    lost = _lost(indexes, back, lambda key: of_words or key in found.kept)
    if lost and embedder is None:
        msg = (
            f"The indexes of the store {indexes.path} are not of one moment, and {len(lost)} of "
            f"its passages ({some(lost)}) have no vector that fits: they must be embedded with the "
            f"store's own model: {indexes.store_json.reembed_command(indexes.path)}"
        )
        raise StoreError(msg)
    if found.ids:
        decide(indexes.path, right)
        for told in found.told(right):
            _log.warning("%s: %s", indexes.path, told)
        indexes.vectors.delete(gone)
        _put_back(indexes, back, set(lost), embedder)
        reconcile(indexes, [*follow, *gone, *back])
        indexes.seal_vectors()
    indexes.settle()
    return found


def some(ids: Sequence[str]) -> str:
    """A few of the ids, for a message."""
    return ", ".join(map(repr, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")


def _lost(indexes: IndexSet, ids: Sequence[str], fits: Callable[[str], bool]) -> list[str]:
    """Those of the ids of which the exact index has no vector that fits."""
    lost: list[str] = []
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        held = indexes.exact.vectors(batch)
        lost.extend(key for key in batch if key not in held or not fits(key))
    return lost


def _put_back(
    indexes: IndexSet, ids: Sequence[str], lost: set[str], embedder: TextEmbedder | None
) -> None:
    """Write passages of the word index into Chroma."""
    for start in range(0, len(ids), _BATCH):
        passages = list(indexes.lexical.passages(ids[start : start + _BATCH]).values())
        keys = [passage.id for passage in passages]
        rows = indexes.exact.vectors([key for key in keys if key not in lost])
        new = [passage for passage in passages if passage.id in lost]
        if new and embedder is not None:
            rows |= zip((p.id for p in new), _embedded(indexes, embedder, new), strict=True)
        made = records(passages, np.stack([rows[key] for key in keys]))
        indexes.vectors.write(made, indexes.vectors.matching(keys, None))


def _embedded(
    indexes: IndexSet, embedder: TextEmbedder, passages: Sequence[Passage]
) -> NDArray[np.float32]:
    made = np.asarray(embedder.embed([passage.indexed for passage in passages]), np.float32)
    names = [f"passage {passage.id!r}" for passage in passages]
    return check_vectors(made, names, indexes.store_json.dimension)
