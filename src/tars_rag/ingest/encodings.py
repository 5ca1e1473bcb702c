"""Bytes as text: UTF-8, what carries a mark, and else what it looks like."""

from __future__ import annotations

import codecs
import contextlib
import re
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
_DECLARATION = re.compile(
    rb"""<meta\s[^>]{0,300}?charset\s*=\s*["']?\s*([\w.:-]+)"""
    rb"""|<\?xml\s[^>]{0,100}?encoding\s*=\s*["']([\w.:-]+)""",
    re.IGNORECASE | re.ASCII,
)
# What pages call an encoding, and what they mean (the standard of the WHATWG).
_AS_BROWSERS = {
    **dict.fromkeys(
        ("iso-8859-1", "iso8859-1", "latin1", "latin-1", "us-ascii", "ascii"), "cp1252"
    ),
    **dict.fromkeys(("gb2312", "gbk", "x-gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis"), "cp932"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "korean"), "cp949"),
    **{"iso-8859-9": "cp1254", "tis-620": "cp874", "big5": "big5hkscs"},
}
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


def decode_page(data: bytes) -> str:
    """The text of an HTML page: UTF-8 if it is that, else as it declares, or as its bytes tell.

    Some bytes of a page may be wrong, as they may in a browser: two in a hundred, at most.

    Raises:
        ValueError: More of them are.
    """
    marked = next((name for mark, name in MARKS if data.startswith(mark)), None)
    if marked is None and b"\0" in data and (wide := _unmarked_utf16(data)) is not None:
        return wide
    declared = marked or _declared(data)
    in_turn = [declared, "utf-8"] if marked or data.isascii() else ["utf-8", declared]
    for name in filter(None, in_turn):
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode(name)
    found = None if declared else _told_by_its_bytes(data)
    if found is not None:
        return found
    text = data.decode(declared or "utf-8", "replace")
    if text.count("\ufffd") > _STRANGE * len(text):
        msg = f"its characters are not those of {declared or 'UTF-8'}, and it declares no other"
        raise ValueError(msg)
    return text


def _declared(data: bytes) -> str | None:
    """The encoding that a page or XML file says it has, as browsers understand it."""
    found = _DECLARATION.search(data[:4096])
    if found is None:
        return None
    name = (found[1] or found[2]).decode("ascii").lower()
    name = _AS_BROWSERS.get(name, name)
    try:
        name = codecs.lookup(name).name
        b"a".decode(name)  # not every codec is an encoding of text
    except (LookupError, UnicodeDecodeError):  # in UTF-16 this could not have been read
        return None
    return name


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
