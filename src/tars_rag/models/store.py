"""The earlier name of `tars_rag.models.cache`: a store is a directory of passages."""

from __future__ import annotations

from tars_rag.models.cache import ModelCache as ModelStore
from tars_rag.models.cache import default_cache_dir
from tars_rag.models.local import LocalModel, read_record, write_record

__all__ = ["LocalModel", "ModelStore", "default_cache_dir", "read_record", "write_record"]
