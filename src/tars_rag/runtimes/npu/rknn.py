"""One RKNNLite context, made to tell the truth.

rknn-toolkit-lite2 hardly ever raises: it returns -1 or None, prints to stderr, ignores a failed
``rknn_run`` and hands out whatever is in the output buffer. It also renames the standard logging
levels. Here every return code is checked, including the one the wheel drops, and the wheel's
messages end up in the error. Tested against wheels 2.3.2 and 2.5.0.
"""

from __future__ import annotations

import logging
import shlex
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from tars_rag import advice
from tars_rag.errors import DeviceError, NonFiniteError
from tars_rag.guests import RKNN
from tars_rag.runtimes.base import FloatArray

_LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "NOTSET")
# The calls of the C library whose result the wheel may ignore. They return 0 for success.
_CHECKED_CALLS = ("rknn_inputs_set", "rknn_run", "rknn_outputs_get")
_import_lock = threading.Lock()


@dataclass(frozen=True)
class TensorInfo:
    """Name and shape of one input or output, as the library reports them."""

    name: str
    shape: tuple[int, ...]


class _Messages(logging.Handler):
    """Keeps the wheel's last messages for the next error instead of printing them.

    The wheel has one logger for everything. A message belongs to the context whose call the thread
    is in; one that comes from elsewhere may concern any, so all of them keep it.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._tails: weakref.WeakSet[_Tail] = weakref.WeakSet()
        self._calling = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = [line for line in record.getMessage().splitlines() if line.strip()]
        except Exception:  # its arguments do not fit its format
            lines = [str(record.msg)]
        own = getattr(self._calling, "tail", None)
        for tail in [own] if own is not None else list(self._tails):
            tail.lines.extend(lines)

    def tail(self) -> _Tail:
        """A place for the messages of one more context."""
        tail = _Tail()
        with _import_lock:
            self._tails.add(tail)
        return tail

    @contextmanager
    def go_to(self, tail: _Tail) -> Iterator[None]:
        """What is said in the block, in this thread, is kept there."""
        before = getattr(self._calling, "tail", None)
        self._calling.tail = tail
        try:
            yield
        finally:
            self._calling.tail = before

    def replace_handlers(self) -> None:
        """The constructor of each RKNNLite installs a handler of its own, which prints."""
        logging.getLogger("acuityLogger").handlers[:] = [self]


class _Tail:
    """The last lines that were said to one context."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=12)


_messages = _Messages()


def import_wheel() -> Any:
    """The class ``RKNNLite``, with the logging module left as it was.

    Raises:
        DeviceError: The wheel is not installed, or does not load on this machine.
    """
    with _import_lock:
        try:
            from rknnlite.api import RKNNLite
        except ImportError as error:
            msg = (
                f"rknn-toolkit-lite2 cannot be imported ({error}). It exists for aarch64 Linux and "
                f"Python 3.10 to 3.12: {advice.install('npu')}"
            )
            raise DeviceError(msg) from error
        finally:
            # The import names level 40 "E" and so on, after which setLevel("INFO") raises.
            for name in _LEVELS:
                logging.addLevelName(getattr(logging, name), name)
        return RKNNLite


class RknnContext:
    """One .rknn file on one NPU core. Not thread-safe; whoever owns it takes turns.

    Args:
        path: The .rknn file.
        core_mask: 1, 2 or 4 for core 0, 1 or 2; 0 where the SoC has a single core.

    Raises:
        DeviceError: The wheel, the library, the driver, the file or the core mask is unusable.
    """

    def __init__(self, path: Path, core_mask: int) -> None:
        self.path = path
        self.core_mask = core_mask
        self._failed_call = ""
        self._output_bytes = 0
        self._tail = _messages.tail()
        self._lite: Any = None
        with _messages.go_to(self._tail):
            try:
                self._lite = import_wheel()()
                _messages.replace_handlers()
                self._open()
            except BaseException:
                self.close()
                raise

    def _open(self) -> None:
        # load_rknn returns 0 for any file that can be read: garbage is found by init_runtime.
        if not self.path.is_file() or self._lite.load_rknn(str(self.path)) != 0:
            self._fail("the file cannot be read", f"Look: ls -l {shlex.quote(str(self.path))}")
        # `target` must stay None on the board itself.
        if self._lite.init_runtime(core_mask=self.core_mask) != 0:
            self._fail(f"the runtime did not start (core mask {self.core_mask})")
        # The library has its own copy; the wheel would keep the file in memory for ever.
        self._lite.rknn_data = None
        try:
            runtime = self._lite.rknn_runtime
            for name in _CHECKED_CALLS:
                getattr(runtime.lib, name).errcheck = self._check_call
            inputs, outputs = runtime.get_in_out_num()
            self.inputs = tuple(_info(runtime.get_tensor_attr(i)) for i in range(inputs))
            self.outputs = tuple(_info(runtime.get_tensor_attr(i, True)) for i in range(outputs))
        except (AttributeError, TypeError) as error:
            # These are the wheel's own names, not its public interface.
            self._fail(
                f"this version of rknn-toolkit-lite2 is not known ({error})",
                f"Install a tested one: pip install '{RKNN.pin}'",
            )

    def _check_call(self, result: int, function: Any, arguments: Any) -> int:
        """Raise inside the wheel where it would go on; it turns that into None."""
        if result != 0:
            self._failed_call = f"{function.__name__} returned {result}"
            raise OSError(self._failed_call)
        if function.__name__ == "rknn_outputs_get":
            self._output_bytes = arguments[2][0].size
        return result

    def run(self, arrays: Sequence[NDArray[Any]]) -> FloatArray:
        """Run the graph once.

        Args:
            arrays: One C-contiguous int64 or float32 array per input, of the shapes the file has.

        Returns:
            The first output, float32, as the device shaped it.

        Raises:
            DeviceError: A call failed, or the output is not finite float32.
        """
        if self._lite is None:
            msg = f"{self.path.name} is closed. Open the model again."
            raise DeviceError(msg)
        self._failed_call = ""
        with _messages.go_to(self._tail):
            outputs = self._lite.inference(inputs=list(arrays))
        if self._failed_call or not outputs:
            self._fail(self._failed_call or "inference returned nothing")
        output = outputs[0]
        if not isinstance(output, np.ndarray) or output.dtype != np.float32:
            self._fail("the output is not float32", "To convert it again: tars-rag convert --help")
        # Wheel 2.5.0 does not look at this and fills up with what its buffer held before.
        if output.nbytes != self._output_bytes:
            self._fail(f"the output has {self._output_bytes} bytes instead of {output.nbytes}")
        if not np.isfinite(output).all():
            self._fail("the output holds NaN or infinity", kind=NonFiniteError)
        return output

    def versions(self) -> str:
        """What the library says about itself and the driver, in one line."""
        text = str(self._lite.rknn_runtime.get_sdk_version()[0]) if self._lite else ""
        return " ".join(text.replace("=", " ").split())

    def close(self) -> None:
        """Release the context. May be called twice."""
        lite, self._lite = self._lite, None
        if lite is not None:
            with _messages.go_to(self._tail):
                lite.release()

    def _fail(
        self,
        what: str,
        advice: str = "Run: tars-rag doctor",
        kind: type[DeviceError] = DeviceError,
    ) -> NoReturn:
        said = " | ".join(self._tail.lines)
        told = f" The runtime said: {said}." if said else ""
        msg = f"{self.path.name} on the NPU: {what}.{told} {advice}."
        raise kind(msg)


def _info(attribute: Any) -> TensorInfo:
    dims = tuple(int(n) for n in attribute.dims[: attribute.n_dims])
    return TensorInfo(attribute.name.decode("utf-8", "replace"), dims)
