"""What lies in a store's directory, and whether a directory is one."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import uuid
from pathlib import Path

from tars_rag.errors import (
    ConfigError,
    FingerprintError,
    InvalidInputError,
    StoreError,
    shown,
)
from tars_rag.files import is_partial, sync
from tars_rag.retrieval.address import is_url
from tars_rag.retrieval.commands import index_command
from tars_rag.retrieval.indexes.chroma.requests import url_parts
from tars_rag.retrieval.indexes.chroma.server import REVISIONS
from tars_rag.retrieval.indexes.words.languages import DEFAULT_LANGUAGE, check_language
from tars_rag.retrieval.storage.listener import NAME as SOCKET
from tars_rag.retrieval.storage.listener import STANDBY
from tars_rag.retrieval.storage.state import NAME as STATE
from tars_rag.retrieval.storage.store_json import NAME as STORE_JSON
from tars_rag.retrieval.storage.store_json import (
    PARTS,
    StoreJson,
    named,
    precision_of,
    read_store_json,
)
from tars_rag.settings import Settings

CHROMA, EXACT, LEXICAL = "chroma", "exact", "lexical"
JOURNAL, LOCK, SEAL = "journal", "lock", "seal.json"
LOG = "write-ahead.log"
SOURCES = "sources.sqlite3"  # which file gave which passages (see ingest)
_PROBE = "probe.json"
_OURS_MADE = re.compile(r"[0-9a-f]{16}:[^:]+:\d+:[^:]+\Z")  # the fingerprint of an `Embedder`
_SOCKETS = {SOCKET, STANDBY}
_OURS = {CHROMA, EXACT, LEXICAL, JOURNAL, LOCK, LOG, SEAL, STATE, STORE_JSON, REVISIONS, *_SOCKETS}


def store_path(path: str | Path) -> Path:
    """The one absolute path of a store's directory, however it was spelled (~, links, ``..``).

    Raises:
        InvalidInputError: It is no path, or names the home of a user who is not known.
    """
    try:
        return Path(path).expanduser().resolve()
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        msg = f"{shown(path)} is not the path of a directory: {error}. Give the store's directory."
        raise InvalidInputError(msg) from error


def language_for(path: str | Path | None, settings: Settings) -> str | None:
    """What RAG_LANGUAGE says for a store that is about to be made.

    Args:
        path: The store's directory; None: a temporary one. Or a server's store.
        settings: From the environment.

    Returns:
        None where it is not set, or where the store is there and has its own language.

    Raises:
        ConfigError: There is no such language.
    """
    wanted = settings.rag_language
    if wanted is None or is_url(path):
        return None
    if path is not None and (store_path(path) / STORE_JSON).exists():
        return None
    try:
        return check_language(wanted)
    except InvalidInputError as error:
        msg = f"RAG_LANGUAGE={wanted}: {error}"
        raise ConfigError(msg) from error


def settings_for(path: str | Path, settings: Settings) -> Settings:
    """The settings, with a store's own model where the user named none: no other one fits it.

    A store of another library's embedder, or of a model directory that is not on this machine,
    changes nothing; nor does one that is about to be made.

    Args:
        path: The store's directory.
        settings: From the environment.
    """
    if "embed_model" in settings.model_fields_set:
        return settings
    return settings_of(read_store_json(store_path(path)), settings)


def settings_of(told: StoreJson | None, settings: Settings) -> Settings:
    """The same, of what a store says of itself; None: nothing, as it is yet to be made."""
    if "embed_model" in settings.model_fields_set:
        return settings
    if told is None or not told.model or not _OURS_MADE.match(told.fingerprint):
        return settings
    if told.model.startswith(("/", ".", "~")) and not Path(told.model).is_dir():
        return settings
    return settings.model_copy(update={"embed_model": told.model})


def prepare_directory(path: Path, *, create: bool) -> None:
    """Make sure that `path` is a store, or, with `create`, an empty directory to make one in.

    Raises:
        StoreError: It is neither, or cannot be read or made.
    """
    try:
        if create:
            _make_directory(path)
        present = {entry.name for entry in path.iterdir() if not _unfinished(entry.name)}
    except OSError as error:
        msg = f"The store {path} cannot be opened: {error}. Check path and permissions."
        raise StoreError(msg) from error
    if STORE_JSON in present:
        return
    if not create:
        raise StoreError(_no_store(path))
    if present - {LOCK, *_SOCKETS}:
        what = f"has lost its {STORE_JSON}" if present <= _OURS else "is not empty, and not a store"
        msg = (
            f"{path} {what} (it holds {', '.join(sorted(present)[:5])}). "
            "Give another directory, or restore the missing file from a backup."
        )
        raise StoreError(msg)


def _unfinished(name: str) -> bool:
    """Left by a process that was killed while it wrote one of our files."""
    return any(is_partial(name, whole) for whole in (STORE_JSON, SEAL, STATE, LOG))


def _make_directory(path: Path) -> None:
    """With its parents; durable on return, or a power cut could take the store with its name."""
    if path.is_dir():
        return
    if path.parent != path:
        _make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def open_store_json(
    path: Path,
    fingerprint: str | None,
    chroma_url: str | None,
    *,
    model: str | None = None,
    language: str | None = None,
) -> StoreJson:
    """Read store.json and check it, or write that of a new store.

    Args:
        path: The store's directory.
        fingerprint: Of the embedder; None: any, and no new store.
        chroma_url: Where the vectors are to be; None: in the directory.
        model: Name of the embedder's model.
        language: How its words are to be read; None: as they are, or the default.

    Raises:
        FingerprintError: The store was made with another embedder.
        ConfigError: The store's Chroma is elsewhere, or its language is another.
        StoreError: The file cannot be read or written, or there is none.
    """
    if chroma_url is not None:
        url_parts(chroma_url)
    known = read_store_json(path)
    if known is None:
        if fingerprint is None:
            raise StoreError(_no_store(path))
        collection = f"tars-{uuid.uuid4().hex}" if chroma_url else "passages"
        try:
            return StoreJson.new(
                fingerprint,
                collection,
                chroma_url=chroma_url,
                model=model,
                language=language or DEFAULT_LANGUAGE,
            ).write(path)
        except OSError as error:
            msg = f"The store {path} cannot be written: {error}. Check permissions and space."
            raise StoreError(msg) from error
    if fingerprint is not None and known.fingerprint != fingerprint:
        raise FingerprintError(_other_embedder(path, known, fingerprint, model))
    if fingerprint is not None and (known.chroma_url is None) != (chroma_url is None):
        its = known.chroma_url or "embedded in its directory"
        msg = (
            f"The store {path} has its Chroma at: {its}; chroma_url={shown(chroma_url)} was given. "
            "Give the same, or make another store."
        )
        raise ConfigError(msg)
    if language is not None and language != known.language:
        msg = (
            f"The words of the store {path} are read as {known.language!r}, {language!r} was "
            "given. Leave the language out, or change the store's: "
            f"tars-rag store relex {shlex.quote(str(path))} --language {language}"
        )
        raise ConfigError(msg)
    return known


def _other_embedder(path: Path, known: StoreJson, fingerprint: str, model: str | None) -> str:
    """What to say of an embedder that is not the store's."""
    *weights, held = known.fingerprint.split(":")
    *given, offered = fingerprint.split(":")
    fix = "Use that one"
    if weights == given and len(weights) == PARTS - 1:  # the same weights in another precision
        precision = precision_of(known.fingerprint)
        fix = f"Their precision differs ({held}, {offered})"
        if precision:
            fix += f": use the store's, --precision {precision} (precision={precision!r})"
    elif _differ_in_prompts(weights, given):
        fix = (
            "Their prompts differ: give those that the store was made with (EMBED_QUERY_PROMPT and "
            "EMBED_PASSAGE_PROMPT, or prompts=)"
        )
    elif known.model:
        fix = f"Use that one: --model {shlex.quote(known.model)}"
    return (
        f"The store {path} was made with the embedder {known.embedder}, the one given is "
        f"{named(model, fingerprint)}; their vectors do not mix. {fix}; or embed the store anew: "
        f"{known.reembed_command(path, model, fingerprint)}"
    )


def _differ_in_prompts(weights: list[str], given: list[str]) -> bool:
    """Whether the same weights pool in the same way, but with other prompts before the text."""
    if not len(weights) == len(given) == PARTS - 1 or weights[::2] != given[::2]:
        return False
    return weights[1].partition("+")[0] == given[1].partition("+")[0]


def read_probe_file(path: Path) -> list[float] | None:
    """The embedder's probe where stores of version 2 kept it; None: nothing that can be read."""
    try:
        found = json.loads((path / _PROBE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    numbers = isinstance(found, list) and all(isinstance(value, int | float) for value in found)
    return found if numbers and found else None


def discard_probe_file(path: Path) -> None:
    """Delete it: store.json has it now."""
    with contextlib.suppress(OSError):
        (path / _PROBE).unlink(missing_ok=True)


def _no_store(path: Path) -> str:
    return f"{path} is not a store: it has no {STORE_JSON}. Make one: {index_command(path)}"
