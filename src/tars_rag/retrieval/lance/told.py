"""What a store says of itself, without the embedder that made it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import StoreError
from tars_rag.retrieval.address import lance_address
from tars_rag.retrieval.lance import library, table
from tars_rag.retrieval.lance.table import PASSAGES, About
from tars_rag.retrieval.storage.layout import settings_of
from tars_rag.retrieval.storage.store_json import StoreJson
from tars_rag.settings import Settings


class Named:
    """Stands for the embedder of a store, and embeds nothing."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Say that it cannot be.

        Raises:
            StoreError: Always.
        """
        msg = "The store was opened without its embedder: give vectors, or open it with that."
        raise StoreError(msg)


def told(address: str) -> StoreJson | None:
    """What a store says of itself; None: there is none. Nothing is made.

    Raises:
        ConfigError: The address is none, or LanceDB is not installed.
        StoreError: It cannot be reached.
    """
    usual = lance_address(address)
    library.library()
    if library.is_missing(usual):
        return None
    connection = library.connected(usual)
    with library.asking(usual, "read"):
        if not table.exists(connection, PASSAGES):
            return None
        return as_store_json(table.about(connection.open_table(PASSAGES), usual))


def settings_for(address: str, settings: Settings) -> Settings:
    """The settings for a store: where they name no model, its own."""
    return settings_of(told(address), settings)


def as_store_json(held: About) -> StoreJson:
    """The same as other stores say it."""
    return StoreJson(
        held.fingerprint,
        "",
        dimension=held.dimension,
        created=held.created,
        ready=True,
        model=held.model,
        language=held.language,
    )
