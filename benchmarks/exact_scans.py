"""Ways to multiply 100,000 rows of bytes with one vector, run in turn: time, and processor time.

    python benchmarks/exact_scans.py [--rows 100000] [--dim 384] [--rounds 40]

Libraries that are not installed are left out (pip install faiss-cpu numkong).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from tars_rag.runtimes.four_bit_product import FourBitProduct, FourBitRows
from tars_rag.runtimes.integer_product import LIMIT, OFFSET, PLANES, integer_product


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    signed = rng.integers(-127, 128, (args.rows, args.dim)).astype(np.int8)
    rows = (signed.astype(np.int16) + OFFSET).astype(np.uint8)
    floats = signed.astype(np.float32)
    query = rng.integers(-LIMIT, LIMIT + 1, args.dim).astype(np.int8)
    planes = np.repeat(query[:, None], PLANES, axis=1)
    steps = np.eye(1, PLANES, dtype=np.float32)[0]
    wide = query.astype(np.float32)
    expected = floats @ wide
    four = FourBitRows(args.rows, args.dim)  # other numbers, and as many: it is no exact product
    four.nibbles[:], four.scales[:] = rng.integers(0, 256, four.nibbles.shape, np.uint8), 0.125
    four_bits = FourBitProduct(four)
    ways: dict[str, Callable[[], object]] = {
        "ONNX Runtime MatMulNBits, 4 bits": lambda: four_bits(wide),
        "ONNX Runtime MatMulInteger": lambda: integer_product(rows, planes, steps),
        "numpy, float32": lambda: floats @ wide,
    }
    assert np.array_equal(integer_product(rows, planes, steps), expected)
    try:
        import numkong

        one = query[None]
        ways["numkong cdist, 1 thread"] = lambda: numkong.cdist(one, signed, "dot")
        ways["numkong cdist, threads=2"] = lambda: numkong.cdist(one, signed, "dot", threads=2)
    except ImportError:
        pass
    try:
        import faiss

        quantizer = faiss.ScalarQuantizer.QT_8bit_direct_signed
        index = faiss.IndexScalarQuantizer(args.dim, quantizer, faiss.METRIC_INNER_PRODUCT)
        index.add(floats)
        ways["faiss scalar quantizer, k=10"] = lambda: index.search(wide[None], 10)
    except ImportError:
        pass
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            clock, processor = time.perf_counter(), time.process_time()
            way()
            cpu[name].append(time.process_time() - processor)
            wall[name].append(time.perf_counter() - clock)
    print(f"{args.rows} rows of {args.dim}, {args.rounds} rounds in turn, milliseconds")
    print(f"{'':32s}{'median':>8s}{'fastest':>9s}{'processor, fastest':>20s}")
    for name in ways:
        times = np.array(wall[name]) * 1e3
        print(f"{name:32s}{np.median(times):8.2f}{times.min():9.2f}{min(cpu[name]) * 1e3:20.2f}")


if __name__ == "__main__":
    main()
