"""The ``.env`` file of the working directory, which may be another program's."""

from __future__ import annotations

import codecs
import io
import os
import select
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Final

from tars_rag.errors import ConfigError

ENV_FILE: Final = Path(".env")
_MOST_BYTES: Final = 1 << 20
_PIPE_SECONDS: Final = 2
# The longer ones first: the mark of UTF-16 begins that of UTF-32.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_env_file(names: Collection[str], path: Path = ENV_FILE) -> dict[str, str]:
    """What a ``.env`` file says of some variables.

    UTF-8, and with a byte order mark UTF-16 and UTF-32, are read. In a file of another encoding
    the variables that are plain ASCII are read all the same: whose the others are is not our
    business, as long as they are not among `names`.

    Args:
        names: Variables, in lower case; the file's are compared without regard to case.
        path: The file. One that is not there, or is no file (a virtual environment may have this
            name), says nothing.

    Returns:
        Those of `names` that the file has a value for.

    Raises:
        ConfigError: The file cannot be read or is no text, or one of `names` is not UTF-8.
    """
    from dotenv import dotenv_values

    data = _read(path)
    if data is None:
        return {}
    found = {}
    for name, value in dotenv_values(stream=io.StringIO(_decode(path, data))).items():
        if name.lower() in names and value is not None:
            _require_utf8(path, name, value)
            found[name.lower()] = value
    return found


def _read(path: Path) -> bytes | None:
    try:
        if path.is_fifo():
            data = _read_pipe(path)
        elif path.is_file():
            with path.open("rb") as stream:
                data = stream.read(_MOST_BYTES + 1)
        else:
            return None
    except OSError as error:
        msg = (
            f"{path.absolute()} cannot be read ({error.strerror}), and tars-rag takes its settings "
            f"from it. Run: chmod u+r {_quoted(path)}, or start in another directory."
        )
        raise ConfigError(msg) from error
    if len(data) > _MOST_BYTES:
        msg = (
            f"{path.absolute()} has more than {_MOST_BYTES:,} bytes, so it is no file of settings. "
            "Start in another directory, or rename it."
        )
        raise ConfigError(msg)
    return data


def _read_pipe(path: Path) -> bytes:
    """A password manager may give a ``.env`` as a named pipe; nobody may be writing to it, too."""
    data = bytearray()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        while len(data) <= _MOST_BYTES:
            if not waiting.poll(1000 * _PIPE_SECONDS):
                msg = (
                    f"{path.absolute()} is a named pipe that nobody has written to for "
                    f"{_PIPE_SECONDS} s. Start what writes to it, or remove it: rm {_quoted(path)}"
                )
                raise ConfigError(msg)
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                break
            data += piece
    finally:
        os.close(descriptor)
    return bytes(data)


def _decode(path: Path, data: bytes) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    # What is not UTF-8 is kept as surrogates, by which `_require_utf8` knows it.
    errors = "strict" if encoding in ("utf-16", "utf-32") else "surrogateescape"
    try:
        text = data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        msg = (
            f"{path.absolute()} begins like {encoding.upper()} and is not ({error.reason}). "
            "Save it as UTF-8, or start in another directory."
        )
        raise ConfigError(msg) from error
    if "\0" in text:
        msg = (
            f"{path.absolute()} is no text in UTF-8: it has zero bytes. If it is UTF-16, convert "
            f"it: {_convert(path, 'UTF-16LE')}. If it is not a file of settings, start in another "
            "directory."
        )
        raise ConfigError(msg)
    return text


def _require_utf8(path: Path, name: str, value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = value.encode("utf-8", "surrogateescape")
        msg = (
            f"{path.absolute()} sets {name}={shown!r}, which is not UTF-8. If it is Latin-1, "
            f"convert the file: {_convert(path, 'LATIN1')}"
        )
        raise ConfigError(msg) from error


def _convert(path: Path, encoding: str) -> str:
    file = _quoted(path)
    return f"iconv -f {encoding} -t UTF-8 {file} > {file}.utf8 && mv {file}.utf8 {file}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path.absolute()))
