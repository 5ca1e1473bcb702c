"""How close the simulated bundle is to FP32, and whether that is close enough to keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tars_rag.convert.recipes import Recipe, Threshold
from tars_rag.runtimes.npu.manifest import Fidelity

if TYPE_CHECKING:
    from tars_rag.runtimes.base import Feeds
    from tars_rag.runtimes.npu.manifest import ModelKind

FloatArray = NDArray[np.float32]


def reference(graph: bytes, feeds: Sequence[Feeds]) -> FloatArray:
    """What ONNX Runtime gives for each feed ([1, tokens], not padded) in FP32, [n, columns]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    rows = [session.run(None, dict(feed))[0] for feed in feeds]
    return np.concatenate(rows).astype(np.float32)


def of_embedder(simulated: FloatArray, exact: FloatArray, threshold: Threshold) -> Fidelity:
    """Cosine of each embedding to its FP32 reference; both [n, dim]."""
    norms = np.linalg.norm(simulated, axis=1) * np.linalg.norm(exact, axis=1)
    # A vector of zeros, or one with a NaN in it, is as wrong as can be.
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.nan_to_num((simulated * exact).sum(axis=1) / norms, nan=-1.0)
    return _judged(
        Fidelity(
            texts=len(exact),
            mean_cosine=float(cosines.mean()),
            min_cosine=float(cosines.min()),
            threshold=threshold.mean,
            degraded=False,
        ),
        threshold,
    )


def of_cross_encoder(
    simulated: FloatArray, exact: FloatArray, queries: Sequence[str], threshold: Threshold
) -> Fidelity:
    """Rank correlation, per query, of the logits [n] with their FP32 reference [n]."""
    simulated = np.where(np.isfinite(simulated), simulated, np.float32(0))
    spearman, first, five = [], [], []
    for query in dict.fromkeys(queries):
        rows = [row for row, asked in enumerate(queries) if asked == query]
        if len(rows) < 2:
            continue  # one passage has no order
        a, b = simulated[rows], exact[rows]
        spearman.append(_spearman(a, b))
        top_a, top_b = np.argsort(-a, kind="stable"), np.argsort(-b, kind="stable")
        first.append(float(top_a[0] == top_b[0]))
        few = min(5, len(rows))
        five.append(len(set(top_a[:few]) & set(top_b[:few])) / few)
    return _judged(
        Fidelity(
            texts=len(exact),
            mean_spearman=float(np.mean(spearman)),
            min_spearman=float(np.min(spearman)),
            top1_agreement=float(np.mean(first)),
            top5_overlap=float(np.mean(five)),
            threshold=threshold.mean,
            degraded=False,
        ),
        threshold,
    )


def worst(measured: Sequence[Fidelity]) -> Fidelity:
    """Over several lengths: the lowest of each figure."""
    merged = {
        name: min(values)
        for name in Fidelity.model_fields
        if None not in (values := [getattr(one, name) for one in measured])
    }
    merged["degraded"] = any(one.degraded for one in measured)
    return Fidelity(**merged)


def verdict(fidelity: Fidelity, recipe: Recipe, kind: ModelKind) -> str:
    """The measured figures and what was asked, in words."""
    least = recipe.thresholds[kind]
    if kind == "embedder":
        name, things = "cosine", "texts"
        mean, low = fidelity.mean_cosine, fidelity.min_cosine
    else:
        name, things = "per-query Spearman", "pairs"
        mean, low = fidelity.mean_spearman, fidelity.min_spearman
    asked = f"mean {least.mean:g}" + (f" and minimum {least.least:g}" if least.least else "")
    return (
        f"{name} to FP32 over {fidelity.texts} held-out {things}: mean {mean:.5f}, "
        f"minimum {low:.5f} (asked: {asked})"
    )


def _judged(fidelity: Fidelity, threshold: Threshold) -> Fidelity:
    mean = fidelity.mean_cosine if fidelity.mean_cosine is not None else fidelity.mean_spearman
    low = fidelity.min_cosine if fidelity.min_cosine is not None else fidelity.min_spearman
    # Written so that a NaN fails.
    good = (
        mean is not None and low is not None and mean >= threshold.mean and low >= threshold.least
    )
    return fidelity.model_copy(update={"degraded": not good})


def _spearman(a: FloatArray, b: FloatArray) -> float:
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / spread if spread else 0.0


def _ranks(values: FloatArray) -> NDArray[np.float64]:
    """Ranks, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return ranks
