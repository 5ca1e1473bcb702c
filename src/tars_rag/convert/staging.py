"""A directory that appears under its name when it is finished, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from tars_rag.errors import ConversionError


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A directory beside `out` that is gone, or renamed, when the block is left."""
    staging = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        for old in out.parent.glob(f".{escape(out.name)}.*.partial"):
            if not _alive(old.suffixes[-2][1:]):  # its process was killed outright
                shutil.rmtree(old, ignore_errors=True)
        staging.mkdir()
        yield staging
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            msg = (
                f"{out} was made by someone else while this conversion ran, so this one was not "
                "kept. Use what is there, or name another directory with --out."
            )
            raise ConversionError(msg) from error
        full = "The disk is full. " if error.errno == errno.ENOSPC else ""
        msg = (
            f"{full}{out} cannot be written: {error}. A conversion needs about 1 GB while it "
            "runs; free some space, or name a directory that can be written with --out."
        )
        raise ConversionError(msg) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
