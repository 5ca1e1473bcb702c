"""By what a passage is known again: what is embedded of it, and its text however it is spaced."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass

from tars_rag.retrieval.passage import FilePassage, Passage


@dataclass(frozen=True)
class Claim:
    """What is recorded of a passage.

    Attributes:
        id: Of the passage.
        source: The file it comes from.
        digest: Of what is embedded of it; passages with the same one have the same vector.
        content: Of its text, however that is spaced; passages with the same one are copies.
        passage: Itself; a record beside the store does without.
    """

    id: str
    source: str
    digest: str
    content: str = ""
    passage: Passage | None = None


def digest_of(passage: Passage) -> str:
    """Names what is embedded of a passage."""
    return hashlib.sha256(passage.indexed.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def content_of(text: str) -> str:
    """Names a text, however it is spaced and its characters are composed."""
    plain = " ".join(unicodedata.normalize("NFKC", text).split())
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def from_file(passage: Passage, source: str) -> FilePassage:
    """A passage with the file that it was read from."""
    return FilePassage(passage.id, passage.text, passage.metadata, source, digest_of(passage))


def claim_of(passage: FilePassage) -> Claim:
    """What is recorded of a passage of a file."""
    content = content_of(passage.text)
    return Claim(passage.id, passage.origin, passage.embedded, content, passage)
