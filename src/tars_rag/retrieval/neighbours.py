"""What stands before and after a passage in its source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tars_rag.errors import InvalidInputError, shown
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.store import HybridStore


def with_neighbours(
    store: HybridStore, ids: Iterable[str], window: int
) -> dict[str, list[Passage]]:
    """Passages with up to `window` neighbours on each side, in the order of their source.

    Passages that were cut from one text have ids that end in ``#0``, ``#1`` and so on, as
    ``tars-rag index`` and `TarsSplitter` make them; others have no neighbours.

    Args:
        store: Where they are.
        ids: Which; unknown ones are left out.
        window: How many on each side; 0: none.

    Raises:
        InvalidInputError: `window` is not a whole number of at least 0.
    """
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        msg = f"window must be a whole number of at least 0, got {shown(window)}."
        raise InvalidInputError(msg)
    around = {key: _around(key, window) for key in ids}
    wanted = dict.fromkeys(near for row in around.values() for near in row)
    held = {passage.id: passage for passage in store.get(ids=wanted)}
    return {
        key: [held[near] for near in row if near in held]
        for key, row in around.items()
        if key in held
    }


def _around(key: str, window: int) -> Sequence[str]:
    stem, mark, number = key.rpartition("#")
    if not mark or not (number.isascii() and number.isdecimal()) or len(number) > 9:
        return [key]
    middle = int(number)
    if str(middle) != number:
        return [key]
    return [f"{stem}#{n}" for n in range(max(0, middle - window), middle + window + 1)]
