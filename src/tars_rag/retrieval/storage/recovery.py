"""A pair of indexes brought into service: checked, opened, and mended where a crash left work."""

from __future__ import annotations

import logging
import shutil

from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.codec import decode
from tars_rag.retrieval.passage import Progress, TextEmbedder
from tars_rag.retrieval.storage.layout import LEXICAL
from tars_rag.retrieval.storage.opening import lexical_damage
from tars_rag.retrieval.storage.pair import IndexPair
from tars_rag.retrieval.storage.rebuild import rebuild_vectors, reconcile, reconcile_all

_log = logging.getLogger(__name__)


class Recovery:
    """Opens a pair of indexes and finishes what was left undone. Call as its only user.

    Args:
        pair: The indexes.
        embedder: Makes vectors anew where Chroma's were damaged; None: such a store is refused.

    Attributes:
        embedded: How many passages were embedded anew.
    """

    def __init__(self, pair: IndexPair, embedder: TextEmbedder | None) -> None:
        self.embedded = 0
        self._pair = pair
        self._embedder = embedder

    def open(self, progress: Progress | None) -> None:
        """Open what is not open, and mend what is not whole.

        Raises:
            StoreError: It cannot be mended, or only by opening for writing.
        """
        pair = self._pair
        if not pair.store_json.ready:
            if pair.read_only:
                msg = f"The store {pair.path} is not complete yet. Open it for writing first."
                raise StoreError(msg)
            pair.create()
        has_vectors, has_lexical = pair.is_open
        if not has_vectors:
            self._open_vectors(progress)
        if not has_lexical:
            self._open_lexical()
        self.recover(progress)
        if pair.lexical.count() != pair.vectors.count():
            self._refuse_if_read_only("its two indexes do not hold the same number of passages")
            reconcile_all(pair, progress)
        if not pair.read_only:
            pair.seal_vectors()  # Chroma may have saved what it had in its log

    def recover(self, progress: Progress | None) -> None:
        """Finish what a crash or a failed write left: redo it, and let the lexical index follow."""
        pair = self._pair
        if not pair.vectors.alive:
            pair.vectors.close()
            self._open_vectors(progress)
        intent = pair.journal.pending()
        if intent is None:
            return
        self._refuse_if_read_only("a write was interrupted")
        if intent.ids is None:
            reconcile_all(pair, progress)
        else:
            pair.vectors.write(intent.redo, [decode(record["id"]) for record in intent.redo])
            reconcile(pair, intent.ids)
        pair.seal_vectors()
        pair.journal.clear()

    def _open_vectors(self, progress: Progress | None) -> None:
        """Open Chroma, whose files are compared with their seal before it may load them."""
        pair = self._pair
        rebuild = self._set_damaged_vectors_aside()
        pair.open_vectors()
        if rebuild and self._embedder:
            self.embedded = rebuild_vectors(pair, self._embedder, progress)
        if pair.seal and not pair.read_only:
            attempt = pair.store_json.reembedding
            pair.vectors.drop_others([attempt["collection"]] if attempt else [])
            pair.seal.discard()

    def _set_damaged_vectors_aside(self) -> bool:
        """Get damaged vector files out of Chroma's way; whether they were this store's own.

        Otherwise they are the half-made ones of a change of embedder, which then starts again.
        """
        pair = self._pair
        damage = pair.seal.damage() if pair.seal else None
        if pair.seal is None or damage is None:
            return False
        own = pair.seal.directory_of(pair.store_json.collection)
        hurt = own is None or own in damage.directories
        if hurt:
            if self._embedder is None:
                msg = (
                    f"The vectors in {pair.path} are damaged ({damage.problem}). Texts and "
                    "metadata are kept apart: make the vectors anew: "
                    f"{pair.store_json.reembed_command(pair.path)}"
                )
                raise StoreError(msg)
            self._refuse_if_read_only(f"its vectors are damaged ({damage.problem})")
            _log.warning(
                "%s: vectors are damaged (%s): making them anew", pair.path, damage.problem
            )
        if not pair.read_only:
            pair.seal.set_aside(damage.directories)
            pair.update(reembedding=None)
        return hurt

    def _open_lexical(self) -> None:
        pair = self._pair
        damaged = lexical_damage(pair.path)
        if damaged:
            self._refuse_if_read_only(f"its lexical index is damaged ({damaged})")
            shutil.rmtree(pair.path / LEXICAL, ignore_errors=True)
        pair.open_lexical()

    def _refuse_if_read_only(self, problem: str) -> None:
        if self._pair.read_only:
            path = self._pair.path
            msg = (
                f"The store {path} must be repaired first: {problem}. Open it once for "
                f"writing, or run: tars-rag store check {path} --repair"
            )
            raise StoreError(msg)
