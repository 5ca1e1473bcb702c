"""Several ways to run one model, as one `Runtime`: each text goes where it was measured fastest."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tars_rag.errors import DeviceError, InvalidInputError, ModelError
from tars_rag.models.assignment import Candidate, Plan, Share
from tars_rag.models.batching import run_batched
from tars_rag.models.tokenizer import Encoding
from tars_rag.runtimes.base import Feeds, FloatArray, Runtime, check_feed

logger = logging.getLogger("tars_rag")

_NAMES = ("input_ids", "attention_mask", "token_type_ids")


class PlannedRuntime:
    """A model that a plan divides over what runs it. Any number of threads may use it.

    It takes feeds of any shape, takes them apart into texts, and makes for each member the batches
    that it is fastest with. Members are opened when the first text goes to them; one that cannot
    be opened is left out of the plan, with one warning.

    Args:
        plan: Of candidates of one precision class.
        open_member: Opens what runs a candidate.
        opened: Those that are open already.
        tokens_per_batch: Padded tokens in one batch of those candidates that do not say.
        pad_id: The token that fills a row up.
    """

    input_names = _NAMES
    lengths = None
    max_rows = None

    def __init__(
        self,
        plan: Plan,
        open_member: Callable[[Candidate], Runtime],
        *,
        opened: Mapping[Candidate, Runtime] | None = None,
        tokens_per_batch: int,
        pad_id: int = 0,
    ) -> None:
        self._plan, self._open = plan, open_member
        self._members = dict(opened or {})
        self._tokens_per_batch, self._pad_id = tokens_per_batch, pad_id
        self._lock = threading.Lock()
        self._closed = False

    @property
    def device(self) -> str:
        """``npu`` while that is part of the plan and runs; else ``cpu``."""
        npu = any(member.device == "npu" for member in tuple(self._members.values()))
        return "npu" if npu else "cpu"

    @property
    def plan(self) -> Plan:
        """What is followed."""
        return self._plan

    def run(self, feeds: Sequence[Feeds], *, urgent: bool = False) -> list[FloatArray]:
        """See `Runtime`. Devices work at the same time, engines of one device in turn."""
        texts = [text for feed in feeds for text in _taken_apart(feed)]
        if not texts:
            return []
        devices: dict[str, list[Share]] = {}
        for share in self._shares([len(text) for text in texts]):
            devices.setdefault(share[0].device, []).append(share)

        def work(shares: Sequence[Share]) -> list[tuple[tuple[int, ...], FloatArray]]:
            return [(share[1], self._run(share, texts, urgent)) for share in shares]

        first, *others = devices.values()
        if others:
            with ThreadPoolExecutor(len(others), "tars-rag-device") as pool:
                waiting = [pool.submit(work, shares) for shares in others]
                done = work(first) + [part for future in waiting for part in future.result()]
        else:
            done = work(first)
        rows = np.empty((len(texts), done[0][1].shape[1]), np.float32)
        for numbers, part in done:
            rows[list(numbers)] = part
        ends = np.cumsum([len(feed["input_ids"]) for feed in feeds])
        return np.split(rows, ends[:-1])

    def close(self) -> None:
        """See `Runtime`."""
        with self._lock:
            self._closed = True
            for member in self._members.values():
                member.close()

    def _run(self, share: Share, texts: Sequence[Encoding], urgent: bool) -> FloatArray:
        candidate, numbers = share
        return run_batched(
            self._members[candidate],
            [texts[number] for number in numbers],
            tokens_per_batch=candidate.tokens_per_batch or self._tokens_per_batch,
            pad_id=self._pad_id,
            urgent=urgent,
        )

    def _shares(self, lengths: Sequence[int]) -> list[Share]:
        """The division of a call, all that have a part in it open."""
        with self._lock:
            if self._closed:
                msg = "This model is closed. Make a new one to go on."
                raise DeviceError(msg)
            while True:
                shares = self._plan.assign(lengths)
                missing = next((c for c, _ in shares if c not in self._members), None)
                if missing is None:
                    return shares
                try:
                    self._members[missing] = self._open(missing)
                except (DeviceError, ModelError) as error:
                    if len(self._plan.candidates) == 1:
                        raise
                    logger.warning("%s is left out of the placement: %s", missing, error)
                    self._plan = self._plan.without(missing)


def _taken_apart(feed: Feeds) -> list[Encoding]:
    """The texts of a feed, without what fills their rows up."""
    check_feed(feed, _NAMES)
    ids, mask, types = (feed[name] for name in _NAMES)
    lengths = mask.sum(axis=1)
    if not np.array_equal(mask, np.arange(mask.shape[1]) < lengths[:, None]) or not lengths.all():
        msg = "Every row of a feed is a text of at least one token, filled up on the right."
        raise InvalidInputError(msg)
    return [
        Encoding(ids[row, :length], types[row, :length])
        for row, length in enumerate(lengths.tolist())
    ]
