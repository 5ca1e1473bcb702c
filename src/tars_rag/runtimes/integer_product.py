"""The product of many rows of bytes with one vector of small integers, exact, on ONNX Runtime.

It is one operator (MatMulInteger), for which ONNX Runtime has kernels with the integer dot product
of each processor (VNNI and AMX on x86, UDOT and I8MM on arm64) and a thread pool. It reads the
rows where they are: a memory-mapped file is not copied.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import DeviceError
from tars_rag.runtimes.cores import big_cores
from tars_rag.runtimes.onnx import affinities

GRAPH = Path(__file__).with_suffix(".onnx")
"""The operators, with what `OFFSET` and `PLANES` say in it: importing onnx to build them takes a
tenth of the time to a first answer. tests/test_integer_product.py builds and compares it."""
OFFSET = 128
"""Rows hold their numbers plus this, as bytes."""
LIMIT = 63
"""Largest absolute value on the other side: some x86 kernels add two products of a byte and a
signed byte in 16 bits, which 255 * 63 * 2 does not overflow, and 255 * 127 * 2 does."""
PLANES = 3
"""How many vectors are multiplied at once. Kernels work on 8 or 16: three cost what one does."""


def integer_product(
    rows: NDArray[np.uint8], planes: NDArray[np.int8], steps: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Products of each row with the planes, weighted and added.

    The integer products are exact; the rest is float32 arithmetic. Takes 16 bytes a row meanwhile.

    Args:
        rows: Bytes [n, dim], C-contiguous, each a number between -127 and 127 plus `OFFSET`.
        planes: Numbers [dim, PLANES] between -LIMIT and LIMIT.
        steps: What each plane is multiplied with, [PLANES].

    Returns:
        ``((rows - OFFSET) @ planes) @ steps``, float32 [n].

    Raises:
        DeviceError: ONNX Runtime failed, or its integer product is not exact on this processor.
    """
    return _run(_session(os.getpid()), rows, planes, steps)


def _run(
    session: Any,
    rows: NDArray[np.uint8],
    planes: NDArray[np.int8],
    steps: NDArray[np.float32],
) -> NDArray[np.float32]:
    feed = {"rows": rows, "planes": planes, "steps": steps.reshape(PLANES, 1)}
    try:
        (product,) = session.run(None, feed)
    except Exception as error:  # the library's own exceptions have no common public base
        msg = (
            f"ONNX Runtime could not multiply integers ({error}). "
            "Reinstall it: pip install --force-reinstall onnxruntime"
        )
        raise DeviceError(msg) from error
    return np.asarray(product, np.float32).reshape(-1)


def burst_options() -> Any:
    """Of a session that works for a millisecond or two, now and then, on all big cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    cores = big_cores()
    options.intra_op_num_threads = len(cores)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if 1 < len(cores) < (os.cpu_count() or 1):
        options.add_session_config_entry(
            "session.intra_op_thread_affinities", affinities(cores, len(cores))
        )
    return options


@functools.cache
def _session(pid: int) -> Any:  # a fork has none of its threads
    """One session for the process; any number of threads may run it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        GRAPH.read_bytes(), burst_options(), providers=["CPUExecutionProvider"]
    )
    _prove(session)
    return session


def _prove(session: Any) -> None:
    """Refuse a kernel that saturates or rounds: what rests on the product would be wrong."""
    rng = np.random.default_rng(0)
    for dim in (1, 31, 384):
        rows = rng.integers(1, 256, (67, dim)).astype(np.uint8)
        planes = rng.integers(-LIMIT, LIMIT + 1, (dim, PLANES)).astype(np.int8)
        rows[0], rows[1], planes[:, 0] = 255, 1, np.where(planes[:, 0] < 0, -LIMIT, LIMIT)
        exact = (rows.astype(np.int64) - OFFSET) @ planes.astype(np.int64)
        for plane in range(PLANES):
            steps = np.zeros(PLANES, np.float32)
            steps[plane] = 1
            if not np.array_equal(_run(session, rows, planes, steps), exact[:, plane]):
                msg = (
                    "ONNX Runtime's integer product is not exact on this processor, so that no "
                    "search could be trusted. Install another version: pip install -U onnxruntime"
                )
                raise DeviceError(msg)
