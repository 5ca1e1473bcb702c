"""The indexes of a store brought into service: checked, opened, mended where a crash left work."""

from __future__ import annotations

import logging
import shlex
import shutil
from pathlib import Path

from tars_rag.errors import StoreError
from tars_rag.retrieval.commands import check_command
from tars_rag.retrieval.indexes.chroma.files import Damage
from tars_rag.retrieval.indexes.chroma.layout import DATABASE, problem
from tars_rag.retrieval.indexes.codec import decode
from tars_rag.retrieval.indexes.exact.index import ExactIndex
from tars_rag.retrieval.indexes.exact.rows import DamageError
from tars_rag.retrieval.indexes.words.files import committed
from tars_rag.retrieval.passage import Progress, TextEmbedder
from tars_rag.retrieval.storage import halves
from tars_rag.retrieval.storage.index_set import IndexSet
from tars_rag.retrieval.storage.journal import Intent
from tars_rag.retrieval.storage.layout import CHROMA, EXACT, LEXICAL
from tars_rag.retrieval.storage.moments import moments
from tars_rag.retrieval.storage.opening import lexical_damage
from tars_rag.retrieval.storage.rebuild import (
    fill_exact,
    fill_lexical,
    rebuild_vectors,
    reconcile,
)
from tars_rag.retrieval.storage.state import Mark, read_state
from tars_rag.retrieval.storage.store_json import VERSION

_log = logging.getLogger(__name__)


class Recovery:
    """Opens the indexes and finishes what was left undone. Call as its only user.

    Args:
        indexes: Of the store.
        embedder: Makes vectors anew that are damaged in Chroma and in the exact index; None: such a
            store is refused.
        salvage: Go on where the log shows that writes are missing.

    Attributes:
        embedded: How many passages were embedded anew.
    """

    def __init__(
        self, indexes: IndexSet, embedder: TextEmbedder | None, *, salvage: bool = False
    ) -> None:
        self.embedded = 0
        self._salvage = salvage
        self._indexes = indexes
        self._embedder = embedder
        state = read_state(indexes.path)
        self._copied = state is None or state.moved(indexes.path)

    def open(self, progress: Progress | None) -> None:
        """Open what is not open, and mend what is not whole.

        Raises:
            StoreError: It cannot be mended, or only by opening for writing.
        """
        indexes = self._indexes
        if not indexes.store_json.ready:
            if indexes.read_only:
                msg = f"The store {indexes.path} is not complete yet. Open it for writing first."
                raise StoreError(msg)
            indexes.create()
            self._copied = False
        self._refuse_torn()
        has_vectors, has_exact, has_lexical = indexes.is_open
        no_words = None if has_lexical else self._lexical_damage()
        no_exact = None if has_exact else self._open_exact()
        damage = None if has_vectors else self._vector_damage()
        # Before anything is made anew: what is, is of no moment.
        mark = Mark("") if no_exact else Mark.of(indexes.exact.stamp)
        opstamp = None if no_words else committed(indexes.path / LEXICAL)[1]
        now = moments(indexes.path, indexes.store_json, opstamp)
        behind = self._behind(now)
        right = self._right(indexes.journal.pending(), mark, now)
        if right in (halves.CHROMA, halves.WORDS) and not indexes.read_only:
            halves.decide(indexes.path, right)
        new_vectors = not has_vectors and self._open_vectors(damage, progress)
        if no_exact and not new_vectors:
            self._refuse_if_read_only(f"its vector index must be made anew: {no_exact}")
            fill_exact(indexes, progress)
        if not has_lexical:
            self._open_lexical(no_words, progress)
        self.recover(progress)
        if not indexes.read_only:
            indexes.vectors.sweep()
            indexes.vectors.upgrade(progress, again=self._copied)
        differ = new_vectors or no_exact or no_words or behind or len(set(indexes.counts())) > 1
        if right is None and differ:
            right = halves.BOTH
        if right is not None:
            self._mend(right, progress)
        if not indexes.read_only:
            indexes.seal_vectors()  # Chroma may have saved what it had in its log
            if indexes.store_json.version != VERSION:
                indexes.update()  # what is written from now on, earlier versions cannot read

    def recover(self, progress: Progress | None) -> None:
        """Finish what a crash or a failed write left: redo it, and let the others follow Chroma."""
        indexes = self._indexes
        if not indexes.vectors.alive:
            indexes.vectors.close()
            self._open_vectors(self._vector_damage(), progress)
        intent = indexes.journal.pending()
        if intent is None:
            return
        self._refuse_if_read_only("a write was interrupted")
        if intent.ids is None:
            right = self._right(None, Mark.of(indexes.exact.stamp), indexes.mark())
            self._mend(right or halves.BOTH, progress)
        else:
            indexes.vectors.write(intent.redo, [decode(record["id"]) for record in intent.redo])
            reconcile(indexes, intent.ids)
        indexes.seal_vectors()
        indexes.journal.clear()

    def _right(self, intent: Intent | None, mark: Mark, now: Mark) -> str | None:
        """Which index is right where they differ (see `halves`); None: they belong together.

        Args:
            intent: A write that was in flight; its ids alone may differ.
            mark: What the exact index belongs to.
            now: What the others are.
        """
        indexes = self._indexes
        state = read_state(indexes.path)
        right = halves.right(indexes.path, state, mark, now)
        if self._copied or (state is not None and state.mending):
            return right
        if right is not None and state is not None and intent is not None:
            # The exact index is written last: it is as it was before the write.
            orders = state.order(now.chroma, mark.chroma), state.order(now.words, mark.words)
            if intent.before == mark.stamp and all(order in (0, 1) for order in orders):
                return None
        return None if intent is not None and intent.ids is None else right

    def _mend(self, right: str, progress: Progress | None) -> None:
        """Compare every passage, and make the indexes agree."""
        indexes = self._indexes
        if indexes.read_only:
            parts = indexes.vectors, indexes.exact, indexes.lexical
            found = halves.compare(*parts, progress, deep=self._copied)
            if found.ids:
                self._refuse_if_read_only(
                    f"its indexes are not of one moment, and disagree about {len(found.ids)} "
                    f"passages ({halves.some(found.ids)})"
                )
            return
        known = indexes.store_json.fingerprint
        own = self._embedder if getattr(self._embedder, "fingerprint", None) == known else None
        halves.mend(indexes, right, own, progress, deep=self._copied)
        self._copied = False

    def _behind(self, now: Mark) -> bool:
        """Whether the indexes are older than the log, and are to be used all the same.

        Args:
            now: What Chroma and the word index are.

        Raises:
            StoreError: They are older: what the log held between them is nowhere.
        """
        path = self._indexes.path
        problem = halves.behind(path, read_state(path), now)
        if problem and not self._salvage:
            msg = f"{problem} To go on without them: {check_command(path, repair=True)}"
            raise StoreError(msg)
        if problem:
            _log.warning("%s", problem)
        return problem is not None

    def _refuse_torn(self) -> None:
        """Refuse a copy whose database was written while it was copied.

        Raises:
            StoreError: SQLite finds it damaged.
        """
        if self._copied and self._indexes.seal is not None:
            found = problem(self._indexes.path / CHROMA / DATABASE)
            if found:
                raise StoreError(torn_database(self._indexes.path, found))

    def _vector_damage(self) -> Damage | None:
        """What of Chroma's vector files is not as their seal says."""
        seal = self._indexes.seal
        return seal.damage(in_place=not self._copied) if seal else None

    def _open_vectors(self, damage: Damage | None, progress: Progress | None) -> bool:
        """Open Chroma, once it is known which of its files it must not load.

        Returns:
            Whether its vectors were made anew, and the exact index with them.
        """
        indexes = self._indexes
        copy = self._copy() if damage else None
        rebuild = self._set_aside(damage, copy) if damage else False
        indexes.open_vectors()
        if rebuild:
            self.embedded = rebuild_vectors(indexes, self._embedder, progress, copy)
        if indexes.seal and not indexes.read_only:
            attempt = indexes.store_json.reembedding
            indexes.vectors.drop_others([attempt["collection"]] if attempt else [])
            indexes.seal.discard()
        return rebuild

    def _copy(self) -> ExactIndex | None:
        """The exact index, if its vectors are those that damaged ones are to be made anew as."""
        indexes = self._indexes
        known = indexes.store_json.fingerprint
        other = self._embedder is not None and self._embedder.fingerprint != known
        return indexes.exact if indexes.is_open[1] and not other else None

    def _set_aside(self, damage: Damage, copy: ExactIndex | None) -> bool:
        """Get damaged vector files out of Chroma's way; whether they were this store's own.

        Otherwise they are the half-made ones of a change of embedder, which then starts again.
        """
        indexes = self._indexes
        if indexes.seal is None:
            return False
        own = indexes.seal.directory_of(indexes.store_json.collection)
        hurt = own is None or own in damage.directories
        if hurt:
            if self._embedder is None and copy is None:
                msg = (
                    f"The vectors in {indexes.path} are damaged ({damage.problem}). Texts and "
                    "metadata are kept apart: make the vectors anew: "
                    f"{indexes.store_json.reembed_command(indexes.path)}"
                )
                raise StoreError(msg)
            self._refuse_if_read_only(f"its vectors are damaged ({damage.problem})")
            _log.warning(
                "%s: vectors are damaged (%s): making them anew", indexes.path, damage.problem
            )
        if not indexes.read_only:
            indexes.seal.set_aside(damage.directories)
            indexes.update(reembedding=None)
        return hurt

    def _open_exact(self) -> str | None:
        """Open the exact index; or why it must be made from Chroma's vectors."""
        indexes = self._indexes
        if not (indexes.path / EXACT).is_dir():
            return f"{EXACT} is missing"
        try:
            indexes.open_exact()  # which verifies it
        except DamageError as error:
            return str(error)
        if Mark.of(indexes.exact.stamp).collection == indexes.store_json.collection:
            return None
        indexes.close_exact()
        return "it is not of the store's present vectors"

    def _lexical_damage(self) -> str | None:
        return lexical_damage(self._indexes.path, self._indexes.store_json.language)

    def _open_lexical(self, damage: str | None, progress: Progress | None) -> None:
        """Open the lexical index; damaged, missing or of other words, it is made from Chroma."""
        indexes = self._indexes
        if damage:
            self._refuse_if_read_only(f"its lexical index must be made anew ({damage})")
            shutil.rmtree(indexes.path / LEXICAL, ignore_errors=True)
        indexes.open_lexical()
        if damage:
            fill_lexical(indexes, progress)

    def _refuse_if_read_only(self, problem: str) -> None:
        if self._indexes.read_only:
            path = self._indexes.path
            msg = (
                f"The store {path} must be repaired first: {problem}. Open it once for "
                f"writing, or run: {check_command(path, repair=True)}"
            )
            raise StoreError(msg)


def torn_database(path: Path, problem: str) -> str:
    """What to say of texts that SQLite finds damaged."""
    return (
        f"The texts of the store {path} are damaged ({problem}). If it was copied while it was in "
        "use, copy it again while nothing has it open; otherwise restore a backup, into another "
        f"directory: tars-rag store restore FILE {shlex.quote(str(path) + '-restored')}"
    )
