"""What errors advise to install works before this package is on an index, and after."""

from __future__ import annotations

import json
import re
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from nox.project import load_toml

from tars_rag import advice

ROOT = Path(__file__).resolve().parents[1]
EXTRAS: dict[str, list[str]] = load_toml(str(ROOT / "pyproject.toml"))["project"][
    "optional-dependencies"
]


def recorded() -> list[str]:
    """The extras of pyproject.toml as an installed package records them."""
    lines = ["numpy>=1.26"]
    for extra, requirements in EXTRAS.items():
        for requirement in requirements:
            what, _, marker = requirement.partition(";")
            also = f"({marker.strip()}) and " if marker else ""
            lines.append(f"{what}; {also}extra == '{extra}'")
    return lines


def installed(monkeypatch: pytest.MonkeyPatch, requires: list[str] | None) -> None:
    def answer(name: str) -> list[str] | None:
        if requires is None:
            raise metadata.PackageNotFoundError(name)
        return requires

    monkeypatch.setattr(metadata, "requires", answer)


@pytest.mark.parametrize("extra", ["documents", "langchain", "npu", "openvino", "server", "watch"])
def test_an_extra_is_named_by_what_it_needs(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, recorded())
    words = shlex.split(advice.install(extra))
    assert words[:2] == ["pip", "install"]
    assert words[2:] == [requirement.partition(";")[0] for requirement in EXTRAS[extra]]


@pytest.mark.parametrize("requires", [None, [], ["numpy", "torch; extra == 'openvino2'"]])
def test_a_tree_that_is_not_installed_is_installed_with_the_extra(
    requires: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, requires)
    assert shlex.split(advice.install("openvino")) == ["pip", "install", f"{ROOT}[openvino]"]


class Installed(metadata.Distribution):
    """What is installed, with this in its direct_url.json."""

    def __init__(self, origin: dict[str, Any] | None) -> None:
        self._origin = origin

    def read_text(self, filename: str) -> str | None:
        return None if self._origin is None else json.dumps(self._origin)

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


def test_a_newer_version_comes_from_where_this_one_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "a clone"
    (clone / ".git").mkdir(parents=True)
    quoted = shlex.quote(str(clone))

    def after(origin: dict[str, Any] | None) -> str:
        monkeypatch.setattr(metadata, "distribution", lambda _: Installed(origin))
        return advice.update()

    directory = {"url": clone.as_uri(), "dir_info": {}}
    assert after(directory) == f"git -C {quoted} pull && pip install {quoted}"
    assert after(directory | {"dir_info": {"editable": True}}) == f"git -C {quoted} pull"
    from_an_index = "pip install --upgrade tars-rag"
    assert after(None) == from_an_index
    assert after({"url": "file:///x/tars_rag-1-py3-none-any.whl", "archive_info": {}}) == (
        from_an_index
    )
    (clone / ".git").rmdir()  # an unpacked archive cannot be pulled
    assert after(directory) == from_an_index


def test_no_error_names_an_extra_by_the_name_on_an_index() -> None:
    """That name works after a release only: advice.py alone knows when."""
    named = re.compile(r"pip install [^\n]*tars-rag|tars-rag\[")
    sources = {path: path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py")}
    del sources[ROOT / "src" / "tars_rag" / "advice.py"]
    assert [path for path, text in sources.items() if named.search(text)] == []
