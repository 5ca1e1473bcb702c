"""What a store takes: ids, passages and vectors, checked before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import InvalidInputError, shown
from tars_rag.retrieval.indexes.codec import check_id, check_passage
from tars_rag.retrieval.passage import Passage

_SHOWN = 5
_PIECE = 256


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


def matrix(rows: Sequence[Any] | NDArray[Any], names: Sequence[str]) -> NDArray[np.float32]:
    """Vectors that a caller gave, as rows [n, dim]; whether they can be compared is not looked at.

    Raises:
        InvalidInputError: One is missing, no list of numbers, or of another length than the first.
    """
    if len(rows) < len(names):
        msg = f"There is no vector for {names[len(rows)]}. Give one for each passage."
        raise InvalidInputError(msg)
    made: list[NDArray[np.float32]] = []
    for row, name in zip(rows, names, strict=True):
        try:
            with np.errstate(over="ignore"):  # is infinite then, and is refused for that
                vector = np.asarray(row, np.float32).ravel()
        except (TypeError, ValueError, OverflowError) as error:
            msg = f"The vector of {name} is no list of numbers, but {shown(row)}."
            raise InvalidInputError(msg) from error
        if made and len(vector) != len(made[0]):
            msg = (
                f"The vector of {name} has {len(vector)} numbers, that of {names[0]} has "
                f"{len(made[0])}: give vectors of one model."
            )
            raise InvalidInputError(msg)
        made.append(vector)
    return np.stack(made)


def check_given(
    passages: Sequence[Passage],
    vectors: Sequence[Any] | NDArray[Any],
    dimension: int | None,
    advice: str,
) -> None:
    """All vectors of all passages can be stored; looked at in pieces, so that memory stays small.

    Args:
        passages: Checked.
        vectors: One for each.
        dimension: Of the store; None: that of the first.
        advice: See `check_vectors`.

    Raises:
        InvalidInputError: Which passage's cannot, and why; or there are more or fewer than those.
    """
    if len(vectors) > len(passages):
        msg = f"There are more vectors than passages ({len(passages)}). Give one for each."
        raise InvalidInputError(msg)
    if len(vectors) < len(passages):
        name = f"passage {passages[len(vectors)].id!r}"
        msg = f"There is no vector for {name}. Give one for each passage."
        raise InvalidInputError(msg)
    for start in range(0, len(passages), _PIECE):
        names = [f"passage {passage.id!r}" for passage in passages[start : start + _PIECE]]
        rows = matrix(vectors[start : start + _PIECE], names)
        dimension = check_vectors(rows, names, dimension, advice).shape[1]


def check_vectors(
    rows: NDArray[np.float32], names: Sequence[str], dimension: int | None, advice: str = ""
) -> NDArray[np.float32]:
    """The rows [n, dim], if each can be compared by cosine.

    Args:
        rows: Vectors of what `names` name, in that order.
        names: For the message.
        dimension: Their length; None: any.
        advice: What to do if they cannot.

    Raises:
        InvalidInputError: Another shape, or a row that is all zeros or not finite.
    """
    wanted = [len(names), dimension or "dim"]
    fits = rows.ndim == 2 and len(rows) == len(names) and rows.shape[1] > 0
    if not fits or (dimension is not None and rows.shape[1] != dimension):
        shown = str(wanted).replace("'", "")
        msg = f"Vectors of shape {shown} are needed, got {list(rows.shape)}. {advice}"
        raise InvalidInputError(msg.rstrip())
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(rows, axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    if not usable.all():
        name = names[int(np.argmin(usable))]
        msg = f"The vector of {name} is all zeros or not finite: it cannot be compared. {advice}"
        raise InvalidInputError(msg.rstrip())
    return rows
