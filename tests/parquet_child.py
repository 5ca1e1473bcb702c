"""What the children of the kill tests of Parquet files do: one line for each step that is done."""

from __future__ import annotations

import sys

from tars_rag.ingest.vector_files import export_parquet, load_parquet


def tell(done: int, total: int | None) -> None:
    print(done, total, flush=True)


if __name__ == "__main__":
    what, source, target = sys.argv[1:]
    if what == "export":
        export_parquet(source, target, tell)
    else:
        load_parquet(source, target, progress=tell)
