"""OpenVINO on the CPU: the same graphs, in the arithmetic that the processor is fastest in.

Nothing is sent anywhere: the package's telemetry is left out when it is imported.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np

from tars_rag import advice
from tars_rag.errors import DeviceError, ModelError
from tars_rag.runtimes.base import Feeds, FloatArray, check_feed
from tars_rag.runtimes.cores import allowed_cores, big_cores, on_cores, require_threads
from tars_rag.runtimes.streams import Streams, worth_it

Arithmetic = Literal["f32", "bf16", "f16"]
"""What a graph is computed in."""

T = TypeVar("T")

_importing = threading.Lock()
_kept: Any = None

POSITIONS: Final = "positions"
"""Among the tables: how long a text may be."""


class OpenVinoRuntime:
    """One ONNX graph on the CPU. Any number of threads may run it; they take turns.

    Args:
        model: A file, or the bytes of a model.
        threads: As for ONNX Runtime: None: one for each core, of the big ones alone on a
            big.LITTLE processor, where the threads are also kept on those cores.
        arithmetic: None: the one that the processor is fastest in.
        compiled: A directory for the compiled graph, from which it opens faster the next time.
            None: it is compiled each time.
        tables: How many rows the table has that an input's numbers are looked up in, by input.
            None: asked of the graph, which takes a tenth of a second for a large one.
        sysfs: Where the kernel describes the processor.

    Attributes:
        arithmetic: What it computes in.
        threads: How many threads a run has.
        tables: As the argument.

    Raises:
        ModelError: The graph cannot be loaded.
        DeviceError: OpenVINO is not installed.
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
        arithmetic: Arithmetic | None = None,
        compiled: Path | None = None,
        tables: Mapping[str, int] | None = None,
        sysfs: Path = Path("/sys"),
    ) -> None:
        require_threads(threads)
        core = _core()
        allowed = allowed_cores()
        cores = big_cores(sysfs, allowed)
        self.threads = threads or len(cores)
        kept = cores if len(cores) < len(allowed) and self.threads <= len(cores) else None
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": self.threads,
            "ENABLE_CPU_PINNING": False,  # where others compute too, fixed places are slow ones
        }
        if arithmetic:
            options["INFERENCE_PRECISION_HINT"] = arithmetic
        if compiled:
            options["CACHE_DIR"] = str(compiled)

        def opened(**use: Any) -> _Requests:
            def compile_graph() -> _Requests:
                # By its path, where it has one: what is compiled is kept under another name else.
                source = core.read_model(model, b"") if isinstance(model, bytes) else str(model)
                requests = _Requests(core.compile_model(source, "CPU", options | use))
                # Its threads start in the first run, from the thread that is the first to run it.
                with requests.one() as request:
                    request.infer({name: np.ones((1, 2), np.int64) for name in requests.names})
                return requests

            return _loaded(model, compile_graph, kept)

        self._requests = opened(PERFORMANCE_HINT="LATENCY")
        self._input_names = self._requests.names
        self._pooled = "pooled" in self._requests.graph.output(0).names
        precision = self._requests.graph.get_property("INFERENCE_PRECISION_HINT")
        self.arithmetic = str(precision.to_string())
        if tables is None:
            source = (model, b"") if isinstance(model, bytes) else (model,)
            tables = _loaded(model, lambda: _tables(core.read_model(*source)), None)
        self.tables = dict(tables)
        self._streams = Streams(
            self.threads if worth_it(model) else 1,
            lambda: partial(self._run_in_stream, opened(NUM_STREAMS=self.threads)),
        )

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names a feed must have."""
        return self._input_names

    def run(self, feeds: Sequence[Feeds], *, urgent: bool = False) -> list[FloatArray]:
        """See `tars_rag.runtimes.base.Runtime.run`; `urgent` changes nothing here."""
        with self._requests.one() as request:
            many = self._streams.split(feeds)
            rest = [self._run(request.infer, request, feed) for feed in feeds[many:]]
            return self._streams.run(feeds[:many]) + rest

    def prepare(self) -> None:
        """Compile also what only a call of many feeds needs."""
        self._streams.prepare()

    def close(self) -> None:
        """Release the graphs once the runs under way are through."""
        self._requests.close()
        self._streams.close()

    def _run_in_stream(self, requests: _Requests, feed: Feeds) -> FloatArray:
        with requests.one() as request:

            def wait(inputs: Any) -> None:
                request.start_async(inputs)  # `infer` would compute in the thread that calls it
                request.wait()

            return self._run(wait, request, feed)

    def _run(self, infer: Callable[[Any], object], request: Any, feed: Feeds) -> FloatArray:
        check_feed(feed, self._input_names)
        self._check_tables(feed)
        try:
            infer(dict(feed))
            rows = np.array(request.get_output_tensor(0).data, np.float32)
        except Exception as error:  # as above
            msg = f"OpenVINO could not run the graph ({_short(error)}). Verify the model files."
            raise DeviceError(msg) from error
        if not np.isfinite(rows).all():
            msg = "OpenVINO gave numbers that are not finite. Verify the model files."
            raise DeviceError(msg)
        if self._pooled:  # in f16 and bf16 the division by the length is rounded too
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    def _check_tables(self, feed: Feeds) -> None:
        """Refuse what lies outside a table: OpenVINO reads something, and says nothing."""
        for name, size in self.tables.items():
            if name == POSITIONS:
                least, most = 0, next(iter(feed.values())).shape[1] - 1
            else:
                ids = feed[name]
                least, most = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
            if least < 0 or most >= size:
                msg = (
                    f"OpenVINO could not run the graph: {name} go from {least} to {most}, and the "
                    f"model has {size}. Verify the model files."
                )
                raise DeviceError(msg)


class _Requests:
    """A compiled graph and its inference requests, one for each call that runs it at a time."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.names = tuple(port.any_name for port in graph.inputs)
        self._lock = threading.Lock()
        self._idle: list[Any] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[Any]:
        """A request of this call's own: results of another one cannot get into it."""
        with self._lock:
            if self.graph is None:
                msg = "This model is closed. Make a new one to go on."
                raise DeviceError(msg)
            request = self._idle.pop() if self._idle else self.graph.create_infer_request()
        yield request
        with self._lock:  # one that failed is not used again
            if self.graph is not None:
                self._idle.append(request)

    def close(self) -> None:
        """Release the graph once the calls under way are through."""
        with self._lock:
            self.graph = None
            self._idle.clear()


def is_installed() -> bool:
    """Whether the package can be imported; it is not imported yet."""
    from importlib.util import find_spec

    return find_spec("openvino") is not None


def _loaded(model: Path | bytes, load: Callable[[], T], cores: Sequence[int] | None) -> T:
    """What `load` gives, its threads kept on `cores`.

    Raises:
        ModelError: It raised something.
    """
    try:
        return load() if cores is None else on_cores(cores, load)
    except Exception as error:  # the library raises RuntimeError and others for all there is
        name = "The graph" if isinstance(model, bytes) else str(model)
        msg = f"{name} cannot be loaded by OpenVINO ({_short(error)}). Fetch the model again."
        raise ModelError(msg) from error


def _core() -> Any:
    """OpenVINO's one core in this process, kept to the end; without telemetry.

    The import itself would be reported. And a core gives the thread that makes it another stack for
    signals, and frees it at its own end: with two of them the next signal would end the process.
    """
    global _kept
    telemetry = "openvino_telemetry"
    with _importing:
        hidden = telemetry not in sys.modules and "openvino" not in sys.modules
        if hidden:
            sys.modules[telemetry] = None  # type: ignore[assignment]  # as if not installed
        try:
            import openvino
        except ImportError as error:
            msg = (
                f"engine='openvino' needs a package that is not there ({error}). "
                f"{advice.install('openvino')}"
            )
            raise DeviceError(msg) from error
        finally:
            if hidden:
                del sys.modules[telemetry]
        if _kept is None:
            _kept = openvino.Core()
        return _kept


def _tables(model: Any) -> dict[str, int]:
    """How many rows the tables have that a graph's inputs are looked up in, and that of positions.

    Positions are cut out of a table, or of a list of numbers, to the length of the text.
    """
    sizes: dict[str, int] = {}
    for port in model.inputs:
        users = [*port.get_target_inputs()]
        while users:
            user = users.pop()
            node = user.get_node()
            if node.get_type_name() in ("Convert", "Unsqueeze", "Squeeze", "Reshape"):
                users += node.output(0).get_target_inputs()
            elif node.get_type_name() == "Gather" and user.get_index() == 1:
                rows = node.input_value(0).get_partial_shape()[0]
                if rows.is_static:
                    sizes[port.any_name] = int(rows.get_length())
    for node in model.get_ops():
        inputs = [value.get_node() for value in node.input_values()]
        if node.get_type_name() != "Slice" or len(inputs) < 5:
            continue
        data, _, stop, _, axes = inputs
        kinds = [one.get_type_name() for one in (data, stop, axes)]
        if kinds[0] == kinds[2] == "Constant" and kinds[1] != "Constant":
            shape = data.output(0).get_shape()
            rows = min(int(shape[int(axis)]) for axis in axes.get_data())
            sizes[POSITIONS] = min(rows, sizes.get(POSITIONS, rows))
    return sizes


def _short(error: Exception) -> str:
    """The last lines of its message, which say what it is; the first are places in its source."""
    return " ".join(str(error).split())[-300:]
