"""Figures that others published, to stand beside what is measured here; never mixed in.

Orange Pi 5 Max (RK3588), toolkit and librknnrt 2.3.2, one NPU core; the reranker's on the NPU
were measured with 122 tokens padded to 512, FlashRank's on the CPU without padding.
"""

from __future__ import annotations

from typing import Any, Final

SOURCE: Final = "published, RK3588"

RERANKER: Final[tuple[dict[str, Any], ...]] = (
    {
        "model": "ms-marco-MiniLM-L-12-v2",
        "device": "npu",
        "precision": "fp16",
        "tokens": 122,
        "length": 512,
        "megabytes": 68.7,
        "passage_ms": 184.0,
        "spread_ms": 2.4,
    },
    {
        "model": "ms-marco-MiniLM-L-12-v2",
        "device": "npu",
        "precision": "int8 (naive)",
        "tokens": 122,
        "length": 512,
        "megabytes": 36.5,
        "passage_ms": 181.5,
        "spread_ms": 3.0,
    },
    {
        "model": "ms-marco-MiniLM-L-12-v2",
        "device": "cpu",
        "precision": "int8",
        "tokens": 122,
        "length": 122,
        "megabytes": 32.0,
        "passage_ms": 85.0,
        "spread_ms": None,
    },
)

EMBEDDER: Final[tuple[dict[str, Any], ...]] = (
    {
        "model": "all-MiniLM-L6-v2",
        "device": "npu",
        "precision": "fp16",
        "tokens": 256,
        "tokenise_ms": 10.0,
        "infer_ms": 19.0,
        "pool_ms": 5.0,
        "normalise_ms": 5.0,
        "total_ms": 39.0,
    },
    {"model": "all-MiniLM-L6-v2", "device": "cpu", "tokens": 256, "total_ms": 150.0},
)

QUERY: Final[tuple[dict[str, Any], ...]] = (
    {"documents": 742, "vectors": 15.0, "lexical": 8.0, "fuse": 3.0, "total_ms": 26.0},
    {"documents": 742, "passages_reranked": 5, "total_ms": 484.0},
)
