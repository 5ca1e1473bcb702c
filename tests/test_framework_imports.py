"""What the framework rooms load, and what they say where a framework is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tars_rag import advice


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("room", "module", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
        ("llama_index", "llama_index.core", "llama-index"),
    ],
)
def test_a_missing_framework_names_the_extra(room: str, module: str, extra: str) -> None:
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
try:
    import tars_rag.{room}
except ImportError as error:
    print(error)
"""
    message = run(code)
    assert message.endswith(advice.install(extra))


def test_a_broken_framework_is_not_called_missing() -> None:
    code = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "langsmith":
            raise ModuleNotFoundError("No module named 'langsmith'", name=name)
sys.meta_path.insert(0, Broken())
try:
    import tars_rag.langchain
except ImportError as error:
    print(error)
"""
    message = run(code)
    assert "langsmith" in message
    assert "pip install" not in message


@pytest.mark.parametrize(
    ("room", "other"), [("langchain", "llama_index"), ("llama_index", "langchain_core")]
)
def test_one_framework_loads_neither_the_other_nor_the_engines(room: str, other: str) -> None:
    loaded = run(f"import sys, tars_rag.{room}\nprint('\\n'.join(sys.modules))").split()
    heavy = {other, "chromadb", "onnxruntime", "tantivy", "torch", "transformers", "flashrank"}
    assert heavy & set(loaded) == set()
