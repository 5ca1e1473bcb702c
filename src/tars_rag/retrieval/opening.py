"""Where a store is, by what it was asked for: a directory, a server that has it, or LanceDB."""

from __future__ import annotations

from pathlib import Path

from tars_rag.errors import InvalidInputError
from tars_rag.retrieval.address import is_lance, is_url
from tars_rag.retrieval.indexes.words.languages import check_language
from tars_rag.retrieval.passage import Progress, TextEmbedder
from tars_rag.retrieval.sharing import peer
from tars_rag.retrieval.sharing.access import StoreAccess
from tars_rag.retrieval.storage import layout
from tars_rag.retrieval.storage.layout import store_path
from tars_rag.settings import Settings


def language_for(path: str | Path | None, settings: Settings) -> str | None:
    """What RAG_LANGUAGE says for a store that is about to be made (see `layout.language_for`)."""
    if not is_lance(path):
        return layout.language_for(path, settings)
    if settings.rag_language is None:
        return None
    from tars_rag.retrieval.lance.told import told

    return layout.language_for(None, settings) if told(str(path)) is None else None


def opened(
    path: str | Path,
    embedder: TextEmbedder | None,
    *,
    read_only: bool,
    chroma_url: str | None,
    language: str | None,
    progress: Progress | None,
    share: bool,
    api_key: str | None,
) -> tuple[StoreAccess, TextEmbedder]:
    """The store and the embedder of it; see `HybridStore` for the arguments and errors."""
    if is_url(path):
        for name, value in (("chroma_url", chroma_url), ("language", language)):
            if value is not None:
                msg = f"{name} is for a store in a directory; a server's store has its own."
                raise InvalidInputError(msg)
        from tars_rag.retrieval.remote.access import RemoteAccess  # with httpx, which takes long

        remote = RemoteAccess(str(path), embedder, api_key=api_key, read_only=read_only)
        return remote, embedder or remote.embedder()
    if is_lance(path):
        return _lance(str(path), embedder, read_only, chroma_url, language, api_key)
    if embedder is None:
        msg = "A store in a directory needs its embedder: HybridStore(path, Embedder())"
        raise InvalidInputError(msg)
    if api_key is not None:
        msg = f"api_key is for a store of a server, and {str(path)!r} is a directory."
        raise InvalidInputError(msg)
    access = peer.opened(
        store_path(path),
        embedder,
        read_only=read_only,
        chroma_url=chroma_url,
        language=None if language is None else check_language(language),
        progress=progress,
        share=share,
    )
    return access, embedder


def _lance(
    address: str,
    embedder: TextEmbedder | None,
    read_only: bool,
    chroma_url: str | None,
    language: str | None,
    api_key: str | None,
) -> tuple[StoreAccess, TextEmbedder]:
    """A store in a table of LanceDB, which is imported only here, and its embedder."""
    for name, value, whose in (
        ("chroma_url", chroma_url, "for a store in a directory"),
        ("api_key", api_key, "for a store of a server; keys of S3 are in the AWS_* variables"),
    ):
        if value is not None:
            msg = f"{name} is {whose}, and {address!r} is in LanceDB."
            raise InvalidInputError(msg)
    if embedder is None:
        msg = f"A store in LanceDB needs its embedder: HybridStore({address!r}, Embedder())"
        raise InvalidInputError(msg)
    from tars_rag.retrieval.lance.access import LanceAccess  # with LanceDB, which takes long

    code = None if language is None else check_language(language)
    return LanceAccess(address, embedder, read_only=read_only, language=code), embedder
