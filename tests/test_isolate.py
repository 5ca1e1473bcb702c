"""A session in a child process: what kills the child must not kill us."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from npu_double import feed
from tars_rag.errors import DeviceError, InvalidInputError, NonFiniteError
from tars_rag.runtimes.npu.core import Recovery
from tars_rag.runtimes.npu.isolate import IsolatedSession
from tars_rag.runtimes.npu.pool import NpuPool
from tars_rag.runtimes.npu.spec import NpuSpec, RknnFile

BACKEND = "npu_double:ChildSession"


def open_session(name: str = "good.rknn", core: int = 2, **options: float) -> IsolatedSession:
    return IsolatedSession(NpuSpec((RknnFile(name),)), core, backend=BACKEND, **options)


def test_rows_come_from_another_process_with_its_core_mask() -> None:
    session = open_session()
    assert session.info.lengths == (32,)
    row = session.run(feed(7))
    assert (row[0, 0], row[0, 1], row[0, 2]) == (7, 2, session.pid)
    assert row.flags.writeable
    session.close()
    assert not psutil.pid_exists(session.pid)


def test_a_segmentation_fault_is_an_error_with_a_name() -> None:
    session = open_session()
    with pytest.raises(DeviceError, match=r"SIGSEGV.*Segmentation fault"):
        session.run(feed(11))
    with pytest.raises(DeviceError, match="SIGSEGV"):
        session.run(feed(7))
    session.close()


def test_what_a_crash_was_is_told_however_long_its_frames_are() -> None:
    session = open_session()
    with pytest.raises(DeviceError) as failure:
        session.run(feed(17))
    said = str(failure.value)
    assert re.search(r"failed to submit!.*Fatal Python error: Segmentation fault", said), said
    assert len(said) < 2500
    session.close()


def test_last_words_are_quoted(capfd: pytest.CaptureFixture[str]) -> None:
    session = open_session()
    with pytest.raises(DeviceError, match=r"exit code 3.*E RKNN: failed to submit!"):
        session.run(feed(14))
    session.close()
    assert capfd.readouterr() == ("", "")


def test_a_hanging_child_is_killed() -> None:
    session = open_session()
    threading.Timer(0.3, session.abort).start()
    with pytest.raises(DeviceError, match="SIGKILL"):
        session.run(feed(12))
    session.close()


def test_the_callers_mistake_leaves_the_child_alive() -> None:
    session = open_session()
    with pytest.raises(InvalidInputError, match="token 13"):
        session.run(feed(13))
    with pytest.raises(NonFiniteError, match="token 16"):
        session.run(feed(16))
    assert session.run(feed(7))[0, 0] == 7
    session.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [("refused.rknn", "core mask refused"), ("broken.rknn", "ZeroDivisionError: a bug")],
)
def test_what_goes_wrong_at_the_start_is_told(name: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        open_session(name)


def test_a_start_that_takes_too_long() -> None:
    with pytest.raises(DeviceError, match="not ready after 1 s"):
        open_session("slow.rknn", open_timeout=1)


def test_the_childs_log_does_not_grow_for_ever() -> None:
    session = open_session()
    assert session.run(feed(15))[0, 3] >= 2 << 20
    assert session.run(feed(7))[0, 3] == 0
    session.close()


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    """Even while they hang, and even if the parent is killed."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, threading, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_isolate import open_session\n"
        "from npu_double import feed\n"
        "s = open_session()\n"
        "threading.Thread(target=s.run, args=(feed(12),), daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "print(s.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        parent.kill()
    for _ in range(100):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie":
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its parent")


def test_a_pool_of_processes_survives_a_crash_and_a_hang() -> None:
    quickly = Recovery(pause=0.01)
    pool = NpuPool(lambda mask: open_session(core=mask), (1, 2, 4), timeout=1.5, recovery=quickly)
    assert {row[0, 0] for row in pool.run([feed(20 + i) for i in range(9)])} == set(range(20, 29))
    with pytest.raises(DeviceError, match="SIGSEGV"):
        pool.run([feed(11)])
    assert [c.reason for c in pool.status().cores].count("") == 0
    pool.close()
