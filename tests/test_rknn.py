"""The import of the wheel on a machine that has none. The wheel itself: test_device_emulated."""

from __future__ import annotations

import logging
import sys
import types

import pytest

from tars_rag.errors import DeviceError
from tars_rag.runtimes.npu.rknn import import_wheel


def test_without_the_wheel_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rknnlite.api", None)
    with pytest.raises(DeviceError, match=r"tars-rag\[npu\]"):
        import_wheel()


def test_logging_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    class Api(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            # What the wheel's import does to everybody.
            for level, letter in zip((50, 40, 30, 20, 10), "CEWID", strict=True):
                logging.addLevelName(level, letter)
            return object

    monkeypatch.setitem(sys.modules, "rknnlite", types.ModuleType("rknnlite"))
    monkeypatch.setitem(sys.modules, "rknnlite.api", Api("rknnlite.api"))
    import_wheel()
    assert [logging.getLevelName(n) for n in (50, 40, 30, 20, 10)] == [
        "CRITICAL",
        "ERROR",
        "WARNING",
        "INFO",
        "DEBUG",
    ]
    logging.getLogger("anything").setLevel("INFO")
