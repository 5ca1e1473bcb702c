"""PDF, office documents, HTML, books, mail: read by kreuzberg, in a process of its own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from tars_rag import advice
from tars_rag.child import Child
from tars_rag.errors import InvalidInputError
from tars_rag.ingest.formats import Format, documents_are_read

_FRONT = re.compile(r"\A---\n(?:[\w:.-]+: .*\n){0,100}\n?(?:---\n|## [\w:.-]+: .*\n)")
_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class Limits:
    """What one document may cost before it is given up.

    Attributes:
        megabytes: Of the file.
        pages: Of a document that has pages.
        seconds: To read it.
        memory_megabytes: Of the process that reads it.
        ocr: Let tesseract read pages that are pictures.
    """

    megabytes: float = 200
    pages: int = 5000
    seconds: float = 120
    memory_megabytes: int = 1500
    ocr: bool = False


@dataclass(frozen=True)
class Document:
    """What a file holds.

    Attributes:
        text: All of it.
        title: What the file says it is called; may be empty.
        about: What else it says of itself, as metadata.
        pages: Where each page begins in the text, and its number.
    """

    text: str
    title: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    pages: tuple[tuple[int, int], ...] = ()


class DocumentReader:
    """Reads documents one by one, in a process that is started when it is needed."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._child: Child | None = None

    def read(self, path: Path, form: Format) -> Document:
        """Take one document apart.

        Raises:
            InvalidInputError: It cannot be read, or costs more than `limits`; the file is named.
        """
        self._check(path)
        try:
            held = self._ask(path, form)
            if "problem" in held:
                msg = f"{path} cannot be read: {held['problem']}"
                raise InvalidInputError(msg)
            return self._document(path, held)
        except InvalidInputError:
            raise
        except (EOFError, OSError) as error:
            child, self._child = self._child, None
            how = "died" if child is None else child.obituary()
            if child is not None:
                child.close(0)
            msg = f"{path} cannot be read: the process that read it {how}"
            raise InvalidInputError(msg) from error

    def _check(self, path: Path) -> None:
        if not documents_are_read():
            msg = (
                f"{path} is a document, for which an extra is needed: {advice.install('documents')}"
            )
            raise InvalidInputError(msg)
        try:
            size = path.stat().st_size
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror or error}. Check its permissions."
            raise InvalidInputError(msg) from error
        if size == 0:
            msg = f"{path} is empty (0 bytes)."
            raise InvalidInputError(msg)
        if size > self.limits.megabytes * 1e6:
            msg = (
                f"{path} has {size / 1e6:.0f} MB, more than the {self.limits.megabytes:g} that are "
                f"read. To read it: --max-file-mb {size // 1_000_000 + 1}"
            )
            raise InvalidInputError(msg)
        if self.limits.ocr and shutil.which("tesseract") is None:
            msg = f"{path} was not read: --ocr needs tesseract, which is not installed here."
            raise InvalidInputError(msg)

    def _ask(self, path: Path, form: Format) -> dict[str, Any]:
        if self._child is None:
            self._child = Child("tars_rag.ingest.document_child:serve")
            self._child.links[0].send({"memory": self.limits.memory_megabytes << 20})
        [link] = self._child.links
        pages = form.mime == "application/pdf"
        asked = {"path": str(path), "mime": form.mime, "form": form.form, "pages": pages}
        link.send({**asked, "ocr": self.limits.ocr})
        if not link.wait(self.limits.seconds):
            self.close(0)
            longer = f"--max-seconds {5 * self.limits.seconds:g}"
            msg = f"{path} was given up after {self.limits.seconds:g} s. To wait longer: {longer}"
            raise InvalidInputError(msg)
        held: dict[str, Any] = link.receive()[0]
        return held

    def _document(self, path: Path, held: dict[str, Any]) -> Document:
        about = {key: value for key, value in held["about"].items() if value}
        title = " ".join(str(about.pop("title", "")).split())
        about["created"] = _date(str(about.get("created", "")))
        about["authors"] = [str(one) for one in about.pop("authors", [])]
        about = {key: value for key, value in about.items() if value}
        if held["pages"] is None:
            text = _tidy(_FRONT.sub("", held["text"]))
            if not text.strip():
                msg = f"{path} has no text in it."
                raise InvalidInputError(msg)
            return Document(text, title, about)
        count = len(held["pages"])
        if count > self.limits.pages:
            msg = (
                f"{path} has {count} pages, more than the {self.limits.pages} that are read. "
                f"To read it: --max-pages {count}"
            )
            raise InvalidInputError(msg)
        parts: list[str] = []
        pages: list[tuple[int, int]] = []
        at = 0
        for number, content in held["pages"]:
            page = _tidy(content)
            if page.strip():
                pages.append((at, int(number)))
                parts.append(page + "\n\n")
                at += len(parts[-1])
        text = "".join(parts).rstrip("\n")
        if not text.strip():
            msg = (
                f"{path} has no text in it: its pages are pictures (a scan?). With tesseract "
                "installed, --ocr reads them."
            )
            if self.limits.ocr:
                msg = f"{path} has no text in it, nor has what tesseract sees of its pages."
            raise InvalidInputError(msg)
        return Document(text, title, about, tuple(pages))

    def close(self, seconds: float = 2) -> None:
        """End the process. May be called twice; reading starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.close(seconds)

    def __enter__(self) -> DocumentReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _date(told: str) -> str:
    """When a document was made: mails say it in their own way, and others as ISO 8601."""
    try:
        return parsedate_to_datetime(told).isoformat()
    except (ValueError, TypeError, IndexError):
        return told


def _tidy(text: str) -> str:
    """One kind of line end, and no more than one blank line."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return _BLANK_LINES.sub("\n\n", plain).strip("\n")
