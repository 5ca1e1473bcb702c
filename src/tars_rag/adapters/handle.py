"""Open objects (models, stores) shared by all owners that ask for the same one."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

T = TypeVar("T")


class _Slot:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.engine: Any = None


class Handle:
    """Keeps one engine open for its owner; owners that ask for the same one share it.

    The engine is opened on first use and let go when its last owner is gone. A handle carries
    no configuration, so copies and pickles of its owner find the engine again by theirs.
    """

    _slots: ClassVar[weakref.WeakValueDictionary[object, _Slot]] = weakref.WeakValueDictionary()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._slot: _Slot | None = None

    def get(self, key: object, build: Callable[[], T]) -> T:
        """The engine of this key, opened with `build` if no owner has it open."""
        with self._lock:
            self._slot = slot = self._slots.setdefault(key, _Slot())
        with slot.lock:
            if slot.engine is None:
                slot.engine = build()
            return cast("T", slot.engine)

    def close(self) -> None:
        """Close the engine for all its owners; the next use opens it again."""
        if self._slot is None:
            return
        with self._slot.lock:
            engine, self._slot.engine = self._slot.engine, None
        if engine is not None:
            engine.close()

    def __reduce__(self) -> tuple[type[Handle], tuple[()]]:
        return Handle, ()

    def __eq__(self, other: object) -> bool:  # owners are equal when their settings are
        return isinstance(other, Handle)

    __hash__ = None  # type: ignore[assignment]
