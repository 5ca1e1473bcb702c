"""What goes wrong in Chroma, told in the words of a store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tars_rag.errors import StoreError
from tars_rag.retrieval.commands import check_command
from tars_rag.retrieval.indexes.chroma.client import Answer, ChromaError, Client, Collection


@contextlib.contextmanager
def asking(
    client: Client, collection: Collection, verb: str, op: str, **arguments: Any
) -> Iterator[Answer]:
    """Ask a collection; errors of asking and of the answer are a `StoreError`.

    Args:
        client: The collection's.
        collection: What is asked.
        verb: What the store could not be, if this fails.
        op: See `Collection.asking`.
        **arguments: Of the operation.
    """
    with contextlib.ExitStack() as stack:
        with translated(client, verb):
            answer = stack.enter_context(collection.asking(op, **arguments))

        def translated_answer() -> Any:
            with translated(client, verb):
                return answer()

        yield translated_answer


@contextlib.contextmanager
def translated(client: Client, verb: str) -> Iterator[None]:
    """Chroma's errors as ours; after one that was writing, Chroma is opened anew."""
    try:
        yield
    except ChromaError as error:
        if verb == "written":
            client.abandon()
        advice = error.advice or f"See what is wrong: {check_of(client.place)}"
        msg = f"Chroma ({client.place}) could not be {verb}: {error}. {advice}"
        raise StoreError(msg) from error


def check_of(place: str, *, repair: bool = False) -> str:
    """The command that checks a store, given its client's place.

    Of a server's the directory is not known here.
    """
    if "://" in place:
        option = " --repair" if repair else ""
        return f"tars-rag store check{option}, with the directory of the store"
    return check_command(Path(place).parent, repair=repair)
