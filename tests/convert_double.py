"""A toolkit that needs nothing: `fake_toolkit` in its place, told what goes wrong.

A plugin: ``pytest_plugins = ["convert_double"]``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tars_rag.convert import environment, toolkit
from tiny_models import write_model

FAKE = Path(__file__).with_name("fake_toolkit.py")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_model(root / "embedder", head=False, seed=1)
    write_model(root / "ranker", head=True, seed=2)
    return root


class FakeToolkit:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.worker = folder / "worker.py"
        shutil.copyfile(FAKE, self.worker)
        self.behave()

    def behave(self, **behaviour: Any) -> None:
        (self.folder / "behaviour.json").write_text(json.dumps(behaviour))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeToolkit:
    folder = tmp_path / "fake"
    folder.mkdir()
    stand_in = FakeToolkit(folder)
    monkeypatch.setattr(toolkit, "WORKER", stand_in.worker)
    monkeypatch.setattr(environment, "toolkit_python", lambda **_: Path(sys.executable))
    return stand_in
