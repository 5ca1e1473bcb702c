"""What several commands open: settings, embedder, reranker, store; and their common options."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tars_rag.cli.console import progress_bar, say_again, say_once
from tars_rag.errors import ConfigError, InvalidInputError, ModelError, StoreError
from tars_rag.retrieval.address import is_url, lance_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tars_rag.models.embedder import Embedder
    from tars_rag.models.reranker import Reranker
    from tars_rag.retrieval.sharing.warm import Told
    from tars_rag.retrieval.store import HybridStore
    from tars_rag.settings import Settings
    from tars_rag.splitting.splitter import Splitter


def usual_store() -> Path:
    """TARS_STORE, from the environment or ``.env``."""
    usual = read_settings().tars_store
    if usual is None:
        msg = "Which store? Give --store DIR, or set TARS_STORE."
        raise typer.BadParameter(msg, param_hint="--store")
    return usual


StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        metavar="DIR",
        help="The store's directory (default: TARS_STORE).",
        show_default=False,
        default_factory=usual_store,
    ),
]
DirectoryArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[DIR]",
        help="The store's directory (or --store, or TARS_STORE).",
        show_default=False,
    ),
]
StoreInstead = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="The store's directory.", show_default=False),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Embedder: name or model directory (default: EMBED_MODEL)."),
]
DeviceOption = Annotated[
    Literal["auto", "npu", "cpu"] | None,
    typer.Option("--device", help="Where to embed (default: NPU_EMBEDDER_ENABLED, else auto)."),
]
EngineOption = Annotated[
    Literal["auto", "onnxruntime", "openvino"] | None,
    typer.Option("--engine", help="What runs models on the CPU (default: CPU_ENGINE, else auto)."),
]
PrecisionOption = Annotated[
    Literal["fp32", "int8"],
    typer.Option(
        "--precision", help="Of the embedder on the CPU; a store keeps the one it was made with."
    ),
]
LanguageOption = Annotated[
    str | None,
    typer.Option(
        "--language",
        metavar="LANGUAGE",
        help="Of the texts: de, ja, multi, ... A store keeps it (default: RAG_LANGUAGE or en).",
    ),
]
RerankOption = Annotated[
    bool | None,
    typer.Option(
        "--rerank/--no-rerank",
        help="Rerank with a cross-encoder (default: if one is there).",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def which_store(directory: Path | None, store: Path | None) -> Path:
    """The store that is meant: an argument, --store, or TARS_STORE."""
    if directory is not None and store is not None:
        msg = f"Which store, {directory} or {store}? Give its directory once."
        raise typer.BadParameter(msg, param_hint="--store")
    return directory or store or usual_store()


def store_and_words(given: list[str], names: str, store: Path | None) -> tuple[Path, list[str]]:
    """Take apart ``[DIR] WORD...``: a store's directory may stand before the words.

    Args:
        given: The arguments.
        names: What the words are called, as a usage line has them: "OLD NEW".
        store: --store.

    Raises:
        typer.BadParameter: They are too few or too many.
    """
    count = len(names.split())
    if len(given) not in (count, count + 1):
        msg = f"Give {names}, and before it the store's directory where --store does not name it."
        raise typer.BadParameter(msg, param_hint=names)
    first = Path(given[0]) if len(given) > count else None
    return which_store(first, store), given[-count:]


def read_settings(**given: Any) -> Settings:
    """Read the environment and ``.env``; options that were given win over both."""
    from tars_rag.settings import Settings

    return Settings.from_env(**{name: value for name, value in given.items() if value is not None})


def read_settings_for(store: Path | str, **given: Any) -> Settings:
    """As `read_settings`, for what is done to a store: where no model is named, its own."""
    settings, address = read_settings(**given), lance_of(store)
    if address is not None:
        from tars_rag.retrieval.lance import told

        return told.settings_for(address, settings)
    if is_url(store):
        return settings
    from tars_rag.retrieval.storage.layout import settings_for

    return settings_for(_without_tilde(Path(store)), settings)


def open_embedder(
    settings: Settings,
    *,
    device: str | None = None,
    precision: Literal["fp32", "int8"] = "fp32",
) -> Embedder:
    """Open the embedder, and fetch it first, with a progress bar, if it is not on this machine."""
    from tars_rag.models.embedder import Embedder

    given = {"device": device} if device else {}
    with progress_bar(download=True) as progress:
        return Embedder.from_settings(settings, precision=precision, progress=progress, **given)


def open_reranker(
    settings: Settings, wanted: bool | None, *, fetch: bool = False
) -> Reranker | None:
    """Open the reranker, or return None and say why on stderr, once and not at every query.

    Args:
        settings: Name the model.
        wanted: The user said --rerank (fetched if need be) or --no-rerank; None: neither.
        fetch: Try to fetch it even if the user said neither.

    Raises:
        ConfigError: --rerank, and RERANK_MODEL is empty.
        ModelError: --rerank, and it cannot be had; or it is damaged.
    """
    from tars_rag.models.cache import ModelCache
    from tars_rag.models.reranker import Reranker

    name = settings.rerank_model
    if wanted is False or (wanted is None and not name):
        return None
    if not name:
        msg = "--rerank needs a model, and RERANK_MODEL is empty. Set it, or leave --rerank out."
        raise ConfigError(msg)
    models = ModelCache(settings.model_cache_dir)
    topic = f"no reranker {name}"
    if models.find(name) is None:
        try:
            if not (wanted or fetch):
                msg = f"{name} is not on this machine. To fetch it: tars-rag models pull {name}"
                raise ModelError(msg)
            with progress_bar(download=True) as progress:
                models.get(name, progress)
        except ModelError as error:
            if wanted:
                raise
            say_once(topic, f"No reranker, so fusion decides: {error}", style="yellow")
            return None
    say_again(topic)
    return Reranker.from_settings(settings)


def ask_holder(
    path: Path,
    settings: Settings,
    rerank: bool | None,
    search: Mapping[str, Any],
    *,
    device: str | None,
    precision: Literal["fp32", "int8"],
) -> Told | None:
    """What a process that has the store open with these models answers; None: open them here.

    Args:
        path: The store's directory.
        settings: Name the models.
        rerank: As `open_reranker` has it.
        search: The keyword arguments of `lending.told`.
        device: As `open_embedder` has it.
        precision: As `open_embedder` has it.

    Raises:
        TarsRagError: What the search raised.
    """
    from tars_rag.retrieval.storage.listener import left_behind

    if (rerank and not settings.rerank_model) or not left_behind(path):
        return None
    from tars_rag.retrieval.sharing import warm

    given: dict[str, Any] = {"device": device} if device else {}
    placement = replace(settings.embedder_placement, precision=precision, **given)
    name = settings.rerank_model
    reranks = bool(name) and rerank is not False
    answer = warm.ask_holder(
        path,
        {
            "embedder": warm.opened_as(settings.embed_model, placement, settings.embed_prompts),
            "reranker": warm.opened_as(name, settings.reranker_placement, None)
            if reranks
            else None,
            **search,
        },
    )
    if answer is not None and answer.reranked:
        say_again(f"no reranker {name}")
    return answer


def make_splitter(
    settings: Settings, embedder: Embedder, tokens: int | None, overlap: int
) -> Splitter:
    """A splitter whose chunks `embedder` reads whole, measured with its own tokenizer."""
    from tars_rag.models.cache import ModelCache
    from tars_rag.models.tokenizer import TOKENIZER_NAME
    from tars_rag.splitting.splitter import Splitter

    model = ModelCache(settings.model_cache_dir).get(settings.embed_model)
    return Splitter(model.directory / TOKENIZER_NAME, embedder.passage_length, tokens, overlap)


def open_store(
    path: Path, embedder: Embedder, *, read_only: bool = False, language: str | None = None
) -> HybridStore:
    """Open the store, with a progress bar if an index of it has to be rebuilt.

    A new one is made in `language`, or else in RAG_LANGUAGE's.
    """
    from tars_rag.retrieval.opening import language_for
    from tars_rag.retrieval.store import HybridStore

    address = lance_of(path)
    if address is not None:
        wanted = language or language_for(address, read_settings())
        return HybridStore(address, embedder, read_only=read_only, language=wanted)
    with progress_bar("count") as progress:
        return HybridStore(
            path,
            embedder,
            read_only=read_only,
            language=language or language_for(path, read_settings()),
            progress=partial(progress, "rebuild its indexes"),
        )


def look_into(path: Path, *, read_only: bool = True) -> HybridStore:
    """Open a store for what needs no embedding: its model does not have to be on this machine.

    Raises:
        StoreError: There is no store.
    """
    from tars_rag.retrieval.lance import told
    from tars_rag.retrieval.lance.library import no_store
    from tars_rag.retrieval.storage.store_json import read_store_json
    from tars_rag.retrieval.store import HybridStore

    address = lance_of(path)
    if address is not None:
        its = told.told(address)
        if its is None:
            raise StoreError(no_store(address))
        return HybridStore(address, told.Named(its.fingerprint), read_only=read_only)
    path = require_store(path)
    held = read_store_json(path)
    if held is None:
        msg = f"{path} is not a store. Give the directory of one."
        raise StoreError(msg)
    return HybridStore(path, told.Named(held.fingerprint), read_only=read_only)


def is_store(path: Path) -> bool:
    """Whether there is a store at `path`, intact or not."""
    address = lance_of(path)
    if address is not None:
        from tars_rag.retrieval.lance.told import told

        return told(address) is not None
    from tars_rag.retrieval.storage.store_json import NAME

    return (_without_tilde(path) / NAME).exists()


def require_store(path: Path, instead: str = "") -> Path:
    """Return `path`, with ``~`` replaced, if there is a store.

    Args:
        path: As it was given.
        instead: What to do where the store is in LanceDB.

    Raises:
        StoreError: There is none, or it is in LanceDB.
    """
    from tars_rag.retrieval.commands import index_command

    address = lance_of(path)
    if address is not None:
        msg = f"{address} is in LanceDB, and this command is for a store in a directory. " + (
            instead.format(store=address) or "What there is for it is told in docs/lance.md."
        )
        raise StoreError(msg)
    path = _without_tilde(path)
    if not path.is_dir() or not any(path.iterdir()):
        msg = f"There is no store at {path}. Make one: {index_command(path)}"
        raise StoreError(msg)
    return path


def _without_tilde(path: Path) -> Path:
    """A shell leaves ``~`` as it is in ``--store=~/notes``."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        msg = f"{path} names the home of a user who is not known here ({error}). Give another path."
        raise InvalidInputError(msg) from error
