"""Files: their checksum, and writing them so that no crash leaves half of one.

What is being written has a name of its own beside the final one, ``.<name>.<digits>.partial``, and
is locked (flock) while its writer lives. So two processes never write the same one, and the next
writer of a name removes what a killed one left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PARTIAL: Final = re.compile(r"\.(?P<of>.+)\.[0-9a-f]{12}\.partial", re.DOTALL)


def sha256_of(path: Path) -> str:
    """The sha256 of a file as 64 hexadecimal digits, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def size_of(directory: Path) -> int:
    """The bytes of all files in a directory, at any depth, and of those that links lead to.

    It may be one that is being written: what is removed meanwhile counts nothing.
    """
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += Path(folder, name).stat().st_size
    return size


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


def sync_tree(directory: Path) -> None:
    """Make a directory durable with all files and directories in it; links are not followed.

    Raises:
        OSError: It cannot be.
    """
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                sync(path)
        sync(Path(folder))


def boot_id() -> str:
    """What names this start of the machine; empty: unknown."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that after any crash it is the old one or the new one, whole.

    Raises:
        OSError: It cannot be written; the old one is untouched.
    """
    with replacing(path) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file to write, which becomes `path` when the block ends.

    After any crash `path` is the old file or the new one, whole. If the block is left by an
    exception, the new file is removed and `path` is untouched.

    Yields:
        An empty file beside `path`. Write to it as you like, but do not replace it.

    Raises:
        OSError: It cannot be made, made durable or renamed.
    """
    with _beside(path, directory=False) as part:
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)


@contextlib.contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """A new directory to fill, which becomes `path` when the block ends.

    After any crash `path` is not there, or is there with all that was put into it. If the block
    is left by an exception, the new directory is removed.

    Yields:
        An empty directory beside `path`.

    Raises:
        OSError: It cannot be made, made durable or renamed; ENOTEMPTY or EEXIST where `path` has
            been made by someone else meanwhile.
    """
    with _beside(path, directory=True) as part:
        yield part
        sync_tree(part)
        part.rename(path)
        sync(path.parent)


def replace_directory(new: Path, target: Path) -> None:
    """Put a finished directory durably in the place of another, or of none.

    POSIX has no single step for it: should the process die in between, what was there is kept as
    `set_aside(new)`, from which `restore_directory` brings it back. One process at a time.

    Raises:
        OSError: It cannot be; then `target` is what it was.
    """
    sync_tree(new)
    old = set_aside(new)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        restore_directory(old, target)
        raise
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def set_aside(new: Path) -> Path:
    """Where `replace_directory` keeps what was there while it puts `new` in its place."""
    return new.with_name(f"{new.name}.old")


def restore_directory(old: Path, target: Path) -> None:
    """Bring back what a killed `replace_directory` had set aside; remove it if it is of no use."""
    if old.is_dir() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def is_partial(name: str, of: str) -> bool:
    """Whether `name` is that of a file or directory that was to become `of`."""
    match = _PARTIAL.fullmatch(name)
    return match is not None and match["of"] == of


def widen(path: Path) -> None:
    """Give a file of ours the permissions that the umask allows, so that a group can share it.

    For libraries that make their files with less.
    """
    with contextlib.suppress(OSError):  # of another owner, or not there
        path.chmod(0o666 & ~_umask())


def _umask() -> int:
    """The process's umask: asked of the system, because Python can only set it."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


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
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return f"{directory} was renamed or removed"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"the disk is full ({error.strerror})" if full else str(error.strerror)
    return None


@contextlib.contextmanager
def _beside(path: Path, *, directory: bool) -> Iterator[Path]:
    """A new, locked file or directory beside `path`; removed, if it is still there, at the end."""
    _sweep(path)
    part, descriptor = _claim(path, directory=directory)
    try:
        yield part
    finally:
        _remove(part)
        os.close(descriptor)


def _claim(path: Path, *, directory: bool) -> tuple[Path, int]:
    while True:
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
        if directory:
            part.mkdir()
            descriptor = os.open(part, os.O_RDONLY)
        else:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks: nobody sweeps there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if part.exists():
            return part, descriptor
        os.close(descriptor)  # swept between its making and its locking


def _sweep(path: Path) -> None:
    """Remove what killed writers of `path` left beside it: those whose lock nobody holds."""
    with contextlib.suppress(OSError):
        for old in [old for old in path.parent.iterdir() if is_partial(old.name, path.name)]:
            with contextlib.suppress(OSError):
                _sweep_one(old)


def _sweep_one(old: Path) -> None:
    descriptor = os.open(old, os.O_RDONLY if old.is_dir() else os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(old)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
