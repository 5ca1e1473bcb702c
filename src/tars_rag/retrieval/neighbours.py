"""What stands before and after a passage in its source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from tars_rag.errors import InvalidInputError, shown
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.store import HybridStore


def require_window(window: object) -> None:
    """Refuse a number of neighbours that is none.

    Raises:
        InvalidInputError: It is not a whole number of at least 0.
    """
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        msg = f"window must be a whole number of at least 0, got {shown(window)}."
        raise InvalidInputError(msg)


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
    require_window(window)
    around = {key: _around(key, window) for key in ids}
    wanted = dict.fromkeys(near for row in around.values() for near in row)
    held = {passage.id: passage for passage in store.get(ids=wanted)}
    return {
        key: [held[near] for near in row if near in held]
        for key, row in around.items()
        if key in held
    }


def windows(
    store: HybridStore,
    passages: Sequence[Passage],
    window: int | None,
    own: Callable[[Passage], Passage] = lambda passage: passage,
) -> dict[str, str]:
    """By id the text around passages: theirs and their neighbours', said once where they overlap.

    Args:
        store: Where they are; one that is gone meanwhile stands alone.
        passages: Which.
        window: How many neighbours on each side; 0 or None: nothing is returned.
        own: A passage with the text that is to be joined, and where that stands (`start`, `end`).

    Raises:
        InvalidInputError: `window` is not a whole number of at least 0.
    """
    if window is not None:
        require_window(window)
    if not window:
        return {}
    around = with_neighbours(store, [passage.id for passage in passages], window)
    return {
        passage.id: _as_one([own(near) for near in around.get(passage.id, [passage])])
        for passage in passages
    }


def _as_one(passages: Sequence[Passage]) -> str:
    whole = passages[0].text
    for before, passage in pairwise(passages):
        start, end = passage.metadata.get("start"), before.metadata.get("end")
        shared = end - start if isinstance(start, int) and isinstance(end, int) else 0
        again = passage.text[:shared] if shared > 0 else ""
        # A cut table repeats its header, so places do not always say what a text begins with.
        if again and whole.endswith(again):
            whole += passage.text[shared:]
        else:
            whole += f"\n\n{passage.text}"
    return whole


def _around(key: str, window: int) -> Sequence[str]:
    stem, mark, number = key.rpartition("#")
    if not mark or not (number.isascii() and number.isdecimal()) or len(number) > 9:
        return [key]
    middle = int(number)
    if str(middle) != number:
        return [key]
    return [f"{stem}#{n}" for n in range(max(0, middle - window), middle + window + 1)]
