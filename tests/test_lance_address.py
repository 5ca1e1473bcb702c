"""Addresses of stores in LanceDB, and what is said where it is not installed; needs none of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conftest import HashEmbedder
from tars_rag import HybridStore
from tars_rag.cli import app
from tars_rag.errors import ConfigError
from tars_rag.retrieval.address import (
    is_address,
    is_lance,
    is_url,
    lance_address,
    lance_uri,
    unfolded,
)
from tars_rag.retrieval.indexes.chroma.filters import parse
from tars_rag.retrieval.indexes.codec import filterable
from tars_rag.retrieval.lance.facts import facts, pushed
from tars_rag.retrieval.passage import Passage


@pytest.mark.parametrize(
    ("given", "usual", "uri"),
    [
        ("lance:///data/notes", "lance:///data/notes", "/data/notes"),
        ("lance:////data//x/../notes/", "lance:///data/notes", "/data/notes"),
        ("lance+s3://bucket/notes/", "lance+s3://bucket/notes", "s3://bucket/notes"),
        ("lance+s3://bucket/a/b", "lance+s3://bucket/a/b", "s3://bucket/a/b"),
    ],
)
def test_one_spelling(given: str, usual: str, uri: str) -> None:
    assert is_lance(given)
    assert is_address(given)
    assert not is_url(given)
    assert (lance_address(given), lance_uri(given)) == (usual, uri)
    assert lance_address(usual) == usual
    assert lance_address(unfolded(Path(given))) == usual  # as the command line reads it


@pytest.mark.parametrize(
    "wrong", ["lance://data/x", "lance:///", "lance+s3://bucket", "lance+s3:///x", "lance+gs://b/c"]
)
def test_what_is_none(wrong: str) -> None:
    with pytest.raises(ConfigError, match="three slashes"):
        HybridStore(wrong, HashEmbedder())


def test_a_path_is_none() -> None:
    assert not is_address("lance/notes")
    assert not is_address(Path("notes"))
    with pytest.raises(ConfigError, match=r"a string, not a Path: 'lance:///data'"):
        HybridStore(Path("lance:///data"), HashEmbedder())


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ConfigError, match=r"Install it: pip install .*lance"):
        HybridStore(f"lance://{tmp_path}/x", HashEmbedder())
    told = CliRunner().invoke(app, ["store", "info", f"lance://{tmp_path}/x"])
    assert told.exit_code == 1
    assert "pip install" in told.output
    assert not list(tmp_path.iterdir())


def test_it_is_imported_only_for_such_an_address() -> None:
    code = "import sys, tars_rag, tars_rag.cli; assert 'lancedb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "words",
    [
        ["store", "backup", "STORE", "x.backup"],
        ["store", "restore", "x.backup", "STORE"],
        ["store", "reembed", "STORE", "--model", "x"],
        ["store", "relex", "STORE", "--language", "de"],
    ],
    ids=" ".join,
)
def test_what_a_command_cannot_do_it_says(words: list[str], tmp_path: Path) -> None:
    store = f"lance://{tmp_path}/x"
    told = CliRunner().invoke(app, [store if word == "STORE" else word for word in words])
    assert told.exit_code == 1, told.output
    said = " ".join(told.output.split())
    assert store in said.replace(" ", "") or "lance:///" in said
    assert "in LanceDB" in said, said
    assert "Traceback" not in said


def test_filters_that_ask_for_no_order_are_decided_by_tokens_alone() -> None:
    held = set(facts(filterable(Passage("a", "", {"k": "v", "n": 2, "f": -0.0, "l": [1, 2]}))))
    for where, exact, sought in (
        ({"k": "v"}, True, True),
        ({"k": "w"}, True, False),
        ({"n": 2.0}, True, True),
        ({"f": 0}, True, True),
        ({"l": {"$contains": 2}}, True, True),
        ({"l": {"$contains": 2.0}}, True, False),
        ({"n": {"$gt": 7}}, False, True),
        ({"k": {"$gt": 7}}, False, False),
    ):
        plan = pushed(parse(where))
        tokens = set(plan.sql.split("'")[1::2])
        assert (plan.exact, bool(tokens & held)) == (exact, sought), where
    many = {"$or": [{"k": str(number)} for number in range(500)]}
    assert pushed(parse(many)) == pushed(parse({"n": {"$in": list(range(5000))}}))
