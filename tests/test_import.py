"""`import tars_rag` costs next to nothing, and so does asking the command line for help."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    *("chromadb", "onnxruntime", "onnx", "tokenizers", "tantivy", "numpy", "pydantic"),
    *("langchain_core", "llama_index", "torch", "transformers", "flashrank", "huggingface_hub"),
    *("rknnlite", "rknn", "safetensors"),
)


def modules_after(code: str) -> set[str]:
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {line.split(".")[0] for line in done.stdout.splitlines()}


def cpu_seconds_to_import(name: str) -> float:
    """The processor's time, not the clock's: other tests may run beside this one."""
    code = f"import time; a = time.process_time(); import {name}; print(time.process_time() - a)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert modules_after("import tars_rag") & set(HEAVY) == set()


def test_importing_the_package_takes_less_than_50_ms() -> None:
    assert min(cpu_seconds_to_import("tars_rag") for _ in range(5)) < 0.05


@pytest.mark.parametrize("name", ["Passage", "TarsRagError"])
def test_light_names_stay_light(name: str) -> None:
    loaded = modules_after(f"from tars_rag import {name}")
    assert loaded & {"chromadb", "onnxruntime", "langchain_core", "llama_index", "torch"} == set()


def test_help_loads_neither_models_nor_indexes() -> None:
    code = """
from tars_rag.cli import app
try:
    app(["--help"])
except SystemExit as done:
    assert done.code == 0
"""
    heavy = set(HEAVY) - {"pydantic"}  # typer's own dependency
    assert modules_after(code) & heavy == set()


def test_every_public_name_can_be_had() -> None:
    import tars_rag

    for name in tars_rag.__all__:
        assert getattr(tars_rag, name) is not None
    assert set(tars_rag.__all__) <= set(dir(tars_rag))
    with pytest.raises(AttributeError, match="no attribute 'Embeder'"):
        _ = tars_rag.Embeder
