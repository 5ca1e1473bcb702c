"""Embedded Chroma lives in a process of its own, which may die without taking anything along."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from conftest import HashEmbedder
from store_child import passage, word
from tars_rag.child import Link
from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.chroma import process as embedded
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.store import HybridStore


def chroma_of(store: HybridStore) -> psutil.Process:
    """The process of this store's Chroma: the one that has its database open."""
    for child in psutil.Process().children(recursive=True):
        if any(str(store.path) in file.path for file in child.open_files()):
            return child
    raise AssertionError("no process has the store open")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert([passage(f"p{n}", 1) for n in range(20)])
    return tmp_path / "store"


def assert_right(store: HybridStore, versions: dict[str, int]) -> None:
    assert {p.id: p for p in store.get()} == {k: passage(k, v) for k, v in versions.items()}
    for key, version in versions.items():
        assert [hit.id for hit in store.search(word(key, version), 5, "lexical")] == [key]


@pytest.mark.parametrize("read_only", [False, True])
def test_chroma_killed_is_an_error_once_and_started_again(path: Path, read_only: bool) -> None:
    with HybridStore(path, HashEmbedder(), read_only=read_only) as store:
        chroma_of(store).kill()
        assert len(store.search("filler", 50)) == 20  # which asks Chroma nothing
        with pytest.raises(StoreError, match=r"died \(SIGKILL\).*next call starts it again"):
            store.search("filler", where={"only1": True})  # what passes a filter, Chroma decides
        assert len(store.search("filler", 50)) == 20
        assert_right(store, {f"p{n}": 1 for n in range(20)})
    assert check_store(path).ok


def write_until_it_fails(store: HybridStore, acknowledged: list[int], ids: int = 20) -> None:
    """Replace every passage by its next version, again and again."""
    while True:
        version = acknowledged[-1] + 1
        store.upsert([passage(f"p{n}", version) for n in range(ids)])
        store.flush()  # into Chroma, too
        acknowledged.append(version)


def assert_acknowledged_or_next(store: HybridStore, acknowledged: list[int]) -> None:
    held = {p.id: int(p.metadata["version"]) for p in store.get()}
    assert held.keys() == {f"p{n}" for n in range(20)}
    assert set(held.values()) <= {acknowledged[-1], acknowledged[-1] + 1}
    assert_right(store, held)


@pytest.mark.slow
def test_chroma_killed_in_a_write_loses_nothing(path: Path) -> None:
    acknowledged = [1]
    with HybridStore(path, HashEmbedder()) as store:
        for number in range(4):
            threading.Timer(0.1 + 0.02 * number, chroma_of(store).kill).start()
            with pytest.raises(StoreError, match="SIGKILL"):
                write_until_it_fails(store, acknowledged)
            assert_acknowledged_or_next(store, acknowledged)
            acknowledged.append(acknowledged[-1] + 1)
            store.upsert([passage(f"p{n}", acknowledged[-1]) for n in range(20)])
    assert check_store(path).ok


def press_ctrl_c(path: Path) -> None:
    """Again and again, while an answer of Chroma is waited for; in a process of its own."""
    at = waited = 0
    wait = Link.wait

    def pressed(link: Link, seconds: float | None = None) -> bool:
        nonlocal waited
        waited += 1
        if waited == at:
            signal.raise_signal(signal.SIGINT)
        return wait(link, seconds)

    acknowledged = [1]
    with HybridStore(path, HashEmbedder()) as store, pytest.MonkeyPatch.context() as patched:
        patched.setattr(Link, "wait", pressed)
        chroma = chroma_of(store)
        for number in range(1, 5):
            at, waited = number, 0
            with pytest.raises(KeyboardInterrupt):
                write_until_it_fails(store, acknowledged)
            assert_acknowledged_or_next(store, acknowledged)
            acknowledged.append(max(int(p.metadata["version"]) for p in store.get()))
            assert chroma_of(store) == chroma
    assert check_store(path).ok


@pytest.mark.slow
def test_ctrl_c_waits_for_the_write_under_way(path: Path) -> None:
    code = f"import sys, pathlib, {__name__} as t; t.press_ctrl_c(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(path)]
    subprocess.run(command, cwd=Path(__file__).parent, check=True, timeout=200)


@pytest.mark.slow
def test_what_a_signal_handler_raises_costs_chroma_and_no_answer(path: Path) -> None:
    """A program's own time-out, say: the link must not give its answer to the next question."""

    def too_late(*_: object) -> None:
        raise ZeroDivisionError

    before = signal.signal(signal.SIGALRM, too_late)
    acknowledged = [1]
    try:
        with HybridStore(path, HashEmbedder()) as store:
            for number in range(6):
                signal.setitimer(signal.ITIMER_REAL, 0.05 + 0.013 * number)
                with pytest.raises(ZeroDivisionError):
                    write_until_it_fails(store, acknowledged)
                assert store.count() == 20
                assert_acknowledged_or_next(store, acknowledged)
                acknowledged.append(max(int(p.metadata["version"]) for p in store.get()) + 1)
                store.upsert([passage(f"p{n}", acknowledged[-1]) for n in range(20)])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert check_store(path).ok


def test_close_leaves_no_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "KEEP_IDLE", 0)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    store = HybridStore(path, HashEmbedder())
    chroma = chroma_of(store)
    assert store.count() == 20
    store.close()
    store.close()
    assert not chroma.is_running()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


@pytest.mark.slow
def test_the_lock_is_held_as_long_as_the_process_of_chroma(path: Path) -> None:
    """A killed writer's Chroma finishes what it was told; the next one waits for that."""
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from conftest import HashEmbedder\n"
        "from tars_rag import HybridStore\n"
        f"store = HybridStore({str(path)!r}, HashEmbedder())\n"
        "print('open', flush=True); time.sleep(60)\n"
    )
    victim = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert victim.stdout is not None
    assert victim.stdout.readline() == b"open\n"
    [chroma] = psutil.Process(victim.pid).children()
    chroma.suspend()
    tasks = Path(f"/proc/{chroma.pid}/task")
    while any(") T " not in (task / "stat").read_text() for task in tasks.iterdir()):
        time.sleep(0.01)  # its threads stop one after the other
    victim.kill()
    victim.wait()
    victim.stdout.close()
    threading.Timer(0.5, chroma.resume).start()
    began = time.monotonic()
    with HybridStore(path, HashEmbedder()) as store:
        assert time.monotonic() - began >= 0.4
        assert store.count() == 20


@pytest.mark.parametrize("data", ["A=Jörg".encode("latin-1"), b"IS_PERSISTENT=perhaps\n"])
def test_chroma_takes_no_settings_from_another_programs_dotenv(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    (tmp_path / ".env").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    with HybridStore(Path("store"), HashEmbedder()) as store:
        assert_right(store, {f"p{n}": 1 for n in range(20)})
    assert check_store(path).ok
