"""`tars_rag.index`: what ``tars-rag index`` does, from Python."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from tars_rag.errors import InvalidInputError, shown
from tars_rag.ingest.documents import Limits
from tars_rag.ingest.root import Root
from tars_rag.ingest.run import Report, ingest, nothing_to_ingest
from tars_rag.models.embedder import Embedder
from tars_rag.progress import NamedProgress
from tars_rag.retrieval.address import is_lance
from tars_rag.retrieval.opening import language_for
from tars_rag.retrieval.passage import TextEmbedder
from tars_rag.retrieval.storage.layout import settings_for, settings_of, store_path
from tars_rag.retrieval.storage.store_json import NAME as STORE_JSON
from tars_rag.retrieval.store import HybridStore
from tars_rag.settings import Settings
from tars_rag.splitting.splitter import Splitter

PathLike = str | os.PathLike[str]


class HasStore(Protocol):
    """Both frameworks' ``TarsVectorStore``."""

    @property
    def store(self) -> HybridStore:
        """The store underneath."""


def index(
    paths: PathLike | Iterable[PathLike],
    store: HybridStore | HasStore | PathLike,
    *,
    chunk_tokens: int | None = None,
    overlap: int = 32,
    root: PathLike | None = None,
    prune: bool = False,
    exclude: Sequence[str] = (),
    limits: Limits | None = None,
    splitter: Splitter | None = None,
    language: str | None = None,
    progress: NamedProgress | None = None,
) -> Report:
    """Index text, Markdown, JSONL and documents, new and changed ones only; may be repeated.

    ```python
    from tars_rag import Embedder, HybridStore, index

    with HybridStore("my-store", Embedder()) as store:
        report = index(["notes", "README.md"], store)
        print(report.indexed, report.failures)
    ```

    A file that cannot be read is named in the report, and the others are indexed all the same.

    Args:
        paths: A file or directory, or several. A directory is searched for files of known types.
        store: An open store, a framework's ``TarsVectorStore``, or the directory of a store, or
            its address in LanceDB (docs/lance.md). It is opened with the embedder that the
            environment describes, or its own where that names no model, and closed at the end.
        chunk_tokens: Tokens in a chunk; None: all that the embedder reads.
        overlap: Tokens shared by neighbouring chunks.
        root: A directory; sources below it are named as seen from it, so that it may move: then
            give the new one. Only for a store without sources, or with a root. A store keeps it.
        prune: Delete the passages of files that are gone.
        exclude: What to leave out of directories, as in a .gitignore.
        limits: What a document (PDF, office, HTML, ...) may cost; None: `Limits()`.
        splitter: Cuts long texts instead; for stores whose embedder is another library's.
        language: How the words of a store that is given by its directory are read (``"de"``); None:
            as the store has it, a new one by RAG_LANGUAGE.
        progress: Told the file being read, bytes done, and bytes in all.

    Returns:
        What was done: files indexed, unchanged, failed and vanished; passages written and deleted.

    Raises:
        InvalidInputError: A path, the root or the store is none, or the store's embedder has no
            tokenizer here and no `splitter` is given; the root is not one for this store.
        ConfigError: `chunk_tokens` or `overlap` does not fit the embedder.
        StoreError: The store cannot be opened or written.
    """
    files = _paths(paths)
    seen_from = None if root is None else Root.at(_paths(root)[0])
    with contextlib.ExitStack() as opened:
        if isinstance(store, str | os.PathLike):
            place, there, settings = _place(store)
            embedder = opened.enter_context(Embedder.from_settings(settings))
            cut = splitter or _splitter(embedder, chunk_tokens, overlap)
            if not there:
                nothing = nothing_to_ingest(files, cut, exclude=exclude, limits=limits)
                if nothing is not None:
                    return nothing  # a slip in a path leaves no empty store behind
            language = language or language_for(place, settings)
            target = opened.enter_context(HybridStore(place, embedder, language=language))
        else:
            target = _target(store)
            if language not in (None, target.language):
                msg = (
                    f"The store reads words as {target.language!r}, not {language!r}. Close it, "
                    f"then: tars-rag store relex {shlex.quote(str(target.path))} "
                    f"--language {language}"
                )
                raise InvalidInputError(msg)
            cut = splitter or _splitter(target.embedder, chunk_tokens, overlap)
        return ingest(
            target,
            files,
            cut,
            root=seen_from,
            prune=prune,
            exclude=exclude,
            limits=limits,
            progress=progress,
        )


def _paths(paths: PathLike | Iterable[PathLike]) -> list[Path]:
    chosen = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    for path in chosen:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            msg = f"{shown(path)} is not a path. Give files and directories by their names."
            raise InvalidInputError(msg)
    return [Path(path) for path in chosen]


def _place(store: PathLike) -> tuple[Path | str, bool, Settings]:
    """Where a store is, whether it is there, and the settings that it is opened with."""
    settings = Settings.from_env()
    if is_lance(store):
        from tars_rag.retrieval.lance.told import told

        its = told(str(store))
        return str(store), its is not None, settings_of(its, settings)
    directory = store_path(Path(store))
    return directory, (directory / STORE_JSON).exists(), settings_for(directory, settings)


def _target(store: HybridStore | HasStore) -> HybridStore:
    target = store if isinstance(store, HybridStore) else getattr(store, "store", None)
    if not isinstance(target, HybridStore):
        msg = (
            f"{shown(store)} is not a store. Give a HybridStore, a TarsVectorStore or a directory."
        )
        raise InvalidInputError(msg)
    return target


def _splitter(embedder: TextEmbedder, tokens: int | None, overlap: int) -> Splitter:
    if not isinstance(embedder, Embedder):
        msg = (
            f"The store's embedder ({embedder.fingerprint}) is not one of tars-rag, so its tokens "
            "cannot be counted. Give what cuts long texts: index(..., splitter=Splitter("
            "TOKENIZER_JSON, MAX_LENGTH)), from tars_rag.splitting.splitter."
        )
        raise InvalidInputError(msg)
    return Splitter(embedder.tokenizer_path, embedder.passage_length, tokens, overlap)
