"""What a store takes: ids, passages and vectors, checked before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tars_rag.errors import InvalidInputError, shown
from tars_rag.retrieval.indexes.codec import check_id, check_passage
from tars_rag.retrieval.passage import Passage

_SHOWN = 5


def check_passages(passages: Sequence[Passage], seen: set[str]) -> None:
    """Every passage can be stored, and no id was seen before; `seen` grows by these.

    Raises:
        InvalidInputError: Which one cannot, and why.
    """
    for passage in passages:
        check_passage(passage)
    counts = Counter(passage.id for passage in passages)
    twice = [key for key, times in counts.items() if times > 1 or key in seen]
    if twice:
        shown = ", ".join(map(repr, twice[:_SHOWN])) + (", ..." if len(twice) > _SHOWN else "")
        msg = f"Ids occur more than once in one upsert: {shown}. Give each passage its own id."
        raise InvalidInputError(msg)
    seen.update(counts)


def distinct_ids(ids: Iterable[str]) -> list[str]:
    """The ids, each once, in their order.

    Raises:
        InvalidInputError: A single string, or something among them that is no id.
    """
    if isinstance(ids, str):
        msg = f"ids must be a list of ids, got the single string {ids!r}: write [{ids!r}]."
        raise InvalidInputError(msg)
    given: Any = ids
    if not isinstance(given, Iterable):
        msg = f"ids must be a list of ids, got {shown(ids)}."
        raise InvalidInputError(msg)
    return list(dict.fromkeys(check_id(key) for key in ids))


def given_vectors(rows: Iterator[ArrayLike], names: Sequence[str]) -> NDArray[np.float32]:
    """The next vectors that a caller gave, one for each of `names`, [n, dim].

    Raises:
        InvalidInputError: There are too few.
    """
    given = list(islice(rows, len(names)))
    if len(given) < len(names):
        msg = f"There is no vector for {names[len(given)]}. Give one for each passage."
        raise InvalidInputError(msg)
    return np.stack([np.asarray(row, np.float32).ravel() for row in given])


def check_vectors(
    rows: NDArray[np.float32], names: Sequence[str], dimension: int | None
) -> NDArray[np.float32]:
    """The rows [n, dim], if each can be compared by cosine.

    Args:
        rows: Vectors of what `names` name, in that order.
        names: For the message.
        dimension: Their length; None: any.

    Raises:
        InvalidInputError: Another shape, or a row that is all zeros or not finite.
    """
    wanted = [len(names), dimension or "dim"]
    fits = rows.ndim == 2 and len(rows) == len(names) and rows.shape[1] > 0
    if not fits or (dimension is not None and rows.shape[1] != dimension):
        shown = str(wanted).replace("'", "")
        msg = f"Vectors of shape {shown} are needed, got {list(rows.shape)}."
        raise InvalidInputError(msg)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(rows, axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    if not usable.all():
        name = names[int(np.argmin(usable))]
        msg = f"The vector of {name} is all zeros or not finite: it cannot be compared."
        raise InvalidInputError(msg)
    return rows
