"""No circle of imports, no long file; `lint-imports` sees to the arrows between rooms."""

from __future__ import annotations

import graphlib
from pathlib import Path

import grimp
import pytest

import tars_rag

SOURCE = Path(tars_rag.__file__).parent
LONGEST = 350


def test_no_two_modules_import_each_other() -> None:
    """Imports inside functions count too; those that only the type checker sees do not."""
    graph = grimp.build_graph("tars_rag", exclude_type_checking_imports=True, cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert len(imports) > 100
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_reader_finishes_a_file() -> None:
    lengths = {
        str(path.relative_to(SOURCE)): len(path.read_text("utf-8").splitlines())
        for path in SOURCE.rglob("*.py")
    }
    too_long = {name: lines for name, lines in lengths.items() if lines > LONGEST}
    assert not too_long, f"split by what each part knows (more than {LONGEST} lines): {too_long}"
