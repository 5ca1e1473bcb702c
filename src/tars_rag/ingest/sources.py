"""The sources of a store: which there are, removed, under another name."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from tars_rag.errors import InvalidInputError
from tars_rag.ingest.digests import claim_of, content_of, from_file
from tars_rag.ingest.ledger import Ledger, batches
from tars_rag.ingest.record import Record, record_at, record_of
from tars_rag.ingest.root import Root
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage.layout import SOURCES

if TYPE_CHECKING:
    from tars_rag.retrieval.store import HybridStore

_BATCH = 256
_COPIES = 100  # of one text that are told


def sources_of(store: Path | str) -> dict[str, int]:
    """The files of a store and how many passages each has; empty where none was indexed."""
    with record_at(store) as ledger:
        return {} if ledger is None else ledger.counts()


def root_of(store: Path | str) -> Root:
    """From where the sources of a store are named."""
    with record_at(store) as ledger:
        return Root() if ledger is None else ledger.root


def copies_in(store: Path) -> list[list[str]]:
    """Files of a store with the same content, two or more each."""
    if not (store / SOURCES).exists():
        return []
    with Ledger(store, reading=True) as ledger:
        return ledger.copies()


def near_copies_in(store: Path, least: float = 0.8) -> list[tuple[str, str, float]]:
    """Pairs of files with the same texts or nearly so, and the share of them; see `Ledger`."""
    if not (store / SOURCES).exists():
        return []
    with Ledger(store, reading=True) as ledger:
        return ledger.near_copies(least) if ledger.knows_contents else []


def copies_of(store: Path | None, passages: Iterable[Passage]) -> dict[str, list[str]]:
    """Where else in a store the same texts stand, however they are spaced.

    Args:
        store: Its directory; None: look among the given passages only.
        passages: Some of its passages.

    Returns:
        Id -> ids of the other passages with its text, at most 100: of files that are indexed, and
        among the given ones.
    """
    given = {passage.id: content_of(passage.text) for passage in passages}
    found: dict[str, set[str]] = {}
    for key, content in given.items():
        found.setdefault(content, set()).add(key)
    if store is not None and (store / SOURCES).exists():
        with Ledger(store, reading=True) as ledger:
            for content, ids in found.items() if ledger.knows_contents else ():
                ids.update(ledger.with_content(content, _COPIES))
    return {
        key: [one for one in sorted(found[content]) if one != key] for key, content in given.items()
    }


def matching(sources: dict[str, int], pattern: str, root: Root | None = None) -> list[str]:
    """The sources that a path names: a file, what lies in a directory, or what a pattern fits.

    Args:
        sources: All of them.
        pattern: A path, absolute or from here; or a name as it is listed, of a file or directory
            below the root; or with ``*``, ``?``, ``[``: of the whole path or of its end
            (``*.pdf``, ``notes/*.md``). The first of these that fits.
        root: From where they are named; None: by their whole paths.

    Raises:
        InvalidInputError: None fits.
    """
    top = str(Path(pattern).expanduser().resolve())
    root = root or Root()
    places = {one: str(root.path(one)) for one in sources}
    found = [one for one, place in places.items() if _is_below(place, top)]
    if not found:
        found = [one for one in sources if _is_below(one, pattern.rstrip("/") or pattern)]
    if not found and any(sign in pattern for sign in "*?["):
        ends = (pattern, f"*/{pattern}")
        found = [one for one in sources if any(fnmatchcase(places[one], end) for end in ends)]
    if not found:
        msg = f"No source of the store is {pattern!r}. To see them: tars-rag store ls"
        raise InvalidInputError(msg)
    return found


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


def remove(store: HybridStore, pattern: str) -> tuple[int, int]:
    """Delete the passages of sources; how many sources and passages that were."""
    deleted = 0
    with record_of(store) as ledger:
        chosen = matching(ledger.counts(), pattern, ledger.root)
        for source in chosen:
            for ids in batches(ledger.ids(source), _BATCH):
                deleted += store.delete(ids=ids)
                ledger.release(ids)
            ledger.reopen(source)
    return len(chosen), deleted


def move(store: HybridStore, old: str, new: str) -> tuple[int, int]:
    """Give sources another path, without reading or embedding anything: a folder was moved.

    If interrupted, call it again: it continues where it stopped.

    Args:
        store: Where they are.
        old: A source, or a directory of sources.
        new: What takes its place.

    Returns:
        How many sources and passages have another path now.

    Raises:
        InvalidInputError: There is no such source, or one that is not moved has the new path.
    """
    before, after = (str(Path(one).expanduser().resolve()) for one in (old, new))
    moved = 0
    with record_of(store) as ledger:
        root = ledger.root
        names = {
            one: root.name(Path(after + str(root.path(one))[len(before) :]))
            for one in matching(ledger.counts(), before, root)
        }
        others = set(ledger.counts()) - names.keys()
        for name in sorted(others.intersection(names.values())):
            if ledger.version(name) is not None:  # without one, this was interrupted
                quoted = shlex.quote(name)
                msg = f"{name} is in the store already. Remove it: tars-rag store rm {quoted}"
                raise InvalidInputError(msg)
        for source, name in names.items():
            version, stamp = ledger.version(source), ledger.stamp(source)
            for ids in batches(ledger.ids(source), _BATCH):
                moved += _rename(store, ledger, list(ids), source, name)
            ledger.reopen(source)
            if version is not None:
                ledger.finish(name, version, stamp)
    return len(names), moved


def _rename(store: HybridStore, ledger: Record, ids: list[str], source: str, name: str) -> int:
    held, vectors = store.get(ids=ids), store.vectors(ids)
    renamed = [
        (one.id, from_file(_renamed(one, source, name), name)) for one in held if one.id in vectors
    ]
    ledger.claim(claim_of(new) for _, new in renamed)
    store.upsert([new for _, new in renamed], [vectors[old] for old, _ in renamed])
    gone = [old for old, new in renamed if old != new.id]
    store.delete(ids=gone)
    ledger.release([*gone, *(set(ids) - {old for old, _ in renamed})])
    return len(renamed)


def _renamed(passage: Passage, source: str, name: str) -> Passage:
    ours = passage.id.startswith((f"{source}#", f"{source}:"))
    key = name + passage.id[len(source) :] if ours else passage.id
    metadata = dict(passage.metadata)
    if metadata.get("source") == source:
        metadata["source"] = name
    return replace(passage, id=key, metadata=metadata)


def size_on_disk(store: Path) -> int:
    """Bytes of all files in a store's directory."""
    return sum(_sizes(store))


def _sizes(directory: Path) -> Iterator[int]:
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # it was there a moment ago
                yield (Path(folder) / name).stat().st_size
