"""Open objects (models, stores) shared by all owners that ask for the same one."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar, cast

T = TypeVar("T")


class _Slot:
    """One open object, who works with it, and what must outlive it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.opened: Any = None
        self.outlives: object = None  # behind `opened`: attributes go in this order
        self.workers: Counter[int] = Counter()  # thread -> calls that it has going on
        self.closing = 0

    def open(self, build: Callable[[], Any], outlives: object) -> Any:
        """The object, opened if it is not. Those who wait to close it go first."""
        if threading.get_ident() not in self.workers:  # else the closing one waits for us
            self.changed.wait_for(lambda: not self.closing)
        if self.opened is None:
            self.opened, self.outlives = build(), outlives
        return self.opened

    def others_work(self) -> bool:
        """Whether another thread has a call going on."""
        return self.workers.total() > self.workers[threading.get_ident()]


class Handle:
    """Keeps one object open for its owner; owners that ask for the same one share it.

    It is opened on first use and let go when its last owner is gone. A handle carries no
    configuration, so copies and pickles of its owner find the object again by theirs.
    """

    _slots: ClassVar[weakref.WeakValueDictionary[object, _Slot]] = weakref.WeakValueDictionary()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._slot: _Slot | None = None

    def get(self, key: object, build: Callable[[], T], outlives: object = None) -> T:
        """The open object of this key.

        Args:
            key: Equal keys share one object.
            build: Opens it, if no owner has it open.
            outlives: Kept until the object is gone (the temporary directory it works in).
        """
        slot = self._find(key)
        with slot.changed:
            return cast("T", slot.open(build, outlives))

    def opened(self, key: object) -> object | None:
        """The object of this key if it is open; nothing is opened or waited for."""
        slot = self._find(key)
        return None if slot.closing else slot.opened

    @contextlib.contextmanager
    def using(self, key: object, build: Callable[[], T], outlives: object = None) -> Iterator[T]:
        """As `get`, and `close` in another thread waits until the block is left."""
        slot, thread = self._find(key), threading.get_ident()
        with slot.changed:
            opened = cast("T", slot.open(build, outlives))
            slot.workers[thread] += 1
        try:
            yield opened
        finally:
            with slot.changed:
                slot.workers[thread] -= 1
                slot.workers += Counter()  # drops threads that have no call left
                slot.changed.notify_all()

    def close(self) -> None:
        """Close the object for all its owners; the next use opens it again.

        Calls that are going on are waited for, and calls that begin meanwhile wait until it is
        closed, so that opening it again never meets one that is still open.
        """
        slot = self._slot
        if slot is None:
            return
        with slot.changed:
            slot.closing += 1
            try:
                slot.changed.wait_for(lambda: not slot.others_work())
                opened, slot.opened = slot.opened, None
                if opened is not None:
                    opened.close()
            finally:
                slot.closing -= 1
                slot.changed.notify_all()

    def _find(self, key: object) -> _Slot:
        with self._lock:
            self._slot = slot = self._slots.setdefault(key, _Slot())
        return slot

    def __reduce__(self) -> tuple[type[Handle], tuple[()]]:
        return Handle, ()

    def __eq__(self, other: object) -> bool:  # owners are equal when their settings are
        return isinstance(other, Handle)

    __hash__ = None  # type: ignore[assignment]
