"""What the splitters of both frameworks share."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from tars_rag.errors import ConfigError
from tars_rag.models.embedder import Embedder
from tars_rag.splitting.splitter import Form, Splitter

Written = Literal["auto", "plain", "markdown", "code"]
"""How texts are written; "auto": Markdown if the source's name says so, else plain."""
_MARKDOWN = (".md", ".markdown")
_SOURCES = ("source", "file_path", "file_name")


def splitter_for(embedder: object, chunk_tokens: int | None, overlap: int) -> Splitter:
    """A splitter whose chunks `embedder` reads whole.

    Raises:
        ConfigError: The sizes do not fit the embedder, or a server has it.
    """
    if not isinstance(embedder, Embedder):
        msg = (
            f"Texts are cut by a model's tokens, and a server does not send its tokenizer: give "
            f"the splitter the same model without base_url. The server's: {embedder!r}"
        )
        raise ConfigError(msg)
    return Splitter(embedder.tokenizer_path, embedder.passage_length, chunk_tokens, overlap)


def form_of(written: Written, metadata: dict[str, object]) -> Form:
    """How the text with this metadata is written."""
    if written != "auto":
        return written
    named = next((metadata[key] for key in _SOURCES if isinstance(metadata.get(key), str)), "")
    return "markdown" if PurePath(str(named)).suffix.lower() in _MARKDOWN else "plain"
