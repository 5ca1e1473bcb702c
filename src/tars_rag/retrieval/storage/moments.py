"""When the indexes of a store's directory were written last, as they lie there."""

from __future__ import annotations

from pathlib import Path

from tars_rag.retrieval.indexes.chroma.layout import DATABASE, last_write
from tars_rag.retrieval.storage.layout import CHROMA, LEXICAL
from tars_rag.retrieval.storage.state import UNKNOWN, Mark, Moment, read_session
from tars_rag.retrieval.storage.store_json import StoreJson


def moments(path: Path, store_json: StoreJson, opstamp: int | None) -> Mark:
    """The moments at which Chroma and the word index of a store were written last.

    Args:
        path: The store's directory. Nothing in it needs to be open.
        store_json: Of the store.
        opstamp: Of the word index; None: it is damaged, and its moment counts for nothing.
    """
    words = Moment() if opstamp is None else Moment(read_session(path / LEXICAL), opstamp)
    if store_json.chroma_url is not None:  # what a server holds is told by its revisions
        return Mark(store_json.collection, Moment(words.session), words)
    session, count = last_write(path / CHROMA / DATABASE, store_json.collection)
    return Mark(store_json.collection, Moment(session, UNKNOWN if count is None else count), words)
