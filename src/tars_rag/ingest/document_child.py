"""The process that takes documents apart: what is in a file can crash or hang only this one."""

from __future__ import annotations

import contextlib
import os
import resource
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tars_rag.child import Link, trim_log
from tars_rag.ingest.encodings import decode_page

_PAGE = "text/html"
_ZIPPED = ("openxmlformats", "opendocument", "epub")
_RATIO = 200  # a zip that unpacks to more than that many times its size, and not to little, is none
_HARMLESS = 64 << 20  # bytes
_DPI = 300  # what tesseract is made for


def serve(links: Sequence[Link]) -> None:
    """Read documents until the link is closed."""
    [link] = links
    header, _ = link.receive()
    _limit_memory(int(header["memory"]))
    os.environ.setdefault("OMP_THREAD_LIMIT", "1")  # tesseract's threads wait for each other
    while True:
        try:
            asked, _ = link.receive()
        except (EOFError, OSError):
            return
        trim_log()
        try:
            link.reply(lambda asked=asked: (_read(**asked), {}), _problem)  # type: ignore[misc]
        except OSError:
            return


def _limit_memory(more: int) -> None:
    """No more than `more` bytes of address space beside what is taken already."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with contextlib.suppress(ValueError, OSError):  # a lower limit of the user's stays
        resource.setrlimit(resource.RLIMIT_AS, (taken + more, resource.RLIM_INFINITY))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _problem(error: BaseException) -> dict[str, str]:
    told = " ".join(str(error).split()) or type(error).__name__
    return {"problem": told[:300]}


def _read(path: str, mime: str, form: str, pages: bool, ocr: bool) -> dict[str, Any]:
    import kreuzberg

    if any(name in mime for name in _ZIPPED):
        _check_zip(Path(path))
    options: dict[str, Any] = {
        "use_cache": False,
        "disable_ocr": True,
        "output_format": "plain" if form == "plain" else "markdown",
        "pages": kreuzberg.PageConfig(extract_pages=True) if pages else None,
    }
    config = kreuzberg.ExtractionConfig(**options)
    if mime == _PAGE:  # the library takes all of them for UTF-8
        text = decode_page(Path(path).read_bytes())
        found = kreuzberg.extract_bytes_sync(text.encode("utf-8", "replace"), mime, config)
    else:
        found = kreuzberg.extract_file_sync(path, mime, config)
    about: Any = found.metadata or {}
    told = {
        "title": about.get("title") or about.get("subject"),
        "authors": about.get("authors"),
        "created": about.get("created_at"),
    }
    if not pages:
        return {"text": found.content, "pages": None, "about": told}
    # Not the Markdown of a PDF: aligned text can come out as a table in it.
    held = [(page["page_number"], page["content"]) for page in found.pages or []]
    if ocr:
        held = [(n, text if text.strip() else _seen(path, n)) for n, text in held]
    return {"text": "", "pages": held, "about": told}


def _seen(path: str, number: int) -> str:
    """What tesseract reads on a page that is a picture.

    A page at a time: what the library reads of a whole scan, it does not divide into pages.
    """
    import kreuzberg

    options: dict[str, Any] = {
        "use_cache": False,
        "ocr": kreuzberg.OcrConfig(backend="tesseract"),
        "output_format": "plain",
    }
    picture = kreuzberg.render_pdf_page(path, number - 1, dpi=_DPI)
    config = kreuzberg.ExtractionConfig(**options)
    return str(kreuzberg.extract_bytes_sync(picture, "image/png", config).content)


def _check_zip(path: Path) -> None:
    """Refuse what unpacks to far more than it is.

    Raises:
        ValueError: It does.
    """
    if not zipfile.is_zipfile(path):
        return  # the library says what is wrong with it
    with zipfile.ZipFile(path) as held:
        unpacked = sum(one.file_size for one in held.infolist())
    if unpacked > max(_HARMLESS, _RATIO * path.stat().st_size):
        times = unpacked // max(path.stat().st_size, 1)
        msg = f"it unpacks to {unpacked / 1e6:.0f} MB, {times} times its size"
        raise ValueError(msg)
