"""Doubles at the device boundary: a context, a session for a child process, a board."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tars_rag.errors import DeviceError, InvalidInputError, NonFiniteError
from tars_rag.runtimes.base import Feeds, FloatArray
from tars_rag.runtimes.npu.rknn import TensorInfo
from tars_rag.runtimes.npu.spec import NpuSpec, SessionInfo

NAMES = ("input_ids", "attention_mask")


def feed(*ids: int, length: int = 32) -> dict[str, np.ndarray]:
    arrays = {name: np.zeros((1, length), np.int64) for name in (*NAMES, "token_type_ids")}
    arrays["input_ids"][0, : len(ids)] = ids
    arrays["attention_mask"][0, : len(ids)] = 1
    return arrays


class FakeContext:
    """Stands in for `RknnContext`: computes a tiny model, or what `lie` makes of its answer."""

    def __init__(
        self,
        inputs: tuple[str, ...] = NAMES,
        shape: tuple[int, ...] = (1, 4),
        lie: Callable[[FloatArray], FloatArray] = lambda rows: rows,
        length: int = 32,
    ) -> None:
        self.path = Path("fake.rknn")
        self.inputs = tuple(TensorInfo(name, (1, length)) for name in inputs)
        self.outputs = (TensorInfo("output", shape),)
        self.shape, self.lie = shape, lie
        self.got: list[Any] = []
        self.closed = 0

    def run(self, arrays: list[np.ndarray]) -> FloatArray:
        self.got = arrays
        first, mask = arrays[0].astype(np.float64), arrays[1]
        if mask.dtype == np.float32:
            mask = mask == 0  # what is added to the scores of a text's own tokens
        words = first if first.ndim == 3 else np.sin(first[..., None] * np.arange(1, 5))
        if len(self.shape) == 3:
            return self.lie(words.astype(np.float32))
        pooled = (words * mask[..., None]).sum(axis=1)
        if self.shape == (1, 1):
            return self.lie(pooled[:, :1].astype(np.float32))
        return self.lie((pooled / np.linalg.norm(pooled)).astype(np.float32))

    def versions(self) -> str:
        return "double"

    def close(self) -> None:
        self.closed += 1


def _crash_at_depth(frames: int) -> None:
    if frames:
        _crash_at_depth(frames - 1)
    os.kill(os.getpid(), signal.SIGSEGV)


class ChildSession:
    """What a child process runs in the tests: the first token says what to do."""

    info = SessionInfo(NAMES, (32,), "double")

    def __init__(self, spec: NpuSpec, core_mask: int) -> None:
        name = Path(spec.graphs[0].path).name
        if name == "refused.rknn":
            raise DeviceError("core mask refused")
        if name == "broken.rknn":
            raise ZeroDivisionError("a bug")
        if name == "slow.rknn":
            time.sleep(60)
        self.core_mask = core_mask

    def run(self, feed: Feeds) -> FloatArray:
        token = int(feed["input_ids"][0, 0])
        if token == 11:
            os.kill(os.getpid(), signal.SIGSEGV)
        if token == 12:
            time.sleep(60)
        if token == 13:
            raise InvalidInputError("token 13")
        if token == 16:
            raise NonFiniteError("token 16")
        if token == 14:
            print("E RKNN: failed to submit!", flush=True)
            os._exit(3)
        if token == 17:
            print("E RKNN: failed to submit!", flush=True)
            _crash_at_depth(40)
        if token == 15:
            os.write(2, b"x" * (2 << 20))
        size = float(os.fstat(2).st_size)
        return np.array([[token, self.core_mask, os.getpid(), size]], np.float32)

    def close(self) -> None:
        pass
