"""A write, tried again where another writer was faster."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from tars_rag.errors import StoreError, TarsRagError
from tars_rag.retrieval.lance import library
from tars_rag.retrieval.lance.table import PASSAGES

_A = TypeVar("_A")

_TRIES: Final = 30
_FIRST_WAIT: Final = 0.02  # seconds between two of them, doubled each time
_LONGEST_WAIT: Final = 1.0


def again(connection: Any, address: str, write: Callable[[Any], _A], name: str = PASSAGES) -> _A:
    """Write to the newest version of the table, until nobody comes between.

    Args:
        connection: LanceDB's.
        address: Of the store.
        write: Is given the table; what it does, it does as a whole or not at all.
        name: Of the table.

    Raises:
        StoreError: Each time another one was faster.
    """
    wait = _FIRST_WAIT
    for left in reversed(range(_TRIES)):
        try:
            return write(connection.open_table(name))
        except TarsRagError:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            if not library.is_conflict(error):
                raise
            if not left:
                msg = (
                    f"The store {address} is written by so many at once that {_TRIES} tries failed "
                    f"({library.short(error)}). Nothing of this batch is in it. Repeat the call; "
                    "larger batches from fewer writers come through more easily."
                )
                raise StoreError(msg) from error
        time.sleep(random.uniform(0.5, 1) * wait)
        wait = min(2 * wait, _LONGEST_WAIT)
    raise AssertionError
