"""The record of indexed files, wherever a store keeps it: beside its directory, or in LanceDB."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from tars_rag.ingest.ledger import Ledger
from tars_rag.retrieval.address import is_lance
from tars_rag.retrieval.storage.layout import SOURCES

if TYPE_CHECKING:
    from tars_rag.ingest.table_ledger import TableLedger
    from tars_rag.retrieval.store import HybridStore

Record: TypeAlias = Union[Ledger, "TableLedger"]


def record_of(store: HybridStore) -> Record:
    """The record of an open store.

    Raises:
        InvalidInputError: A server has the store, and the record with it.
        StoreError: It is damaged or cannot be read.
    """
    table = store.shared_table
    if table is None:
        return Ledger(store.local_path)
    from tars_rag.ingest.table_ledger import TableLedger  # with LanceDB's room, for few

    return TableLedger(table)


@contextlib.contextmanager
def record_at(store: Path | str) -> Iterator[Record | None]:
    """The record of a store, to be read: of a directory, or an address in LanceDB.

    Yields:
        None where no file was indexed.
    """
    if is_lance(store):
        from tars_rag.ingest.table_ledger import TableLedger
        from tars_rag.retrieval.lance.access import LanceAccess
        from tars_rag.retrieval.lance.told import Named, told

        its = told(str(store))
        if its is None:
            yield None
            return
        access = LanceAccess(str(store), Named(its.fingerprint), read_only=True)
        with contextlib.closing(access):
            yield TableLedger(access)
    elif (Path(store) / SOURCES).exists():
        with Ledger(Path(store), reading=True) as ledger:
            yield ledger
    else:
        yield None
