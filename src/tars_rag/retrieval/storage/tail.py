"""What is durable in the log, but not yet in the indexes: a few hundred passages at most."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tars_rag.retrieval.storage.change import Change, Entry

Held = Mapping[str, "Entry | None"]
"""By id, oldest first: what is stored now, or None where the passage was deleted."""


class Tail:
    """One state of it. Never changes: a write makes another one.

    Args:
        held: What the indexes do not have yet.
        size: Bytes, about.

    Attributes:
        held: As given.
        size: As given.
    """

    def __init__(self, held: Held, size: int = 0) -> None:
        self.held = held
        self.size = size

    def __len__(self) -> int:
        return len(self.held)

    def after(self, changes: Iterable[Change]) -> Tail:
        """The state once these were written, too."""
        held, size = dict(self.held), self.size
        for change in changes:
            for entry in change.entries:
                held.pop(entry.id, None)
                held[entry.id] = entry
                size += entry.size
            for passage_id in change.deleted:
                held.pop(passage_id, None)
                held[passage_id] = None
                size += len(passage_id)
        return Tail(held, size)

    def without(self, flushed: Held) -> Tail:
        """The state once the indexes have these, if they are still what is held."""
        held = {
            key: entry
            for key, entry in self.held.items()
            if key not in flushed or entry is not flushed[key]
        }
        return Tail(held, sum(len(key) if e is None else e.size for key, e in held.items()))

    def first(self, count: int) -> Held:
        """The oldest of it."""
        return dict(list(self.held.items())[:count])

    @cached_property
    def stored(self) -> dict[str, Entry]:
        """What is stored, by id."""
        return {key: entry for key, entry in self.held.items() if entry is not None}

    @cached_property
    def matrix(self) -> NDArray[np.float32]:
        """The vectors [n, dim] of `stored`."""
        return np.stack([entry.vector for entry in self.stored.values()])


class TailWords:
    """The terms of what a tail stores, as BM25 counts them beside the index.

    Args:
        tail: The tail.
        replaces: What of the index it replaces or deletes.
        terms_of: The terms of a text.

    Attributes:
        documents: How many passages are stored.
        replaces: As given.
        terms: Theirs, by id.
        tokens: How many terms they have, together.
    """

    def __init__(
        self, tail: Tail, replaces: Collection[str], terms_of: Callable[[str], list[str]]
    ) -> None:
        self.replaces = replaces
        self.documents = len(tail.stored)
        self.terms = {key: entry.terms(terms_of) for key, entry in tail.stored.items()}
        self.tokens = sum(terms.length for terms in self.terms.values())
        self._held: dict[str, int] = {}

    def held(self, term: str) -> int:
        """How many of the passages hold a term."""
        if term not in self._held:
            self._held[term] = sum(term in terms.counts for terms in self.terms.values())
        return self._held[term]
