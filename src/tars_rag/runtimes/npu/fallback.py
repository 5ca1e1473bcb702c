"""The CPU runtime that takes over what the NPU cannot answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from tars_rag.errors import DeviceError
from tars_rag.runtimes.base import Feeds, FloatArray, Runtime

logger = logging.getLogger("tars_rag")

CPU_HINT = "Set NPU_FALLBACK_CPU=1 to go on with the CPU, or run: tars-rag doctor"


class Fallback:
    """A CPU runtime that is made when it is first needed. Any number of threads may use it.

    Args:
        make: Makes it; None: there is to be none.

    Attributes:
        feeds: How many it was given.
    """

    def __init__(self, make: Callable[[], Runtime] | None) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None
        self.feeds = 0

    @property
    def is_open(self) -> bool:
        """Whether it was needed already."""
        return self._runtime is not None

    def run(
        self, feeds: Sequence[Feeds], urgent: bool, *, what: str, reasons: str
    ) -> list[FloatArray]:
        """See `Runtime`.

        Args:
            feeds: What the NPU left.
            urgent: See `Runtime`.
            what: What happened to the NPU, for the error or the one warning.
            reasons: Why, in whole sentences.

        Raises:
            DeviceError: There is to be no fall-back.
        """
        with self._lock:
            if self._runtime is None:
                if self._make is None:
                    msg = f"{what}. {reasons} {CPU_HINT}."
                    raise DeviceError(msg)
                logger.warning("%s: the CPU takes over. %s", what, reasons)
                self._runtime = self._make()
            runtime = self._runtime
        rows = runtime.run(feeds, urgent=urgent)
        with self._lock:
            self.feeds += len(feeds)
        return rows

    def close(self) -> None:
        """Release it."""
        with self._lock:
            if self._runtime is not None:
                self._runtime.close()


def sentence(reason: str) -> str:
    """A reason with its full stop, which some have."""
    return reason.rstrip(".") + "."
