"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from tars_rag.errors import DeviceError, ModelError
from tars_rag.runtimes.base import Feeds, FloatArray, check_feed
from tars_rag.runtimes.cores import allowed_cores, big_cores, require_threads
from tars_rag.runtimes.streams import Streams, worth_it

_SLOW: Final = ("SkipLayerNormFusion",)
"""Fusions that are left out. ONNX Runtime 1.32 computes a sum and a layer norm in two operators in
less than half of the time of its fused one, 1.18 and 1.22 in the same time."""

_SPIN_MICROSECONDS: Final = 200
"""How long a thread that has nothing to do keeps its core. By itself it is some 55 milliseconds
after every run, in which a search or the next model has a core less; a run has no longer gaps."""


class OnnxRuntime:
    """One ONNX graph on the CPU. Any number of threads may run it at once.

    Args:
        model: A file, or the bytes of a model.
        threads: Threads per run. None: one for each core, of the big ones alone on a big.LITTLE
            processor, where the extra threads are also kept on those cores.
        as_others: Opened as ONNX Runtime does by itself: answers are to the bit those that other
            programs get from the same file. It is slower, and its threads keep their cores longer.
        sysfs: Where the kernel describes the processor.

    Raises:
        ModelError: The graph cannot be loaded.
        InvalidInputError: `threads` is less than 1.
    """

    device = "cpu"
    lengths = None
    max_rows = None

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int | None = None,
        as_others: bool = False,
        sysfs: Path = Path("/sys"),
    ) -> None:
        require_threads(threads)
        allowed = allowed_cores()
        cores = big_cores(sysfs, allowed)
        self.threads = threads or len(cores)
        kept = cores if len(cores) < len(allowed) and self.threads <= len(cores) else None
        opened = partial(_session, model, as_others=as_others)
        self._session: Any = opened(self.threads, kept)
        self._streams = Streams(
            self.threads if worth_it(model) else 1,
            lambda: partial(self._run, opened(1, None)),
            kept,
        )
        self._input_names = tuple(i.name for i in self._session.get_inputs())
        self._output = self._session.get_outputs()[0].name

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names a feed must have."""
        return self._input_names

    def run(self, feeds: Sequence[Feeds], *, urgent: bool = False) -> list[FloatArray]:
        """See `tars_rag.runtimes.base.Runtime.run`.

        `urgent` changes nothing here: runs of several threads share the processor, and none
        waits for another.
        """
        session = self._session
        if session is None:
            msg = "This model is closed. Make a new one to go on."
            raise DeviceError(msg)
        many = self._streams.split(feeds)
        return self._streams.run(feeds[:many]) + [self._run(session, f) for f in feeds[many:]]

    def close(self) -> None:
        """Release the sessions once the runs under way are through."""
        self._session = None
        self._streams.close()

    def _run(self, session: Any, feed: Feeds) -> FloatArray:
        check_feed(feed, self._input_names)
        try:
            rows = session.run([self._output], dict(feed))[0]
        except Exception as error:  # as above
            msg = f"ONNX Runtime could not run the graph ({error}). Verify the model files."
            raise DeviceError(msg) from error
        if not np.isfinite(rows).all():
            msg = "ONNX Runtime gave numbers that are not finite. Verify the model files."
            raise DeviceError(msg)
        return np.asarray(rows, np.float32)


def _session(
    model: Path | bytes, threads: int, cores: Sequence[int] | None, *, as_others: bool
) -> Any:
    """A session of the library whose runs have so many threads, all but the first on `cores`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings about fusions are of no use to a user
    options.intra_op_num_threads = threads
    if threads > 1 and not as_others:
        options.add_session_config_entry(
            "session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS)
        )
    if cores is not None and threads > 1:
        options.add_session_config_entry(
            "session.intra_op_thread_affinities", affinities(cores, threads)
        )
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(
            source,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=[] if as_others else [*_SLOW],
        )
    except Exception as error:  # the library's own exceptions have no common public base
        name = "The graph" if isinstance(model, bytes) else str(model)
        msg = f"{name} cannot be loaded by ONNX Runtime ({error}). Fetch the model again."
        raise ModelError(msg) from error


def affinities(cores: Sequence[int], threads: int) -> str:
    """ONNX Runtime's affinity string: every extra thread may use every one of `cores`.

    There is one group fewer than threads, because the calling thread is one of them; the
    processors count from 1.
    """
    group = ",".join(str(core + 1) for core in cores)
    return ";".join([group] * (threads - 1))
