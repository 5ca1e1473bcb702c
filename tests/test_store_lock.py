"""Who holds a store, told right: forks, containers, groups, and directories that are moved."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from conftest import HashEmbedder
from store_child import passage, word
from tars_rag.errors import StoreError, StoreLockedError
from tars_rag.retrieval.indexes.chroma import process as embedded
from tars_rag.retrieval.indexes.chroma import requests
from tars_rag.retrieval.storage import lock as lock_module
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.storage.holder import Holder, processes_with
from tars_rag.retrieval.storage.layout import LOCK
from tars_rag.retrieval.storage.lock import HeldError, StoreLock
from tars_rag.retrieval.store import HybridStore

pytestmark = pytest.mark.slow

_HOLD = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import HashEmbedder
from tars_rag import HybridStore
store = HybridStore(sys.argv[1], HashEmbedder())
pid = os.fork() if sys.argv[2] == "fork" else os.getpid()
if pid:
    print(pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert([passage("a", 1)])
    return tmp_path / "store"


@pytest.fixture
def held(path: Path) -> Iterator[Path]:
    """A store that is held, by what its lock's file says: each test writes that."""
    with (path / LOCK).open("rb+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield path


def started(*arguments: str) -> subprocess.Popen[str]:
    """A process that holds a store; it has said so."""
    return subprocess.Popen([*arguments], stdout=subprocess.PIPE, text=True)


def refusal(path: Path, *, within: float = 20, share: bool = True) -> str:
    began = time.monotonic()
    with pytest.raises(StoreLockedError) as caught:
        HybridStore(path, HashEmbedder(), share=share)
    assert time.monotonic() - began < within
    return str(caught.value)


def test_a_holder_that_ends_while_it_is_looked_up_left_nothing_yet(
    held: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen alive, it is told as alive, and asked for the store: what it leaves has its time."""
    looks = iter([True])
    monkeypatch.setattr(Holder, "is_alive", property(lambda _: next(looks, False)))
    (held / LOCK).write_bytes(replace(Holder.this_process(), pid=1, began=0).record())
    lock = StoreLock(held / LOCK)
    with pytest.raises(HeldError):
        lock.acquire()
    lock.close()


# -- forks ----------------------------------------------------------------------------------------


def test_a_forked_child_holds_nothing_that_its_parent_closed(path: Path) -> None:
    with HybridStore(path, HashEmbedder()) as store:
        store.upsert([passage("b", 1)])
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        began = time.monotonic()
        with HybridStore(path, HashEmbedder()) as store:
            store.upsert([passage("c", 1)])
            assert store.count() == 3
            assert [hit.id for hit in store.search(word("c", 1), 5, "lexical")] == ["c"]
        assert time.monotonic() - began < 4
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_child_holds_nothing_of_a_killed_parent(path: Path) -> None:
    parent = started(sys.executable, "-c", _HOLD, str(path), "fork")
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        began = time.monotonic()
        with HybridStore(path, HashEmbedder()) as store:
            assert store.count() == 1
        assert time.monotonic() - began < 10
        assert psutil.pid_exists(child)
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


# -- who holds it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"namespace": 1}, "another container of this machine (pid {pid} there, host 'web-1')"),
        ({"boot": "b"}, "another machine or container (pid {pid} there, host 'web-1')"),
    ],
)
def test_a_pid_of_elsewhere_is_not_looked_for_here(
    held: Path, other: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "_FAR_SECONDS", 0.1)
    for pid in (os.getpid(), 1, 4_000_000):  # ours, another's, nobody's
        holder = replace(Holder.this_process(), pid=pid, host="web-1", **other)  # type: ignore[arg-type]
        (held / LOCK).write_bytes(holder.record())
        assert told.format(pid=pid) in refusal(held)


def test_a_pid_that_was_given_away_is_not_the_holders(
    held: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "_ORPHAN_SECONDS", 0.2)
    ours = Holder.this_process()
    (held / LOCK).write_bytes(replace(ours, began=ours.began - 1).record())
    assert "open in a process that is gone" in refusal(held)


@pytest.mark.parametrize(
    "record", [b"", b"\0\0", b"{", b"[1]", b'{"pid": 3, "later": 4}', b"[" * 9]
)
def test_a_record_that_says_little_is_no_reason_to_fail(
    held: Path, record: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "_ORPHAN_SECONDS", 0.2)
    (held / LOCK).write_bytes(record)
    refusal(held)


def test_a_record_of_an_earlier_version_is_read(held: Path) -> None:
    (held / LOCK).write_bytes(b"%d\n" % os.getppid())
    assert f"open in another process (pid {os.getppid()})" in refusal(held)


def test_a_container_is_told_apart(path: Path) -> None:
    if not shutil.which("unshare") or os.geteuid() != 0:
        pytest.skip("a pid namespace needs root and unshare")
    inside = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    holder = started(*inside, sys.executable, "-c", _HOLD, str(path), "hold")
    assert holder.stdout is not None
    try:
        pid = holder.stdout.readline().strip()
        if not pid:
            pytest.skip("a pid namespace cannot be made here")
        told = refusal(path, share=False)
        assert f"another container of this machine (pid {pid} there" in told
        with HybridStore(path, HashEmbedder()) as guest:
            assert guest.count() == 1
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with HybridStore(path, HashEmbedder()) as store:
        assert store.count() == 1


def test_a_chroma_that_is_stopped_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_STOPPED_SECONDS", 0.2)
    program = started(sys.executable, "-c", _HOLD, str(path), "hold")
    assert program.stdout is not None
    program.stdout.readline()
    [chroma] = psutil.Process(program.pid).children()
    chroma.suspend()
    while any(
        thread.read_text().rpartition(")")[2].split()[0] != "T"
        for thread in Path(f"/proc/{chroma.pid}/task").glob("*/stat")
    ):
        time.sleep(0.01)
    program.kill()
    program.wait()
    program.stdout.close()
    told = refusal(path)
    assert f"is gone (pid {program.pid}), and its Chroma process (pid {chroma.pid})" in told
    assert told.endswith(f"End it: kill -9 {chroma.pid}")
    chroma.kill()
    HybridStore(path, HashEmbedder()).close()


def test_with_a_server_a_lock_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARS_CHROMA_TIMEOUT", "0.1")
    monkeypatch.setattr(requests, "_SLACK_S", 0.2)
    path = tmp_path / "store"
    path.mkdir()
    lock = StoreLock(path / LOCK)
    lock.acquire()
    with pytest.raises(StoreLockedError, match=r"not to be had for 0.4 s.*server"):
        HybridStore(path, HashEmbedder(), chroma_url="http://127.0.0.1:9")
    lock.close()


# -- groups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_files_have_the_permissions_that_the_umask_gives(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_idle", [])  # whose umask is another
    monkeypatch.setattr(embedded, "KEEP_IDLE", 0)
    before = os.umask(umask)
    try:
        with HybridStore(tmp_path / "store", HashEmbedder()) as store:
            for number in range(3):
                store.upsert([passage(f"p{number}", 1), passage("x", number)])
        files = {file: file.stat().st_mode & 0o777 for file in (tmp_path / "store").rglob("*")}
        wanted = {file: (0o777 if file.is_dir() else 0o666) & ~umask for file in files}
        assert files == wanted
    finally:
        os.umask(before)


# -- moved directories ----------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("instead", ["nothing", "a store"])
def test_a_directory_that_was_moved_is_left_alone(
    path: Path, instead: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HybridStore(path, HashEmbedder())
    store.upsert([passage("b", 1)])
    if fails:  # and its journal waits for the next call
        monkeypatch.setattr(store._directory._indexes.lexical, "apply", lambda *_: 1 / 0)
        written = [passage("a", 2), passage("c", 2)]
        with pytest.raises(ZeroDivisionError), store._directory.writing() as indexes:
            indexes.upsert(written, HashEmbedder().embed([p.text for p in written]))
        monkeypatch.undo()
    moved = path.rename(path.with_name("moved"))
    if instead == "a store":
        with HybridStore(path, HashEmbedder()) as new:
            new.upsert([passage("n", 1)])
    calls = (
        lambda: store.upsert([passage("z", 1)]),
        lambda: store.delete(["n", "a"]),
        store.clear,
        store.get,
        store.count,
        lambda: store.search("filler"),
        lambda: store.vectors(["a"]),
    )
    for call in calls:
        with pytest.raises(StoreError, match=rf"{path} was renamed.*present place"):
            call()
    store.close()
    if instead == "a store":
        with HybridStore(path, HashEmbedder()) as new:
            assert new.get() == [passage("n", 1)]
        assert check_store(path).ok
    else:
        assert not path.exists()
    with HybridStore(moved, HashEmbedder()) as old:
        held = {p.id: p.metadata["version"] for p in old.get()}
        assert held.pop("a") in ((1, 2) if fails else (1,))
        assert held in (({"b": 1}, {"b": 1, "c": 2}) if fails else ({"b": 1},))
    assert check_store(moved).ok


@pytest.mark.parametrize(
    ("by", "instead"),
    [
        ("a flush", "nothing"),
        ("a flush", "a store"),
        ("a large write", "nothing"),
        ("a read", "nothing"),
        ("a write to the log", "nothing"),
    ],
)
def test_no_full_disk_is_told_where_the_directory_was_moved(
    path: Path, by: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a write nor a read of Chroma's says why it failed: the disk is looked at for that."""
    taken, moved = path.with_name("taken"), path.with_name("moved")
    with HybridStore(taken, HashEmbedder()) as other:
        other.upsert([passage("n", 1)])

    def comes_too_late(*_: object) -> None:
        path.rename(moved)
        if instead == "a store":
            taken.rename(path)
        raise OSError("I/O error") if by == "a write to the log" else StoreError("no such database")

    with HybridStore(path, HashEmbedder()) as store:
        store.upsert([passage("b", 1)])
        calls = {
            "a flush": store.flush,
            "a large write": lambda: store.upsert([passage(f"p{n}", 1) for n in range(70)]),
            "a read": lambda: store.get(where={"version": 1}),
            "a write to the log": lambda: store.upsert([passage("c", 1)]),
        }
        with monkeypatch.context() as patched:
            if by == "a write to the log":
                patched.setattr(os, "fdatasync", comes_too_late)
            else:
                name = "get" if by == "a read" else "write"
                patched.setattr(store._directory._indexes.vectors, name, comes_too_late)
            with pytest.raises(StoreError, match="was renamed, removed or replaced"):
                calls[by]()
    with HybridStore(moved, HashEmbedder()) as store:
        assert {p.id for p in store.get()} >= {"a", "b"}
    assert check_store(moved).ok


def test_a_directory_that_is_moved_during_a_flush_keeps_what_was_acknowledged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HybridStore(path, HashEmbedder()) as store:
        apply = store._directory._indexes.lexical.apply

        def moves(*arguments: object) -> None:
            apply(*arguments)  # type: ignore[arg-type]
            path.rename(path.with_name("moved"))

        monkeypatch.setattr(store._directory._indexes.lexical, "apply", moves)
        store.upsert([passage("b", 1)])  # into the log, which moves with the directory
        with pytest.raises(StoreError, match="was renamed"):
            store.flush()
    with HybridStore(path.with_name("moved"), HashEmbedder()) as store:
        assert {p.id for p in store.get()} >= {"a", "b"}
    assert check_store(path.with_name("moved")).ok


_BUSY = """
import os, sys
others = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]
held = os.open(sys.argv[1], os.O_RDWR)  # comes after those in the list
print("open", flush=True)
while True:
    for descriptor in others:
        os.close(descriptor)
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]
"""


def test_who_has_a_file_open_is_found_though_it_opens_and_closes_others(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    busy = started(sys.executable, "-c", _BUSY, str(tmp_path / "lock"))
    assert busy.stdout is not None
    try:
        assert busy.stdout.readline().strip() == "open"
        with (tmp_path / "lock").open() as lock:
            assert all(processes_with(lock.fileno()) == [busy.pid] for _ in range(30))
    finally:
        busy.kill()
        busy.wait()
    with (tmp_path / "lock").open() as lock:
        assert processes_with(lock.fileno()) == []
