"""The examples of docs/langchain.md and docs/llama-index.md run, with the published embedder.

The reranker is one with random weights, as the published one's can be had from a hub only.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tars_rag import Embedder

pytest_plugins = ["tiny_models"]

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.weights
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", ["langchain.md", "llama-index.md"])
def test_examples_run(
    page: str, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Embedder(device="cpu").close()  # where the weights cannot be had, this says why
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", (DOCS / page).read_text("utf-8"))
    assert len(blocks) >= 6
    names: dict[str, object] = {}
    for block in blocks:
        code = block.replace("TarsRerank(", f"TarsRerank(model={str(tiny_models / 'tiny-ce')!r}, ")
        exec(compile(code, page, "exec"), names)
    if page == "langchain.md":
        check = """
assert [d.id for d in store.similarity_search("why is it slow when it is hot?", k=1)] == ["fan"]
assert [d.id for d in store.similarity_search("E1701", k=1)] == ["ssd"]
"""
    else:
        check = """
assert "E1701" in index.as_query_engine(vector_store_query_mode="hybrid", similarity_top_k=1).query(
    "What does E1701 mean?").source_nodes[0].get_content()
assert len(store.get_nodes()) == 4
"""
    exec(check + "\nstore.close()", names)
