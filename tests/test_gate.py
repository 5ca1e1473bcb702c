"""Core 0 first, the others one by one, and a machine that froze is remembered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tars_rag.cli import app
from tars_rag.errors import DeviceError
from tars_rag.runtimes.npu import gate
from tars_rag.runtimes.npu.core import Recovery
from tars_rag.runtimes.npu.gate import CoreGate
from tars_rag.runtimes.npu.measured import Measured
from tars_rag.runtimes.npu.pool import NpuPool
from tars_rag.runtimes.npu.spec import SessionInfo
from test_pool import LENGTHS, NAMES, FakeSession, check, feed

CORES = (1, 2, 4)
QUICKLY = Recovery(pause=0.01, limit=1.0, rest=0.05)


class Board:
    """Cores that take a moment to open; remembers which were open when, and what was on disk."""

    def __init__(self, folder: Path, driver: str = "0.9.8") -> None:
        self.folder = folder
        self.versions = f"RKNN VERSION: API: 2.3.2 (4eb2ab4 build@2024-05-01) DRV: {driver}"
        self.opened: list[int] = []
        self.together = 0
        self.notes: dict[int, list[int]] = {}
        self.broken: Callable[[int], Exception | None] = lambda mask: None
        self._now = 0
        self._lock = threading.Lock()

    def open(self, mask: int) -> FakeSession:
        with self._lock:
            self._now += 1
            self.together = max(self.together, self._now)
            self.opened.append(mask)
        self.notes[mask] = [note.core_mask for note in gate.notes(self.folder)]
        time.sleep(0.05)
        with self._lock:
            self._now -= 1
        if error := self.broken(mask):
            raise error
        session = FakeSession(lambda n: 0.001)
        session.info = SessionInfo(NAMES, LENGTHS, self.versions)
        return session

    def pool(self, cores: tuple[int, ...] = CORES, soc: str = "rk3588", **options: Any) -> NpuPool:
        known = {"chosen": False, "kernel": "6.1.43", "boot": "monday", "folder": self.folder}
        made = CoreGate(soc, "2.3.2", **(known | options))
        return NpuPool(self.open, cores, recovery=QUICKLY, gate=made)


def use(pool: NpuPool) -> list[str]:
    """Run something, close; the reasons why cores are not in use."""
    feeds = [feed(i + 1) for i in range(12)]
    check(pool.run(feeds), feeds)
    pool.close()
    return [core.reason for core in pool.status().cores]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "npu-cores"


def test_core_0_first_and_then_one_by_one(folder: Path) -> None:
    board = Board(folder)
    assert use(board.pool()) == ["", "", ""]
    assert board.opened == [1, 2, 4]
    assert board.together == 1
    assert board.notes == {1: [], 2: [2], 4: [4]}
    assert gate.notes(folder) == []


def test_cores_that_have_worked_are_opened_at_once(folder: Path) -> None:
    Board(folder).pool().close()
    board = Board(folder)
    assert use(board.pool()) == ["", "", ""]
    assert board.together == 3
    assert board.notes == {1: [], 2: [], 4: []}
    # Another kernel or library has to show it again.
    for change in ({"kernel": "6.1.75"}, {"soc": "rk3576"}):
        other = Board(folder)
        other.pool(**change).close()
        assert other.together == 1


@pytest.mark.parametrize("driver", ["0.9.5", "0.9.2", "0.8.8"])
def test_below_driver_0_9_6_only_core_0(
    folder: Path, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    board = Board(folder, driver)
    told: list[object] = []
    pool = board.pool()
    first, *others = use(pool)
    assert first == ""
    assert board.opened == [1]
    for reason in others:
        assert driver in reason
        assert "NPU_CORE_MASK=0_1_2" in reason
    assert told == []
    assert sum("left out" in record.message for record in caplog.records) == 2


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        ("0.9.6", {}),
        ("0.10.0", {}),
        ("1.0.0", {}),
        ("unknown", {}),
        ("0.9.3", {"chosen": True}),
        ("0.9.3", {"soc": "rk3576"}),
    ],
)
def test_where_nothing_speaks_against_it_all_are_opened(
    folder: Path, driver: str, options: dict[str, Any]
) -> None:
    board = Board(folder, driver)
    assert use(board.pool(**options)) == ["", "", ""]


def test_a_driver_that_only_the_machine_names_counts_too(folder: Path) -> None:
    board = Board(folder, "?")
    use(board.pool(driver="0.9.3"))
    assert board.opened == [1]


def test_a_core_that_fails_is_no_freeze(folder: Path) -> None:
    board = Board(folder)
    board.broken = lambda mask: DeviceError("failed to submit") if mask == 2 else None
    assert use(board.pool()) == ["", "failed to submit", ""]
    assert gate.notes(folder) == []
    again = Board(folder)
    again.pool().close()
    assert again.opened.count(2) == 1
    assert again.notes[2] == [2], "it has not worked yet"


def freeze(folder: Path, mask: int = 2) -> None:
    """A process dies in the middle of opening a core, in an earlier boot."""
    # Not a fork: the servers of other tests have threads here, whose locks it would inherit.
    code = "import sys, test_gate; test_gate.die_opening(sys.argv[1], int(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(folder), str(mask)]
    assert subprocess.run(command, cwd=Path(__file__).parent, check=False).returncode == 9


def die_opening(folder: str, mask: int) -> None:
    """End the process where a core is being opened."""

    def die(opening: int) -> FakeSession:
        if opening == mask:
            os._exit(9)
        return Board(Path(folder)).open(opening)

    made = CoreGate(
        "rk3588", "2.3.2", chosen=False, kernel="6.1.43", boot="sunday", folder=Path(folder)
    )
    NpuPool(die, CORES, gate=made)


def test_a_core_that_froze_the_machine_is_not_opened_again(folder: Path) -> None:
    freeze(folder)
    for chosen in (False, True):
        board = Board(folder)
        reasons = use(board.pool(chosen=chosen))
        assert [bool(reason) for reason in reasons] == [False, True, False]
        assert "tars-rag doctor --clear-npu-notes" in reasons[1]
        assert 2 not in board.opened
    with pytest.raises(DeviceError, match="the machine stopped while it was opened"):
        Board(folder).pool((2,))
    # With another kernel it may be tried; and once it is forgotten.
    assert use(Board(folder).pool(kernel="6.1.115")) == ["", "", ""]
    assert gate.clear(folder) == 1
    assert use(Board(folder).pool()) == ["", "", ""]


def test_a_program_that_was_killed_in_this_boot_is_no_freeze(folder: Path) -> None:
    freeze(folder)
    board = Board(folder)
    assert use(board.pool(boot="sunday")) == ["", "", ""]
    assert use(board.pool(boot="monday")) == ["", "", ""]


def test_where_no_note_can_be_kept_the_work_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert use(Board(tmp_path / "file" / "folder").pool()) == ["", "", ""]
    assert use(Board(tmp_path / "file" / "folder").pool()) == ["", "", ""]
    assert caplog.text.count("No note of the NPU's cores can be kept") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"{", b"[" * 100_000, b"[]", b"{}", b'{"boot": 3}', b"x" * 200_000,
        b'{"core_mask": 2, "kernel": "k", "boot": "b", "time": 1e300, "pid": 1}',
        b'{"core_mask": 2, "kernel": "\\u001b[2J", "boot": "b", "time": 1.0, "pid": 1}',
        b'{"core_mask": "2", "kernel": "k", "boot": "b", "time": 1.0, "pid": ' + b"9" * 30 + b"}",
    ],
)  # fmt: skip
def test_damaged_notes_harm_nobody(folder: Path, content: bytes) -> None:
    folder.mkdir()
    (folder / "opening-2-77-1.json").write_bytes(content)
    (folder / "worked.json").write_bytes(content)
    (folder / "opening-4-1-1.json").mkdir()
    assert use(Board(folder).pool()) == ["", "", ""]
    assert gate.freezes(folder) == []


def test_damaged_memories_of_what_worked_harm_nobody(folder: Path) -> None:
    Board(folder).pool().close()
    [key] = json.loads((folder / "worked.json").read_text())
    for value in (["x", [], {}, None], {"2": 4}, "2", None, [2, "4"]):
        (folder / "worked.json").write_text(json.dumps({key: value}))
        assert use(Board(folder).pool()) == ["", "", ""]
        assert set(json.loads((folder / "worked.json").read_text())[key]) >= {2, 4}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b'{"KEY": 3}', b'{"KEY": ["x"]}', b'{"KEY": [1e999]}']
)
def test_damaged_memories_of_what_was_measured_harm_nobody(folder: Path, content: bytes) -> None:
    measured = Measured("0" * 64, "librknnrt 2.3.2", folder)
    measured.keep(2, (0.001, 0.002))
    measured.keep(4, ())
    assert measured.of(2) == (0.001, 0.002)
    assert measured.of(4) == ()
    assert measured.of(1) is None
    assert Measured("0" * 64, "librknnrt 2.5.0", folder).of(2) is None
    assert Measured("1" * 64, "librknnrt 2.3.2", folder).of(2) is None
    path = folder / "measured.json"
    key = next(iter(json.loads(path.read_text())))
    path.write_bytes(content.replace(b"KEY", key.encode()))
    assert measured.of(2) is None
    measured.keep(2, (0.001,))
    assert measured.of(2) == (0.001,)


def test_doctor_tells_of_a_freeze_and_forgets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("MODEL_CACHE_DIR", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    freeze(gate.default_folder())
    said = CliRunner().invoke(app, ["doctor"]).stdout
    assert "the machine stopped while NPU core mask 2 was opened" in said
    assert "fix: tars-rag doctor --clear-npu-notes" in said
    report = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert [note["core_mask"] for note in report["npu_notes"]] == [2]
    said = CliRunner().invoke(app, ["doctor", "--clear-npu-notes"]).stdout
    assert "the machine stopped" not in said
    assert gate.notes() == []


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("RKNN VERSION: API: 2.3.2 (429f97ae6b@2025-04-09T09:09:27) DRV: 0.9.8", "0.9.8"),
        ("API: 1.6.0 (9a7b5d24c@2023-12-13T17:31:11) DRV: rknn_server: 0.9.3", "0.9.3"),
        ("sdk api version 2.3.0 driver version: 0.9.6", "0.9.6"),
        ("double", None),
        ("", None),
    ],
)
def test_the_driver_in_what_the_library_says(said: str, version: str | None) -> None:
    assert gate.driver_version(said) == version
