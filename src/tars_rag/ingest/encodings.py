"""Bytes as text: UTF-8, what carries a mark, and else what it looks like."""

from __future__ import annotations

import codecs
import unicodedata
from pathlib import Path

from tars_rag import advice
from tars_rag.errors import InvalidInputError

# UTF-32 before UTF-16: the first two bytes of its little-endian mark are UTF-16's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE = 1 << 18  # bytes that an encoding is told by
_STRANGE = 0.02  # the share of characters that no text has


def decode(data: bytes, path: Path) -> str:
    """The text of a file.

    Args:
        data: All of it.
        path: For the message.

    Raises:
        InvalidInputError: It is binary, or in an encoding that cannot be told.
    """
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        text = _unmarked_utf16(data)
        if text is None:
            msg = f"{path} is a binary file, not text. Convert it to text or Markdown first."
            raise InvalidInputError(msg)
        return text
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        found = _told_by_its_bytes(data) if encoding == "utf-8" else None
        if found is not None:
            return found
        msg = (
            f"{path} is not {encoding.removesuffix('-sig').upper()} text (byte {error.start}: "
            f"0x{data[error.start]:02x}). To have other encodings read: "
            f"{advice.install('documents')}  Or convert it, e.g. with iconv -f LATIN1 -t UTF-8."
        )
        raise InvalidInputError(msg) from error


def _unmarked_utf16(data: bytes) -> str | None:
    if len(data) % 2:
        return None
    for encoding in ("utf-16-le", "utf-16-be"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if _reads(text):
            return text
    return None


def _reads(text: str) -> bool:
    """Whether these are characters that texts are made of, ASCII among them."""
    sample = text[:10_000]
    strange = sum(
        unicodedata.category(c) in ("Cc", "Cn", "Co") and c not in "\n\r\t\f" for c in sample
    )
    common = sum(c in " \n\r\t\u3000\u3002" for c in sample)
    return strange <= _STRANGE * len(sample) and common > 0


def _is_latin(text: str) -> bool:
    """Whether its letters are Latin ones."""
    letters = [c for c in text[:10_000] if c.isalpha()]
    return all(c < "\u0250" for c in letters)


def _told_by_its_bytes(data: bytes) -> str | None:
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return None
    found = list(from_bytes(data[:_SAMPLE]))
    if not found:
        return None
    best, names = found[0], [found[0].encoding]
    western = next((one.coherence for one in found if one.encoding == "cp1252"), 0.0)
    if _is_latin(str(best)):
        # Western text is as plausible in its neighbours' code pages, unless words of theirs speak.
        names.insert(0 if best.coherence <= western + 0.1 else 1, "cp1252")
    for name in names:
        try:
            text = data.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
        if _reads(text) or len(text) < 40:
            return text
    return None
