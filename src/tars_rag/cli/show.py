"""``tars-rag show``: a passage with what stands before and after it."""

from __future__ import annotations

from typing import Annotated

import typer

from tars_rag.cli import resources
from tars_rag.cli.console import print_json, show
from tars_rag.cli.passages import place_of
from tars_rag.errors import InvalidInputError


def show_passage(
    passage_id: Annotated[str, typer.Argument(metavar="ID", help="As query prints it.")],
    store: resources.StoreOption,
    window: Annotated[
        int, typer.Option(min=0, max=100, help="How many neighbours on each side.")
    ] = 1,
    json: resources.JsonOption = False,
) -> None:
    """Print a passage of a store, with its neighbours in the same file."""
    from tars_rag.retrieval.neighbours import with_neighbours

    with resources.look_into(store) as opened:
        found = with_neighbours(opened, [passage_id], window).get(passage_id)
    if found is None:
        msg = f"There is no passage {passage_id!r} in {store}. Its ids: tars-rag store ls {store}"
        raise InvalidInputError(msg)
    if json:
        print_json([{"id": p.id, "text": p.text, "metadata": dict(p.metadata)} for p in found])
        return
    for passage in found:
        style = "bold" if passage.id == passage_id else "dim"
        show(f"{passage.id}  {place_of(passage)}".rstrip(), style)
        show(f"{passage.text}\n", "" if passage.id == passage_id else "dim")
