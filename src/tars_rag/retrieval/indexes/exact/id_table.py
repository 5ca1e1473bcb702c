"""Which row an id has, in 12 bytes an id, for readers that must not see it change."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

_RECENT = 4096
_NONE = -1


class IdTable:
    """Ids to slots; never changes, `changed` makes another one.

    Ids are known by Python's 64-bit hash of a string, which is keyed anew in every process: two of
    a million ids share one with a probability of 3e-8, and nobody can make them.

    Args:
        hashes: Of the ids, ascending, int64 [n].
        slots: Theirs, uint32 [n].
        recent: What differs: {hash: slot, or -1 for none}.
    """

    def __init__(
        self,
        hashes: NDArray[np.int64],
        slots: NDArray[np.uint32],
        recent: dict[int, int] | None = None,
    ) -> None:
        self._hashes, self._slots, self._recent = hashes, slots, recent or {}

    @classmethod
    def of(cls, hashes: NDArray[np.int64], slots: NDArray[np.uint32]) -> IdTable:
        """A table of hashes in any order."""
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], slots[order])

    def find(self, hashes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slot of each hash, -1 where there is none."""
        found = np.full(len(hashes), _NONE, np.int64)
        if len(self._hashes):
            places = np.searchsorted(self._hashes, hashes)
            places[places == len(self._hashes)] = 0
            same = self._hashes[places] == hashes
            found[same] = self._slots[places[same]]
        if not self._recent:
            return found
        if len(hashes) > len(self._recent):
            # Few keys among many hashes: look for those.
            keys, slots = _arrays(self._recent)
            places = np.searchsorted(keys, hashes)
            places[places == len(keys)] = 0
            same = keys[places] == hashes
            found[same] = slots[places[same]]
            return found
        for place, key in enumerate(hashes.tolist()):
            found[place] = self._recent.get(key, found[place])
        return found

    def changed(self, removed: NDArray[np.int64], added: NDArray[np.int64], first: int) -> IdTable:
        """The table after some ids (hashes) left, and others got the slots from `first` on."""
        recent = dict(self._recent)
        recent.update(dict.fromkeys(removed.tolist(), _NONE))
        recent.update(zip(added.tolist(), range(first, first + len(added)), strict=True))
        if len(recent) <= _RECENT:
            return IdTable(self._hashes, self._slots, recent)
        keys, slots = _arrays(recent)
        kept = np.ones(len(self._hashes), bool)
        places = np.searchsorted(self._hashes, keys)
        inside = places < len(self._hashes)
        same = inside.copy()
        same[inside] = self._hashes[places[inside]] == keys[inside]
        kept[places[same]] = False
        keys, slots = keys[slots != _NONE], slots[slots != _NONE]
        hashes, old = self._hashes[kept], self._slots[kept]
        places = np.searchsorted(hashes, keys)
        return IdTable(
            np.insert(hashes, places, keys),
            np.insert(old, places, slots.astype(np.uint32)),
        )


def _arrays(recent: dict[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys, ascending, and their slots."""
    keys = np.fromiter(recent, np.int64, len(recent))
    slots = np.fromiter(recent.values(), np.int64, len(recent))
    order = np.argsort(keys)
    return keys[order], slots[order]


def hashes_of(ids: Collection[str]) -> NDArray[np.int64]:
    """Python's hashes of ids, int64 [n]."""
    return np.fromiter(map(hash, ids), np.int64, len(ids))
