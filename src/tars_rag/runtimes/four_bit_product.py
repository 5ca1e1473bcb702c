"""The product of many rows of four-bit numbers with one vector, on ONNX Runtime.

The operator is MatMulNBits, with which language models are decoded: ONNX Runtime has kernels for it
on each processor, and packs the rows once, for as long as they stay. It reads half a byte a number
and takes a third of the time that `integer_product` takes; but it rounds the vector to bytes first,
in a way that differs between processors. So there is a row more for each number of a vector, which
is one there and zero elsewhere: their products are the vector as it was taken.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import DeviceError
from tars_rag.runtimes.integer_product import burst_options

BLOCK = 64
"""Numbers of a row that have one scale."""
ZERO = 8
"""Rows hold their numbers, -8 to 7, plus this."""
BFLOAT16 = 2.0**-8
"""What `to_bfloat16` takes from a number or adds to it, at most, as a part of it."""
_ROUNDING = 2.0**-20  # eight times that of a sum of two numbers below 2
_SHOWN = 16  # rows at either end that are multiplied again to prove the kernel


class FourBitRows:
    """Room for rows, which goes back to the system as soon as nobody holds it.

    Args:
        count: How many rows.
        dim: Numbers in a row.

    Attributes:
        blocks: Parts of a row with a scale each.
        nibbles: Numbers plus `ZERO`, two in a byte, the first in the lower half: uint8
            [count, blocks * BLOCK / 2]. To be filled, with zeros of the numbers behind `dim`.
        scales: What each block counts, float32 [count, blocks]. To be filled, with numbers that
            bfloat16 holds: some kernels for arm64 keep no more of them.
        all_nibbles, all_scales: The same, and behind them a row for each number of a vector.

    Raises:
        OSError: There is no memory for them.
    """

    def __init__(self, count: int, dim: int) -> None:
        self.count, self.dim = count, dim
        self.blocks = -(-dim // BLOCK)
        self.all_nibbles = _mapped((count + dim, self.blocks * BLOCK // 2), np.dtype(np.uint8))
        self.all_scales = _mapped((count + dim, self.blocks), np.dtype(np.float32))
        self.nibbles, self.scales = self.all_nibbles[:count], self.all_scales[:count]
        numbers = np.full((dim, self.blocks * BLOCK), ZERO, np.uint8)
        np.fill_diagonal(numbers, ZERO + 1)
        self.all_nibbles[count:], self.all_scales[count:] = packed(numbers), 1

    def unpacked(self, places: NDArray[np.integer]) -> NDArray[np.float64]:
        """Some of the rows as they are meant, float64 [n, dim]."""
        held = self.nibbles[places]
        numbers = np.stack([held & 15, held >> 4], axis=-1).reshape(len(held), -1, BLOCK)
        rows: NDArray[np.float64]
        rows = (numbers.astype(np.float64) - ZERO) * self.scales[places][:, :, None]
        return rows.reshape(len(held), -1)[:, : self.dim]


class FourBitProduct:
    """Rows that are multiplied with many vectors, one at a time. Any thread may call it.

    Args:
        rows: The rows, which are not to be written to any more.

    Attributes:
        rounding: What float32 takes from a product with a vector of unit length, at most.

    Raises:
        DeviceError: ONNX Runtime has no such operator, or its product is wrong on this processor.
    """

    def __init__(self, rows: FourBitRows) -> None:
        self._process = os.getpid()
        self._count = rows.count
        # A block adds up to 15 scales times the sum of its part of the vector, and takes off 8.
        largest = max(1.0, ZERO * float(np.abs(rows.scales).max()))
        self.rounding = _ROUNDING * largest * math.sqrt(rows.dim) * (rows.blocks + 8)
        try:
            self._session = _session(rows)
            self._prove(rows)
            # ONNX Runtime may go on reading what it was given, and does not hold it.
            given = rows.all_nibbles, rows.all_scales
            self._held = [array for array in given if self._reads(array, rows.dim)]
        except DeviceError:
            raise
        except Exception as error:  # the library's own exceptions have no common public base
            msg = f"ONNX Runtime cannot multiply four-bit numbers here ({error})."
            raise DeviceError(msg) from error

    @property
    def usable(self) -> bool:
        """Whether this process made it: a fork has none of its threads, and would wait for them."""
        return self._process == os.getpid()

    def __call__(
        self, vector: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The products with a vector [dim] as it is taken, and how that is.

        Returns:
            float32 [count] and float32 [dim]. The products are exact but for `rounding`.

        Raises:
            DeviceError: ONNX Runtime failed.
        """
        try:
            (product,) = self._session.run(None, {"vector": vector[None]})
        except Exception as error:  # the library's own exceptions have no common public base
            msg = f"ONNX Runtime could not multiply four-bit numbers ({error})."
            raise DeviceError(msg) from error
        found: NDArray[np.float32] = np.asarray(product, np.float32).reshape(-1)
        return found[: self._count], found[self._count :]

    def _prove(self, rows: FourBitRows) -> None:
        """Refuse a kernel whose products are not those of the vector that it says it took."""
        count = rows.count
        shown = np.unique(np.r_[: min(_SHOWN, count), max(count - _SHOWN, 0) : count])
        numbers = rows.unpacked(shown)
        spread = np.random.default_rng(0).standard_normal(rows.dim).astype(np.float32)
        for vector in (spread, -np.abs(spread), np.eye(1, rows.dim, dtype=np.float32)[0]):
            products, taken = self(vector)
            off = np.abs(products[shown] - numbers @ taken.astype(np.float64)).max()
            if not off <= self.rounding * np.linalg.norm(vector):
                msg = "ONNX Runtime's product of four-bit numbers is wrong on this processor."
                raise DeviceError(msg)

    def _reads(self, array: NDArray[Any], dim: int) -> bool:
        """Whether the product depends on an array still, or on what was packed of it alone."""
        content = array.reshape(-1).view(np.uint8)
        vector = np.ones(dim, np.float32)
        before, _ = self(vector)
        np.invert(content, out=content)
        reads = not np.array_equal(self(vector)[0], before)
        np.invert(content, out=content)
        return reads


def packed(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Numbers plus `ZERO` [..., even], two in a byte."""
    pairs: NDArray[np.uint8] = numbers[..., 0::2] | (numbers[..., 1::2] << np.uint8(4))
    return pairs


def to_bfloat16(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest numbers that bfloat16 holds, as float32."""
    bits = numbers.astype(np.float32).view(np.uint32) + np.uint32(0x8000)
    rounded: NDArray[np.float32] = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded


def _mapped(shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    size = math.prod(shape)
    buffer = mmap.mmap(-1, max(1, size * kind.itemsize))
    return np.frombuffer(buffer, kind, size).reshape(shape)


def _session(rows: FourBitRows) -> Any:
    import onnxruntime
    from onnx import TensorProto, helper

    count = rows.count + rows.dim
    node = helper.make_node(
        "MatMulNBits",
        ["vector", "rows", "scales"],
        ["product"],
        domain="com.microsoft",
        K=rows.dim,
        N=count,
        bits=4,
        block_size=BLOCK,
        accuracy_level=4,  # in whole numbers, where the processor can
    )
    given = {
        "rows": rows.all_nibbles.reshape(count, rows.blocks, BLOCK // 2),
        "scales": rows.all_scales.reshape(-1),
    }
    kinds = {"rows": TensorProto.UINT8, "scales": TensorProto.FLOAT}
    graph = helper.make_graph(
        [node],
        "four_bit_product",
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, [1, rows.dim])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, [1, count])],
        [_elsewhere(name, kinds[name], array.shape) for name, array in given.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = burst_options()
    options.enable_cpu_mem_arena = False
    # Inside the model the rows would be copied three times on their way to the kernel.
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in given.values()]
    options.add_external_initializers(list(given), values)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _elsewhere(name: str, kind: int, shape: Sequence[int]) -> Any:
    """A tensor of a graph that is given when the graph is opened."""
    from onnx import TensorProto

    tensor = TensorProto(name=name, data_type=kind, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    return tensor
