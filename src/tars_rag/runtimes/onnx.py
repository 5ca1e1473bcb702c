"""ONNX Runtime on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

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
        unpadded: Another graph of the same model, for feeds in which no token is padding.
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
        unpadded: Path | bytes | None = None,
        threads: int | None = None,
        as_others: bool = False,
        sysfs: Path = Path("/sys"),
    ) -> None:
        require_threads(threads)
        allowed = allowed_cores()
        cores = big_cores(sysfs, allowed)
        self.threads = threads or len(cores)
        kept = cores if len(cores) < len(allowed) and self.threads <= len(cores) else None
        opened = partial(_session, cores=kept, as_others=as_others)
        sessions = _Sessions(model, unpadded, self.threads, opened)
        self._sessions: _Sessions | None = sessions
        self._streams = Streams(
            self.threads if worth_it(model) else 1,
            lambda: partial(self._run, sessions, 1),
            kept,
        )
        self._input_names = tuple(i.name for i in sessions.first.get_inputs())
        self._output = sessions.first.get_outputs()[0].name

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names a feed must have."""
        return self._input_names

    def run(self, feeds: Sequence[Feeds], *, urgent: bool = False) -> list[FloatArray]:
        """See `tars_rag.runtimes.base.Runtime.run`.

        `urgent` changes nothing here: runs of several threads share the processor, and none
        waits for another.
        """
        sessions = self._sessions
        if sessions is None:
            msg = "This model is closed. Make a new one to go on."
            raise DeviceError(msg)
        many = self._streams.split(feeds)
        rows = self._streams.run(feeds[:many])
        return rows + [self._run(sessions, self.threads, feed) for feed in feeds[many:]]

    def close(self) -> None:
        """Release the sessions once the runs under way are through."""
        self._sessions = None
        self._streams.close()

    def _run(self, sessions: _Sessions, threads: int, feed: Feeds) -> FloatArray:
        check_feed(feed, self._input_names)
        session = sessions.of(feed, threads)
        try:
            rows = session.run([self._output], dict(feed))[0]
        except Exception as error:  # as above
            msg = f"ONNX Runtime could not run the graph ({error}). Verify the model files."
            raise DeviceError(msg) from error
        if not np.isfinite(rows).all():
            msg = "ONNX Runtime gave numbers that are not finite. Verify the model files."
            raise DeviceError(msg)
        return np.asarray(rows, np.float32)


class _Sessions:
    """A graph, and the one for feeds without padding, opened for so many threads.

    Args:
        model: The graph.
        unpadded: The other one, if there is one.
        threads: Those of a run that has all; sessions of other numbers are opened when needed.
        open_one: Opens a source for so many threads.

    Attributes:
        first: The session of the graph for that many threads.

    Raises:
        ModelError: The graph cannot be loaded. The other one is done without.
    """

    def __init__(
        self,
        model: Path | bytes,
        unpadded: Path | bytes | None,
        threads: int,
        open_one: Callable[[Path | bytes, int], Any],
    ) -> None:
        self._model, self._unpadded = model, unpadded
        self._open_one, self._threads = open_one, threads
        self._lock = threading.Lock()
        self.first = open_one(model, threads)
        self._opened = {(False, threads): self.first}
        if unpadded is not None:
            self._opened[True, threads] = self._open(unpadded, threads, self.first)

    def of(self, feed: Feeds, threads: int) -> Any:
        """The session that runs a feed with so many threads."""
        source, whole = self._model, False
        if self._unpadded is not None and feed["attention_mask"].all():
            source, whole = self._unpadded, True
        with self._lock:
            if (whole, threads) not in self._opened:
                instead = self._opened[whole, self._threads]
                self._opened[whole, threads] = self._open(source, threads, instead)
            return self._opened[whole, threads]

    def _open(self, source: Path | bytes, threads: int, instead: Any) -> Any:
        try:
            return self._open_one(source, threads)
        except ModelError:  # its file went away meanwhile; what is open goes on
            return instead


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


def as_it_stands(model: bytes, feed: Feeds) -> list[NDArray[Any]]:
    """The outputs of a graph of which ONNX Runtime fuses and leaves out nothing.

    Args:
        model: The graph.
        feed: What it takes; there may be more.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    wanted = [one.name for one in session.get_inputs()]
    return list(session.run(None, {name: feed[name] for name in wanted}))


def affinities(cores: Sequence[int], threads: int) -> str:
    """ONNX Runtime's affinity string: every extra thread may use every one of `cores`.

    There is one group fewer than threads, because the calling thread is one of them; the
    processors count from 1.
    """
    group = ",".join(str(core + 1) for core in cores)
    return ";".join([group] * (threads - 1))
