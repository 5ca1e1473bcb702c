"""A directory that appears under its name when it is finished, or not at all."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tars_rag.errors import ConversionError
from tars_rag.files import publishing


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A directory beside `out` that becomes `out` when the block ends, and is gone if it fails.

    Raises:
        ConversionError: `out` cannot be written, or was made by someone else meanwhile.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with publishing(out) as staging:
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
