"""By what a passage is known again: what is embedded of it, and its text however it is spaced."""

from __future__ import annotations

import hashlib
import unicodedata

from tars_rag.ingest.ledger import Claim
from tars_rag.retrieval.passage import FilePassage, Passage


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
