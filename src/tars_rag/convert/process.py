"""Child processes that never outlive the one who waits for them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any


@contextmanager
def child(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A child in a process group of its own, which is killed however the block is left."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, text=True, start_new_session=True, **options
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


def run_to_end(
    command: list[str], *, env: Mapping[str, str], cwd: Path | None = None
) -> tuple[int, str]:
    """Exit code, and standard output and error in one string."""
    with child(
        command,
        env=env,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
    ) as process:
        output = process.stdout.read() if process.stdout else ""
        return process.wait(), output


@contextmanager
def termination_raises() -> Iterator[None]:
    """Turn SIGTERM into SystemExit inside the block, so that what was begun is cleaned up.

    Only the main thread may set handlers; elsewhere this does nothing.
    """

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
