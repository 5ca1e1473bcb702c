"""The holder's side: threads that answer the other processes, each as a call of ours would be."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError, StoreError
from tars_rag.retrieval.sharing.access import Local
from tars_rag.retrieval.sharing.operations import OPERATIONS
from tars_rag.retrieval.sharing.wire import HELLO, PROTOCOL, VERSION, LineError, Wire, error_row
from tars_rag.retrieval.storage.listener import Listener

_MOST_GUESTS = 512
_SEND_SECONDS = 60.0
_LEAVE_SECONDS = 2.0
Rows: TypeAlias = NDArray[np.float32] | None
Lent: TypeAlias = dict[str, Callable[[Mapping[str, Any]], Iterator[tuple[Any, None]]]]
"""What else guests may ask, by the name of the operation: from the message to its answer."""

_log = logging.getLogger(__name__)


class _Guest:
    """A connection, and the thread that answers it.

    Attributes:
        busy: It was asked, and has not answered yet.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.wire = Wire(connection, self._waiting)
        self.busy = False
        self.thread: threading.Thread | None = None

    def _waiting(self, seconds: float) -> None:
        if self.busy and seconds > _SEND_SECONDS:
            msg = "the guest does not read its answer"
            raise LineError(msg)


class Host:
    """Answers the guests of a store, from now on until `leave`.

    Its threads wait in the kernel, do not keep the program alive, and end with the listener.

    Args:
        local: The store.
        listener: Open.
        lent: Looked into at each question.
    """

    def __init__(self, local: Local, listener: Listener, lent: Lent) -> None:
        self._local = local
        self._lent = lent
        self._listener = listener
        self._leaving = False
        self._guests: set[_Guest] = set()
        self._changed = threading.Condition()
        threading.Thread(target=self._welcome, name="tars-share", daemon=True).start()

    @property
    def is_this_thread(self) -> bool:
        """Whether a thread of it asks."""
        thread = threading.current_thread()
        return any(guest.thread is thread for guest in list(self._guests))

    def leave(self) -> None:
        """Answer nothing new; what is being answered is, if that takes no longer than a moment.

        Guests whose answer does not come ask the next holder.
        """
        with self._changed:
            self._leaving = True
            for guest in self._guests:
                guest.wire.hang_up(reading=True)
            until = time.monotonic() + _LEAVE_SECONDS
            while any(guest.busy for guest in self._guests) and time.monotonic() < until:
                self._changed.wait(0.1)
            for guest in self._guests:
                guest.wire.hang_up()

    @property
    def _gone(self) -> bool:
        return self._leaving or self._listener.closed

    def _welcome(self) -> None:
        while (connection := self._listener.accept()) is not None:
            guest = _Guest(connection)
            thread = threading.Thread(
                target=self._serve, args=(guest,), name="tars-share-guest", daemon=True
            )
            with self._changed:
                taken = not self._gone and len(self._guests) < _MOST_GUESTS
                if taken:
                    guest.thread = thread
                    self._guests.add(guest)
            try:
                if taken:
                    thread.start()
            except RuntimeError:  # no more threads, or the interpreter is about to end
                taken = False
            if not taken:
                self._dismiss(guest)

    def _serve(self, guest: _Guest) -> None:
        try:
            if _greet(guest.wire, self._local):
                while self._answer(guest):
                    pass
        except (LineError, InvalidInputError):
            pass  # it left, or says what we do not understand
        except Exception:
            _log.exception("a guest of the store %s was left without an answer", self._local.path)
        finally:
            self._dismiss(guest)

    def _dismiss(self, guest: _Guest) -> None:
        guest.wire.close()
        with self._changed:
            self._guests.discard(guest)
            self._changed.notify_all()

    def _answer(self, guest: _Guest) -> bool:
        """Answer one question; false: no more are answered."""
        asked, rows = guest.wire.receive()
        with self._changed:
            if self._gone:
                return False
            guest.busy = True
        try:
            return self._work(guest.wire, asked, rows)
        finally:
            with self._changed:
                guest.busy = False
                self._changed.notify_all()

    def _work(self, wire: Wire, asked: Any, rows: Rows) -> bool:
        def progress(done: int, total: int | None) -> None:
            with contextlib.suppress(LineError):  # what was begun is finished all the same
                wire.send({"progress": [done, total]})

        try:
            lent = self._lent.get(asked["op"]) if isinstance(asked, dict) else None
            parts = (
                _operation(asked)(self._local, asked, rows, progress)
                if lent is None
                else lent(asked)
            )
            last: tuple[Any, Rows] = (None, None)
            for number, part in enumerate(parts):
                if number:
                    wire.send({"part": last[0]}, last[1])
                last = part
            wire.send({"last": last[0]}, last[1])
        except LineError:
            raise
        except BaseException as error:  # a panic in native code is no Exception
            if self._gone and isinstance(error, StoreError):
                return False  # the store was closed under it: the next holder is asked
            who = f"The process that holds the store {self._local.path} (pid {os.getpid()})"
            wire.send({"error": error_row(error, who)})
        return True


def _greet(wire: Wire, local: Local) -> bool:
    """Tell a guest who we are; false: we do not speak the same."""
    said, _ = wire.receive()
    if not isinstance(said, dict) or HELLO not in said:
        return False
    speaks = said[HELLO] == PROTOCOL
    store = asdict(local.store_json) if speaks else None
    wire.send({HELLO: PROTOCOL, "version": VERSION, "pid": os.getpid(), "store": store})
    return bool(speaks)


def _operation(asked: Any) -> Callable[[Local, Mapping[str, Any], Rows, Any], Iterator[Any]]:
    try:
        return OPERATIONS[asked["op"]]
    except (TypeError, KeyError, IndexError) as error:
        msg = f"no operation: {type(error).__name__}"
        raise LineError(msg) from error
