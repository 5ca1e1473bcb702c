"""The import of the wheel on a machine that has none, and whose words are whose.

The wheel itself: test_device_emulated.
"""

from __future__ import annotations

import logging
import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tars_rag.errors import DeviceError
from tars_rag.runtimes.npu.rknn import RknnContext, import_wheel


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rknnlite.api", None)
    with pytest.raises(DeviceError, match=r"pip install .*(rknn-toolkit-lite2|npu)"):
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


# --- the wheel's words --------------------------------------------------------------------------

WHEEL_LOGGER = "acuityLogger"


class TalkingLite:
    """As the real class: one logger for all, and a handler of its own from each constructor."""

    says: Callable[[str], None] = staticmethod(logging.getLogger(WHEEL_LOGGER).error)

    def __init__(self) -> None:
        logging.getLogger(WHEEL_LOGGER).addHandler(logging.StreamHandler(sys.stderr))

        def attribute(*_: Any) -> Any:
            return SimpleNamespace(dims=(1, 32), n_dims=2, name=b"input_ids")

        calls = ("rknn_inputs_set", "rknn_run", "rknn_outputs_get")
        self.rknn_runtime = SimpleNamespace(
            lib=SimpleNamespace(**{name: SimpleNamespace() for name in calls}),
            get_in_out_num=lambda: (1, 1),
            get_tensor_attr=attribute,
        )

    def load_rknn(self, path: str) -> int:
        self.name = Path(path).stem
        self.says(f"loaded {self.name}")
        return 0

    def init_runtime(self, core_mask: int) -> int:
        return 0

    def inference(self, inputs: list[Any]) -> None:
        self.says(f"{self.name}: failed to submit\n\ntask of {self.name}")

    def release(self) -> None: ...


@pytest.fixture
def six(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, RknnContext]:
    """A context for each length, opened one after the other."""
    api = types.ModuleType("rknnlite.api")
    api.RKNNLite = TalkingLite  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rknnlite", types.ModuleType("rknnlite"))
    monkeypatch.setitem(sys.modules, "rknnlite.api", api)
    monkeypatch.setattr(logging.getLogger(WHEEL_LOGGER), "propagate", False)
    opened = {}
    for length in (32, 64, 96, 128, 192, 256):
        (tmp_path / f"n{length}.rknn").write_bytes(b"model")
        opened[f"n{length}"] = RknnContext(tmp_path / f"n{length}.rknn", 1)
    return opened


def said(context: RknnContext) -> str:
    with pytest.raises(DeviceError) as caught:
        context.run([np.zeros((1, 32), np.int64)])
    return str(caught.value)


def test_every_length_quotes_its_own_messages(
    six: dict[str, RknnContext], capfd: pytest.CaptureFixture[str]
) -> None:
    for name, context in six.items():
        told = said(context)
        assert f"loaded {name} | {name}: failed to submit | task of {name}." in told
        assert not any(f"{other}:" in told for other in six if other != name)
    assert capfd.readouterr() == ("", "")


def test_messages_of_threads_do_not_mix(six: dict[str, RknnContext]) -> None:
    together = threading.Barrier(len(six))

    def ask(name: str) -> str:
        together.wait(10)
        return said(six[name])

    with ThreadPoolExecutor(len(six)) as threads:
        for name, told in zip(six, threads.map(ask, six), strict=True):
            assert f"{name}: failed to submit" in told
            assert not any(f"{other}:" in told for other in six if other != name)


def test_a_message_from_nowhere_is_kept_for_all(six: dict[str, RknnContext]) -> None:
    logging.getLogger(WHEEL_LOGGER).warning("the driver was reset %s")
    for context in six.values():
        told = said(context)
        assert "the driver was reset" in told
