"""A Unix socket in the store's directory, at which other processes of the user reach its holder.

Both ends name it through a descriptor of the directory: the path of a socket has room for 107
bytes, and the directory may be renamed while it is open.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import struct
import time
import weakref
from pathlib import Path

NAME = "share.sock"
STANDBY = "standby.sock"
"""Of a process that runs commands for others, see `tars_rag.standby`."""

_PAUSE_SECONDS = 0.05
_WAITING = 128  # connections that were not accepted yet
_CREDENTIALS = struct.Struct("3i")


class Listener:
    """The holder's end, which listens from the moment it has the lock until it gives it back.

    Args:
        directory: The store's.
        name: Of the socket in it.
    """

    def __init__(self, directory: Path, name: str = NAME) -> None:
        self._path = directory
        self._name = name
        self._directory = -1
        self._socket: socket.socket | None = None

    def open(self) -> bool:
        """Listen; call with the lock. Whether that can be: not every file system has sockets."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._directory = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self._directory)  # of a holder that was killed
            os.fchmod(listening.fileno(), 0o600)  # Linux gives the file these, less the umask
            listening.bind(_address(self._directory, self._name))
            listening.listen(_WAITING)
        except OSError:
            listening.close()
            self._release()
            return False
        self._socket = listening
        _listening.add(self)
        return True

    def fileno(self) -> int:
        """Of the socket, while it listens."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def closed(self) -> bool:
        """Whether it does not listen, or not any more."""
        return self._socket is None

    def accept(self) -> socket.socket | None:
        """The next connection of this user; None: the listener was closed."""
        while (listening := self._socket) is not None:
            try:
                reached, _ = listening.accept()
            except OSError:
                time.sleep(_PAUSE_SECONDS)  # there may be no descriptor left for it
                continue
            if _is_of_this_user(reached):
                return reached
        return None

    def accept_now(self) -> socket.socket | None:
        """A connection of this user that waits already; None: there is none any more."""
        if (listening := self._socket) is None:
            return None
        listening.setblocking(False)
        try:
            reached, _ = listening.accept()
        except OSError:
            return None
        return reached if _is_of_this_user(reached) else None

    def close(self) -> None:
        """Remove it; whoever still waits to be let in is told so. May be called twice."""
        listening, self._socket = self._socket, None
        if listening is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._name, dir_fd=self._directory)
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)  # closing alone would not wake `accept`
            listening.close()
            self._release()

    def _release(self) -> None:
        if self._directory >= 0:
            directory, self._directory = self._directory, -1
            os.close(directory)

    def _forget(self) -> None:
        """In a forked child: who connects to our parent must not wait for us."""
        listening, self._socket = self._socket, None
        if listening is not None:
            listening.close()
            self._release()


def connect(directory: str | Path, name: str = NAME) -> socket.socket:
    """A connection to whoever holds the store in `directory`, or listens there by another name.

    Raises:
        OSError: Nobody is there, or not for this user.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    reaching = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        reaching.connect(_address(descriptor, name))
        if user_of(reaching) != os.geteuid():
            msg = f"{name} in {directory} is another user's"
            raise PermissionError(msg)
    except BaseException:
        reaching.close()
        raise
    finally:
        os.close(descriptor)
    return reaching


def left_behind(directory: Path) -> bool:
    """Whether a holder that shared the store is there, or was killed and has left its socket."""
    return os.path.lexists(directory / NAME) and os.access(directory, os.W_OK)


def user_of(connection: socket.socket) -> int:
    """Who is at the other end, as the kernel says."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def _is_of_this_user(reached: socket.socket) -> bool:
    """Whether it may speak with us; otherwise it is closed."""
    own = user_of(reached) == os.geteuid()
    if not own:
        reached.close()
    return own


def _address(directory: int, name: str) -> str:
    return f"/proc/self/fd/{directory}/{name}"


_listening: weakref.WeakSet[Listener] = weakref.WeakSet()


def _forked() -> None:
    for listener in list(_listening):
        listener._forget()


def _leaving() -> None:
    """A program that ends without closing its store leaves no socket behind."""
    for listener in list(_listening):
        listener.close()


os.register_at_fork(after_in_child=_forked)
atexit.register(_leaving)
