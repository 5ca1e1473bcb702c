"""Embedding on a Ray cluster (extra ``ray``): for `map_batches` and `tars-rag embed --ray`."""

from __future__ import annotations

from tars_rag.ray.cluster import Cluster
from tars_rag.ray.map_batches import EmbedPassages, share_model

__all__ = ["Cluster", "EmbedPassages", "share_model"]
