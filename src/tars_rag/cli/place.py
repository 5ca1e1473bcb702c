"""A store that is searched, wherever it is: in a directory, at its holder, or at a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tars_rag.cli import resources
from tars_rag.errors import ConfigError
from tars_rag.retrieval.address import (
    is_address,
    is_lance,
    is_url,
    lance_address,
    split_store,
    unfolded,
)

if TYPE_CHECKING:
    from tars_rag.retrieval.remote.models import RemoteReranker
    from tars_rag.retrieval.sharing.warm import Told
    from tars_rag.settings import Settings


def _usual_place() -> str:
    return unfolded(resources.usual_store())


PlaceOption = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="DIR|URL",
        help="The store's directory, or http://host:port/NAME of a server, whose key is in "
        "TARS_API_KEY, or lance:///DIR (default: TARS_STORE).",
        show_default=False,
        default_factory=_usual_place,
    ),
]


def told_by(
    place: str,
    settings: Settings,
    rerank: bool | None,
    search: Mapping[str, Any],
    *,
    device: str | None,
    precision: Literal["fp32", "int8"],
) -> Told:
    """What the store answers: its server's, its holder's, or that of models opened here.

    Args:
        place: As --store names it; a directory that is there.
        settings: Name the models of a store in a directory.
        rerank: The user said --rerank or --no-rerank; None: neither.
        search: The keyword arguments of `lending.told`.
        device: As `resources.open_embedder` has it.
        precision: As `resources.open_embedder` has it.

    Raises:
        TarsRagError: What opening or the search raised.
    """
    path = Path(place)
    given: dict[str, Any] = {"device": device, "precision": precision}
    if not is_address(place):
        answer = resources.ask_holder(path, settings, rerank, search, **given)
        if answer is not None:
            return answer
    from tars_rag.retrieval.lending import told
    from tars_rag.retrieval.store import HybridStore

    with ExitStack() as opened:
        if is_url(place):
            store = opened.enter_context(HybridStore(place, read_only=True))
            return told(store, served_reranker(split_store(place)[0], rerank), **search)
        embedder = opened.enter_context(resources.open_embedder(settings, **given))
        store = opened.enter_context(resources.open_store(path, embedder, read_only=True))
        return told(store, resources.open_reranker(settings, rerank), **search)


def served_reranker(server: str, wanted: bool | None) -> RemoteReranker | None:
    """The reranker of a server; None: it is not wanted, or it has none and need not.

    Raises:
        ConfigError: --rerank, and it has none.
    """
    if wanted is False:
        return None
    from tars_rag.retrieval.remote.models import NoSuchModelError, RemoteReranker

    try:
        return RemoteReranker(server)
    except NoSuchModelError:
        if wanted:
            raise
        return None


def require_place(place: str, **only_here: object) -> str:
    """The place, if there is a directory of a store, or if it is a server's store.

    Args:
        place: As --store names it.
        only_here: By name the options that mean nothing for a server's store, as they were given.

    Raises:
        StoreError: There is no store in the directory.
        ConfigError: An option does not go with a server's store.
    """
    if is_lance(place):
        return lance_address(place)
    if not is_url(place):
        return str(resources.require_store(Path(place)))
    given = [f"--{name}" for name, value in only_here.items() if value not in (None, [], "fp32")]
    if given:
        msg = f"{', '.join(given)} is for a store in a directory, and {place} is a server's."
        raise ConfigError(msg)
    return place


def token_counter(place: str, settings: Settings) -> Callable[[str], int]:
    """Counts the tokens of a text; for a server's store, whose tokenizer is there, about so many.

    It counts rather too many: a token for two ASCII characters, and for each other one.
    """
    if is_url(place):
        return lambda text: (len(text) + sum(not letter.isascii() for letter in text)) // 2 + 1
    from tars_rag.models.cache import ModelCache
    from tars_rag.models.tokenizer import Tokenizer

    model = ModelCache(settings.model_cache_dir).get(settings.embed_model)
    return Tokenizer(model.directory, 512).count
