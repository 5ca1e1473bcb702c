"""When files that are indexed have changed: told after each burst of events."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tars_rag import advice
from tars_rag.errors import ConfigError

_QUIET: Final = 1000  # milliseconds without an event before files are looked at: a burst is one run
_LONGEST: Final = 30_000  # milliseconds that events may follow each other all the same
_PULSE: Final = 2000  # milliseconds after which it is seen that a path came or went
_LOOK_AGAIN: Final = 150  # pulses without an event: events may be lost


def check_watching() -> None:
    """Find out whether watching is possible.

    Raises:
        ConfigError: The library for it is not installed.
    """
    try:
        import watchfiles  # noqa: F401
    except ImportError as error:
        msg = f"--watch needs an extra: {advice.install('watch')}"
        raise ConfigError(msg) from error


def changes(paths: Sequence[Path], stop: threading.Event) -> Iterator[None]:
    """Yield whenever a run over the files is due, until `stop` is set.

    That is: at once, when watching has begun, after each burst of changes below `paths`, when a
    path came back that was gone (a drive), and every five minutes. What changed is not told: a run
    finds it, whatever events were lost.

    Args:
        paths: Files and directories, which need not exist yet.
        stop: Set it from another thread.
    """
    yield
    while not stop.is_set():
        there = _watchable(paths)
        if not there:
            stop.wait(_PULSE / 1000)
            continue
        try:
            yield from _while_there(paths, there, stop)
        except (OSError, RuntimeError):  # it vanished while it was being watched
            stop.wait(_PULSE / 1000)


def _while_there(paths: Sequence[Path], there: list[Path], stop: threading.Event) -> Iterator[None]:
    import watchfiles

    quiet_pulses = _LOOK_AGAIN - 1  # the first pulse looks for what changed before watching began
    for events in watchfiles.watch(
        *there,
        debounce=_LONGEST,
        step=_QUIET,
        rust_timeout=_PULSE,
        yield_on_timeout=True,
        stop_event=stop,
        watch_filter=None,
        ignore_permission_denied=True,
    ):
        quiet_pulses = 0 if events else quiet_pulses + 1
        if events or quiet_pulses >= _LOOK_AGAIN:
            quiet_pulses = 0
            yield
        if _watchable(paths) != there:
            return


def _watchable(paths: Sequence[Path]) -> list[Path]:
    """Directories to watch: those that exist, and of a file its own, as editors replace files."""
    found: dict[Path, None] = {}
    for path in paths:
        if _device(path) is not None:
            top = path.expanduser().resolve()
            found[top if top.is_dir() else top.parent] = None
    return list(found)


class Mounts:
    """Remembers on which devices paths lie: what is seen below another one is not what was."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._devices: dict[Path, int] = {}
        self.are_as_before()

    def are_as_before(self) -> bool:
        """Whether every path is there, on the device where it first was."""
        same = True
        for path in self._paths:
            device = _device(path)
            if device is None or self._devices.setdefault(path, device) != device:
                same = False
        return same


def _device(path: Path) -> int | None:
    """On which device a path lies; None if it is not there."""
    try:
        return path.expanduser().stat().st_dev
    except (OSError, RuntimeError):
        return None
