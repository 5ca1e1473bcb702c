"""Which files are read, and how: one row for each suffix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import PurePath
from typing import Literal

from tars_rag.splitting.splitter import Form


@dataclass(frozen=True)
class Format:
    """How files of one suffix are read.

    Attributes:
        kind: Text of ours, rows of JSON, or a document that another library takes apart.
        form: How the text is written, once it is there.
        mime: What the library is told a document is.
    """

    kind: Literal["text", "records", "document"]
    form: Form = "plain"
    mime: str = ""


def _document(mime: str, form: Form = "markdown") -> Format:
    return Format("document", form, mime)


_OFFICE = "application/vnd.openxmlformats-officedocument."
_OPEN = "application/vnd.oasis.opendocument."
_CODE = """
    .py .pyi .js .mjs .cjs .jsx .ts .tsx .c .h .cc .cpp .cxx .hpp .hh .cs .java .kt .kts .go .rs .rb
    .php .swift .scala .lua .pl .pm .r .jl .m .sh .bash .zsh .fish .ps1 .sql .dart .ex .exs .erl .hs
    .ml .clj .el .lisp .vim .zig .nim .f90 .pas .vb .groovy .gradle .cmake .proto
"""
# Not among them: source code as a document, for which kreuzberg would fetch grammars.
FORMATS: dict[str, Format] = {
    **dict.fromkeys((".txt", ".text", ".rst"), Format("text")),
    **dict.fromkeys((".md", ".markdown"), Format("text", "markdown")),
    **dict.fromkeys(_CODE.split(), Format("text", "code")),
    **dict.fromkeys((".jsonl", ".ndjson"), Format("records")),
    ".pdf": _document("application/pdf", "plain"),
    ".docx": _document(_OFFICE + "wordprocessingml.document"),
    ".pptx": _document(_OFFICE + "presentationml.presentation"),
    ".xlsx": _document(_OFFICE + "spreadsheetml.sheet"),
    ".doc": _document("application/msword", "plain"),  # as Markdown its lines are one
    ".ppt": _document("application/vnd.ms-powerpoint", "plain"),
    ".xls": _document("application/vnd.ms-excel"),
    ".odt": _document(_OPEN + "text"),
    ".ods": _document(_OPEN + "spreadsheet"),
    ".rtf": _document("application/rtf"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _document("text/html")),
    ".epub": _document("application/epub+zip"),
    ".fb2": _document("application/x-fictionbook+xml"),
    ".eml": _document("message/rfc822"),
    ".msg": _document("application/vnd.ms-outlook"),
    ".csv": _document("text/csv"),
    ".tsv": _document("text/tab-separated-values"),
    ".org": _document("text/x-org"),
}
_TEXT = Format("text")


def format_of(path: PurePath) -> Format:
    """How a file is read; one of an unknown suffix, if somebody names it, is text."""
    return FORMATS.get(path.suffix.lower(), _TEXT)


def is_searched_for(path: PurePath) -> bool:
    """Whether a file in a directory is read without being named."""
    found = FORMATS.get(path.suffix.lower())
    return found is not None and (found.kind != "document" or documents_are_read())


@lru_cache(maxsize=1)
def documents_are_read() -> bool:
    """Whether the library for documents is installed."""
    return find_spec("kreuzberg") is not None
