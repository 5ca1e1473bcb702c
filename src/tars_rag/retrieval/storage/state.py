"""What names the state of every index of a store: halves of different moments are told apart.

Each index counts what is written to it: Chroma by the numbers of its log, tantivy by its opstamp.
Numbers alone do not tell two copies of a store apart that went on separately, so a *session* goes
with them: a random name, new whenever a store is opened and then written, which is put into
Chroma's collection, into the word index's directory and into ``state.json`` before the first write.
The exact index is written last; its stamp (a `Mark`) says with every commit which session and
numbers of the other two it belongs to. So nothing is written, and no fsync waited for, that was not
before, but for the beginning of a session.

``state.json`` keeps the line of sessions, which tells what is older, and where the store's files
are (device and inode): a store whose files lie elsewhere is a copy, or has parts of one, and is
compared passage by passage before it is used.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tars_rag.files import boot_id, write_atomically

NAME = "state.json"
SESSION = "session"
"""The file in the word index's directory that names its session."""
UNKNOWN = -1
_LINE = 1000  # sessions that are remembered
_PLACES = ("chroma/chroma.sqlite3", "exact", "lexical")


@dataclass(frozen=True, slots=True)
class Moment:
    """When an index was written last: the session, and its own count of writes."""

    session: str = ""
    count: int = UNKNOWN


@dataclass(frozen=True, slots=True)
class Mark:
    """Which moments of the other indexes a commit of the exact index belongs to.

    Attributes:
        collection: Of Chroma, whose vectors they are.
        chroma: Chroma's moment.
        words: The word index's.
    """

    collection: str
    chroma: Moment = field(default_factory=Moment)
    words: Moment = field(default_factory=Moment)

    @property
    def stamp(self) -> str:
        """As the exact index keeps it."""
        if not self.chroma.session:
            return self.collection
        return f"{self.collection} {self.chroma.session} {self.chroma.count} {self.words.count}"

    @classmethod
    def of(cls, stamp: str) -> Mark:
        """What a stamp says; those of earlier versions name the collection only."""
        collection, *others = stamp.split(" ")
        try:
            session, chroma, words = others
            return cls(collection, Moment(session, int(chroma)), Moment(session, int(words)))
        except ValueError:
            return cls(collection)


@dataclass(frozen=True, slots=True)
class State:
    """The contents of state.json.

    Attributes:
        line: Sessions, the last one first; of very many the last thousand, and the first.
        boot: When the places were noted; devices have other numbers after the next start.
        places: Device and inode of what lies in the store.
        mending: How indexes that did not belong together are being brought in line (see `halves`);
            empty: they are not.
    """

    line: tuple[str, ...] = ()
    boot: str = ""
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    mending: str = ""

    def begun(self, path: Path) -> State:
        """With a new session, and places as they are."""
        line = (secrets.token_hex(6), *self.line)
        if len(line) > _LINE:  # the first one tells whose copies and backups are whose
            line = (*line[: _LINE - 1], line[-1])
        return replace(self.placed(path), line=line)

    def placed(self, path: Path) -> State:
        """With places as they are."""
        return replace(self, boot=boot_id(), places=_places(path))

    def moved(self, path: Path) -> bool:
        """Whether something lies elsewhere than it did: this is a copy, or has parts of one."""
        found = _places(path)
        if self.boot == boot_id():
            return found != self.places
        inodes = {name: place[1] for name, place in found.items()}
        return inodes != {name: place[1] for name, place in self.places.items()}

    def order(self, one: Moment, other: Moment) -> int | None:
        """-1: `one` is older, 1: newer, 0: they are the same; None: that is not known."""
        if one == other:
            return 0 if one.session else None
        if one.session not in self.line or other.session not in self.line:
            return None
        first, second = (
            (-self.line.index(moment.session), moment.count) for moment in (one, other)
        )
        return -1 if first < second else 1

    def write(self, path: Path) -> State:
        """Write this, atomically and durably; itself."""
        write_atomically(path / NAME, json.dumps(asdict(self)).encode("ascii"))
        return self


def read_state(path: Path) -> State | None:
    """What state.json says; None: there is none that can be read."""
    try:
        raw: dict[str, Any] = json.loads((path / NAME).read_bytes())
        places = {str(key): (int(d), int(i)) for key, (d, i) in raw["places"].items()}
        line = tuple(map(str, raw["line"]))
        return State(line, str(raw["boot"]), places, str(raw["mending"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_session(directory: Path) -> str:
    """The session of the word index in `directory`; empty: unknown."""
    try:
        return (directory / SESSION).read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def write_session(directory: Path, session: str) -> None:
    """Name the session of the word index in `directory`, durably."""
    write_atomically(directory / SESSION, session.encode("ascii"))


def _places(path: Path) -> dict[str, tuple[int, int]]:
    places = {}
    for name in _PLACES:
        with contextlib.suppress(OSError):
            status = (path / name).stat()
            places[name] = (status.st_dev, status.st_ino)
    return places
