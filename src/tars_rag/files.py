"""Files: their checksum, and writing them so that no crash leaves half of one."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path


def sha256_of(path: Path) -> str:
    """The sha256 of a file as 64 hexadecimal digits, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a directory, durable (fsync).

    Raises:
        OSError: It cannot be.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that after any crash it is the old one or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync(path.parent)


def writing_problem(directory: Path, room: int) -> str | None:
    """Why a write to a directory failed, found out by reserving space there; None: unknown.

    For libraries whose own message does not carry the cause.

    Args:
        directory: Where the write failed.
        room: Bytes that it may have needed.
    """
    try:
        with tempfile.TemporaryFile(dir=directory) as stream:
            os.posix_fallocate(stream.fileno(), 0, room)
            stream.write(b"0")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"the disk is full ({error.strerror})" if full else str(error.strerror)
    return None
