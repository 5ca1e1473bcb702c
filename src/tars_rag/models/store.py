"""The earlier name of `tars_rag.models.cache`: a store is a directory of passages."""

from __future__ import annotations

from tars_rag.models.cache import LocalModel, default_cache_dir
from tars_rag.models.cache import ModelCache as ModelStore

__all__ = ["LocalModel", "ModelStore", "default_cache_dir"]
