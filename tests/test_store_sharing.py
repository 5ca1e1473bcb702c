"""The second process is a guest: the same methods, answers and errors, and it takes the store over.

Most tests have holder and guest in one process, where the lock would refuse the second one: they
make it believe that the first is another process.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import signal
import socket
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import store_child
from conftest import HashEmbedder
from store_child import passage, word
from tars_rag.child import pack
from tars_rag.errors import (
    ConfigError,
    FingerprintError,
    InvalidInputError,
    StoreError,
    StoreLockedError,
)
from tars_rag.retrieval.maintenance import backup, compact, reembed, restore
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.sharing import guest as guest_module
from tars_rag.retrieval.sharing import peer as peer_module
from tars_rag.retrieval.sharing.access import Local
from tars_rag.retrieval.sharing.guest import Guest, HolderGoneError
from tars_rag.retrieval.sharing.wire import (
    HELLO,
    LARGEST,
    PROTOCOL,
    LineError,
    Wire,
    passage_of,
    passage_row,
)
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.storage.holder import Holder
from tars_rag.retrieval.storage.listener import NAME, connect
from tars_rag.retrieval.store import HybridStore
from tars_rag.retrieval.timing import Stopwatch

NOTES = [passage(f"p{n}", n % 3) for n in range(12)]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds a store is another process, whichever it is."""
    monkeypatch.setattr(Holder, "is_this_process", property(lambda _: False))


@pytest.fixture
def holder(tmp_path: Path, elsewhere: None) -> Iterator[HybridStore]:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert(NOTES)
        yield store


@pytest.fixture
def guest(holder: HybridStore) -> Iterator[HybridStore]:
    with HybridStore(holder.path, HashEmbedder()) as store:
        assert is_guest(store)
        yield store


def is_guest(store: HybridStore) -> bool:
    return store._access.directory is None


def silent(seconds: float) -> None:
    if seconds > 20:
        msg = "nothing comes"
        raise TimeoutError(msg)


# -- the same answers -------------------------------------------------------------------------


def test_a_guest_gives_the_answers_of_the_holder(holder: HybridStore, guest: HybridStore) -> None:
    assert guest.path == holder.path
    assert guest.fingerprint == holder.fingerprint
    assert (guest.language, guest.dimension) == ("en", 32)
    assert guest.count() == 12
    assert guest.get() == holder.get()
    assert guest.get(["p3", "none", "p1"]) == [NOTES[3], NOTES[1]]
    assert guest.get(where={"version": 1}, limit=2) == holder.get(where={"version": 1}, limit=2)
    held, given = holder.vectors(["p1", "p2", "none"]), guest.vectors(["p1", "p2", "none"])
    assert held.keys() == given.keys()
    assert all((held[key] == given[key]).all() for key in held)
    given["p1"][0] = 7  # the caller's own
    for strategy in ("hybrid", "naive", "lexical"):
        for where in (None, {"version": 1}, {"$or": [{"version": 2}, {"only1": True}]}):
            found = guest.search("filler words p3", 5, strategy, where)
            assert found == holder.search("filler words p3", 5, strategy, where)
            assert found
    vector = HashEmbedder().embed_query(NOTES[4].text)
    assert guest.search("filler", 1, every=True) == holder.search("filler", 1, every=True)
    assert guest.search(None, 1, "naive", vector=vector)[0].passage == NOTES[4]
    assert guest.search("filler", 9, min_score=0.9) == holder.search("filler", 9, min_score=0.9)
    watch = Stopwatch()
    guest.search("filler", watch=watch)
    assert [step.name for step in watch.steps] == ["embed", "lexical", "vectors", "fuse"]


def test_what_a_guest_writes_the_holder_has(holder: HybridStore, guest: HybridStore) -> None:
    told: list[tuple[int, int | None]] = []
    many = [passage(f"m{n}", 1) for n in range(300)]
    assert guest.upsert(many, progress=lambda *done: told.append(done)) == 300
    assert told == [(256, 300), (300, 300)]
    assert holder.count() == 312
    assert holder.search(word("m7", 1), 2, "lexical")[0].passage == many[7]
    rows = HashEmbedder().embed([p.text for p in NOTES[:2]])
    assert guest.upsert(NOTES[:2], rows) == 2
    assert guest.delete(["m1", "m2", "none"]) == 2
    assert guest.delete(where={"only2": True}) == 4
    assert guest.delete(["p0", "m3"], where={"version": 1}) == 1
    assert holder.count() == 305
    assert guest.probe is None
    probe = np.linspace(-1, 1, 32, dtype=np.float32)
    assert (guest.record_probe(probe) == probe).all()
    assert holder.probe is not None
    assert (holder.probe == probe).all()
    assert (guest.probe == probe).all()
    guest.flush()
    assert not holder._directory.recent.tail  # type: ignore[union-attr]
    guest.compact(lambda *_: None)
    assert guest.clear() == 305
    assert holder.count() == 0


def test_errors_are_the_same(holder: HybridStore, guest: HybridStore) -> None:
    calls: list[Callable[[HybridStore], object]] = [
        lambda store: store.search("q", 0),
        lambda store: store.search("q", where={"$not": {}}),
        lambda store: store.search("q", where={"a": object()}),
        lambda store: store.get(where={"a": None}),
        lambda store: store.get(limit=-1),
        lambda store: store.delete(),
        lambda store: store.delete(where={"a": {"$in": []}}),
        lambda store: store.upsert([Passage("", "x")]),
        lambda store: store.upsert([Passage("a", "x", {"a": object()})]),
        lambda store: store.upsert([NOTES[0], NOTES[0]]),
        lambda store: store.upsert(NOTES[:1], [[0.0] * 32]),
        lambda store: store.upsert(NOTES[:1], [[1.0] * 31]),
        lambda store: store.search("q", vector=[1.0] * 31),
    ]
    for call in calls:
        told = []
        for store in (holder, guest):
            with pytest.raises(InvalidInputError) as caught:
                call(store)
            told.append(str(caught.value))
        assert told[0] == told[1]
    assert guest.get() == NOTES


def test_what_fails_in_the_holder_is_told_to_the_guest(
    guest: HybridStore,
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Local, "count", lambda _: 1 / 0)
        with pytest.raises(StoreError, match=rf"pid {os.getpid()}\) failed: ZeroDivisionError"):
            guest.count()
    assert len(guest.get()) == 12


@pytest.mark.slow
def test_large_answers_and_writes_come_in_parts(guest: HybridStore) -> None:
    texts = [Passage(f"t{n}", f"word{n} " * 90_000) for n in range(20)]  # 14 MB
    guest.upsert(texts, np.eye(20, 32, dtype=np.float32) + 0.1)
    assert {p.id: p.text for p in guest.get([p.id for p in texts])} == {p.id: p.text for p in texts}
    hits = guest.search(None, 20, "naive", vector=[1.0] * 32)
    assert len(hits) == 20
    many = [passage(f"m{n}", 1) for n in range(2500)]
    guest.upsert(many, np.random.default_rng(0).standard_normal((2500, 32)).astype(np.float32))
    assert len(guest.vectors(f"m{n}" for n in range(2500))) == 2500


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30)
@given(st.text(st.characters()), st.dictionaries(st.text(), JSON, max_size=4))
def test_a_passage_crosses_the_wire_unchanged(text: str, metadata: dict[str, Any]) -> None:
    ours, theirs = socket.socketpair()
    here, there = Wire(ours, silent), Wire(theirs, silent)
    with contextlib.closing(here), contextlib.closing(there):
        rows = np.arange(6, dtype=np.float32).reshape(2, 3)
        here.send([passage_row(Passage("a", text, metadata))], rows)
        [row], got = there.receive()
        assert passage_of(row) == Passage("a", text, metadata)
        assert got is not None
        assert (got == rows).all()


# -- who may be a guest -----------------------------------------------------------------------


@pytest.mark.slow
def test_not_sharing_refuses_and_is_refused(holder: HybridStore, tmp_path: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(StoreLockedError, match=rf"pid {os.getpid()}\b"):
            HybridStore(holder.path, HashEmbedder(), share=False, read_only=read_only)
    with HybridStore(tmp_path / "own", HashEmbedder(), share=False):
        for read_only in (False, True):
            with pytest.raises(StoreLockedError, match=rf"pid {os.getpid()}\b"):
                HybridStore(tmp_path / "own", HashEmbedder(), read_only=read_only)
        assert not (tmp_path / "own" / NAME).exists()


def test_a_reader_is_a_guest_of_a_writer(holder: HybridStore) -> None:
    with HybridStore(holder.path, HashEmbedder(), read_only=True) as reader:
        assert is_guest(reader)
        assert reader.get() == NOTES
        for write in (
            lambda: reader.upsert(NOTES),
            lambda: reader.delete(["p1"]),
            reader.clear,
            reader.compact,
            lambda: reader.record_probe(np.ones(32, np.float32)),
        ):
            with pytest.raises(StoreError, match="read-only"):
                write()
        holder.close()
        assert reader.count() == 12
        assert not is_guest(reader)
        with pytest.raises(StoreError, match="read-only"):
            reader.upsert(NOTES)
        with HybridStore(holder.path, HashEmbedder()) as writer:
            writer.upsert([passage("new", 1)])
        assert reader.get(["new"]) == [passage("new", 1)]


def test_another_embedder_or_language_is_refused(holder: HybridStore) -> None:
    with pytest.raises(FingerprintError, match="hash:32"):
        HybridStore(holder.path, HashEmbedder(48))
    with pytest.raises(ConfigError, match="relex"):
        HybridStore(holder.path, HashEmbedder(), language="de")
    assert holder.count() == 12


def test_another_version_is_refused_by_name(
    holder: HybridStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_module, "PROTOCOL", PROTOCOL + 1)
    with pytest.raises(StoreLockedError, match=rf"pid {os.getpid()}\).*version {PROTOCOL}\)"):
        HybridStore(holder.path, HashEmbedder())
    assert holder.count() == 12


@pytest.mark.slow
def test_maintenance_is_not_done_under_a_holder(holder: HybridStore, tmp_path: Path) -> None:
    for work in (
        lambda: reembed(holder.path, HashEmbedder(48)),
        lambda: compact(holder.path),
        lambda: check_store(holder.path),
    ):
        with pytest.raises(StoreLockedError):
            work()
    assert backup(holder.path, tmp_path / "file").passages == 12
    with HybridStore(holder.path, HashEmbedder()) as guest:
        guest.upsert([passage("late", 1)])
        assert guest.backup(tmp_path / "file").passages == 13
    assert restore(tmp_path / "file", tmp_path / "restored") == 13


# -- the socket -------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_only_the_owner_may_connect(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with HybridStore(tmp_path / "store", HashEmbedder()):
            found = (tmp_path / "store" / NAME).stat().st_mode
            assert stat.S_ISSOCK(found)
            assert found & 0o777 == 0o600
    finally:
        os.umask(before)
    assert not (tmp_path / "store" / NAME).exists()


def test_a_path_may_be_longer_than_a_sockets_name(tmp_path: Path, elsewhere: None) -> None:
    path = tmp_path / ("long" * 30) / "store"
    with HybridStore(path, HashEmbedder()) as store, HybridStore(path, HashEmbedder()) as guest:
        assert guest.upsert(NOTES) == 12
        assert store.count() == 12


def test_without_sockets_the_second_is_refused(
    tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(socket.socket, "bind", refuses)
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        with pytest.raises(StoreLockedError, match="is open in another process"):
            HybridStore(tmp_path / "store", HashEmbedder())
        assert store.upsert(NOTES) == 12


def _half() -> bytes:
    message = pack({HELLO: PROTOCOL})
    return len(message).to_bytes(4, "little") + message[:-1]


HELLO_FRAME = len(pack({HELLO: PROTOCOL})).to_bytes(4, "little") + pack({HELLO: PROTOCOL})
WRONG = {
    "nothing": b"",
    "half a length": b"\0\0",
    "half a frame": _half(),
    "too large": (LARGEST + 1).to_bytes(4, "little") + b"x" * 100,
    "a length alone": LARGEST.to_bytes(4, "little"),
    "noise": os.urandom(5000),
    "no hello": len(pack([1])).to_bytes(4, "little") + pack([1]),
    "deep": (60_000).to_bytes(4, "little") + (59_996).to_bytes(4, "little") + b"[" * 59_996,
}
for name, said in {
    "no operation": {"op": "__init__"},
    "no question": 7,
    "no arguments": {"op": "search"},
    "wrong arguments": {"op": "upsert", "passages": [["a", 1, 2, 3]]},
    "no vectors": {"op": "upsert", "passages": [["a", "b", {}]]},
}.items():
    WRONG[name] = HELLO_FRAME + len(pack(said)).to_bytes(4, "little") + pack(said)


def test_nonsense_harms_nobody(holder: HybridStore, guest: HybridStore) -> None:
    left = []
    for said in WRONG.values():
        for stays in (False, True):
            line = connect(holder.path)
            with contextlib.suppress(OSError):
                line.sendall(said)
            if stays:
                left.append(line)
            else:
                line.close()
            assert guest.count() == 12
    assert holder.get() == guest.get() == NOTES
    began = time.monotonic()
    holder.close()
    assert time.monotonic() - began < 30
    for line in left:
        line.close()


def test_a_frame_of_python_objects_is_no_message() -> None:
    ours, theirs = socket.socketpair()
    here, there = Wire(ours, silent), Wire(theirs, silent)
    with contextlib.closing(here), contextlib.closing(there):
        for described in (["|O", [1]], ["<f8", [1]], ["<f4", [3]], ["<f4", [1, 1, 1]], ["x", 1]):
            head = json.dumps({"header": 1, "arrays": {"rows": described}}).encode()
            body = len(head).to_bytes(4, "little") + head + b"\0" * 8
            ours.sendall(len(body).to_bytes(4, "little") + body)
            with pytest.raises(LineError):
                there.receive()


def test_too_much_at_once_is_refused_before_it_is_sent(
    guest: HybridStore,
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tars_rag.retrieval.sharing.wire.LARGEST", 2000)
        with pytest.raises(InvalidInputError, match="too large for another process"):
            guest.upsert([Passage("large", "word " * 1000)])
    assert guest.upsert([Passage("large", "word " * 1000)]) == 1


# -- readers ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_who_only_reads_makes_way_for_who_writes(tmp_path: Path) -> None:
    """Readers were there first; calls that were under way are answered, and those that follow."""
    path = tmp_path / "store"
    with HybridStore(path, HashEmbedder()) as store:
        store.upsert(NOTES)
    failures: list[BaseException] = []
    stop = threading.Event()

    def read(store: HybridStore) -> None:
        try:
            while not stop.is_set():
                assert store.search("filler words", 3)
                assert store.count() >= len(NOTES)
        except BaseException as error:
            failures.append(error)

    with (
        HybridStore(path, HashEmbedder(), read_only=True) as one,
        HybridStore(path, HashEmbedder(), read_only=True) as two,
    ):
        threads = [threading.Thread(target=read, args=(store,)) for store in (one, two, two)]
        for thread in threads:
            thread.start()
        with pytest.raises(StoreLockedError, match="being read"):
            HybridStore(path, HashEmbedder(), share=False)
        assert not is_guest(one)
        with HybridStore(path, HashEmbedder()) as writer:
            writer.upsert([passage("new", 1)])
            for reader in (one, two):
                assert reader.get(["new"]) == [passage("new", 1)]
                with pytest.raises(StoreError, match="read-only"):
                    reader.upsert([passage("new", 2)])
        assert one.count() == two.count() == 13
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not failures, failures
    assert check_store(path).ok


def test_a_reader_that_is_not_closed_is_collected(tmp_path: Path) -> None:
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        store.upsert(NOTES)
    reader = HybridStore(tmp_path / "store", HashEmbedder(), read_only=True)
    gone = weakref.ref(reader._access)
    del reader
    until = time.monotonic() + 20
    while gone() is not None and time.monotonic() < until:
        gc.collect()
        time.sleep(0.05)
    assert gone() is None


# -- taking over ------------------------------------------------------------------------------


def test_a_guest_takes_over_when_the_holder_closes(holder: HybridStore, guest: HybridStore) -> None:
    with HybridStore(holder.path, HashEmbedder()) as third:
        guest.upsert([passage("new", 1)])
        holder.close()
        assert third.count() == 13
        assert not is_guest(third)
        assert guest.get(["new"]) == [passage("new", 1)]
        assert is_guest(guest)
        guest.upsert([passage("new", 2)])
        assert third.get(["new"]) == [passage("new", 2)]
    assert guest.count() == 13
    with pytest.raises(StoreError, match="is closed"):
        holder.count()


def test_calls_go_on_while_holders_come_and_go(tmp_path: Path, elsewhere: None) -> None:
    """Threads write and read through guests while the store is closed under them."""
    path = tmp_path / "store"
    stores = [HybridStore(path, HashEmbedder()) for _ in range(3)]
    stop = threading.Event()
    failures: list[BaseException] = []
    wrote: dict[str, int] = {}

    def work(number: int) -> None:
        version = 0
        try:
            with HybridStore(path, HashEmbedder()) as own:
                while not stop.is_set():
                    version += 1
                    own.upsert([passage(f"t{number}", version)])
                    wrote[f"t{number}"] = version
                    assert own.get([f"t{number}"]) == [passage(f"t{number}", version)]
                    hits = own.search(word(f"t{number}", version), 3, "lexical")
                    assert [hit.id for hit in hits] == [f"t{number}"]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        time.sleep(0.15)
        held = [store for store in stores if not is_guest(store)]
        for store in held:
            store.close()
            stores.remove(store)
        stores.append(HybridStore(path, HashEmbedder()))
    stop.set()
    for thread in threads:
        thread.join(60)
    for store in stores:
        store.close()
    assert not failures, failures
    with HybridStore(path, HashEmbedder()) as store:
        held_now = {p.id: p.metadata["version"] for p in store.get()}
    assert held_now == wrote


def test_what_was_deleted_twice_is_counted_once(
    holder: HybridStore, guest: HybridStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder did it, and died before it could say so."""
    delete = Guest.delete
    deaths = [HolderGoneError("gone")]

    def dies(self: Guest, *arguments: Any) -> int:
        done = delete(self, *arguments)
        if deaths:
            raise deaths.pop()
        return done

    monkeypatch.setattr(Guest, "delete", dies)
    assert guest.delete(["p1", "p2", "none"]) == 2
    assert holder.count() == 10


def test_a_holder_that_cannot_be_reached_is_not_waited_for_without_end(
    holder: HybridStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_module, "_UNREACHED_SECONDS", 0.2)
    (holder.path / NAME).unlink()
    with pytest.raises(StoreLockedError, match=r"shares the store, but cannot be reached"):
        HybridStore(holder.path, HashEmbedder())


def test_the_collector_may_close_a_store_while_it_answers_a_guest(
    tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HybridStore(tmp_path / "store", HashEmbedder())
    closes = store._access.close
    with HybridStore(tmp_path / "store", HashEmbedder()) as guest:
        upsert = Local.upsert

        def collected(self: Local, *arguments: Any) -> None:
            with self.directory.reading():
                closes(flush=False)
                time.sleep(0.05)
            upsert(self, *arguments)

        monkeypatch.setattr(Local, "upsert", collected)
        writing = threading.Thread(target=guest.upsert, args=(NOTES,))
        writing.start()
        time.sleep(0.2)
        monkeypatch.setattr(Local, "upsert", upsert)
        writing.join(30)
        assert not writing.is_alive()
        assert guest.count() == 12


# -- real processes ---------------------------------------------------------------------------


@contextlib.contextmanager
def process(path: Path, *, read_only: bool = False) -> Iterator[Any]:
    """A child that has the store open: (its process, a pipe to it)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["store_child", "tantivy"])
    ours, theirs = context.Pipe()
    child = context.Process(target=store_child.open_and_report, args=(path, theirs, read_only))
    child.start()
    theirs.close()
    try:
        assert ours.poll(60), "the child did not report"
        yield child, ours
    finally:
        child.kill()
        child.join()
        ours.close()


def test_a_second_process_is_a_guest_and_outlives_a_killed_holder(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with process(path) as (child, pipe):
        assert pipe.recv() == ("open", 0)
        with HybridStore(path, HashEmbedder()) as store:
            assert is_guest(store)
            store.upsert(NOTES)
            child.kill()
            child.join()
            assert (path / NAME).exists()  # nobody could remove it
            assert store.get() == NOTES
            assert not is_guest(store)
            store.upsert([passage("after", 1)])
    assert check_store(path).ok
    assert not (path / NAME).exists()


@pytest.mark.slow
def test_a_forked_child_cannot_use_its_parents_place(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with process(path) as (_, pipe):
        pipe.recv()
        store = HybridStore(path, HashEmbedder())
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                store.count()
            except StoreError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        with os.fdopen(read) as stream:
            assert "spawn" in stream.read()
        assert store.count() == 0
        store.close()


@pytest.mark.slow
def test_a_fork_of_the_holder_does_not_keep_its_guests_waiting(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with HybridStore(path, HashEmbedder()) as store:
        store.upsert(NOTES)
        with process(path) as (_, pipe):
            assert pipe.recv() == ("open", 12)
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            try:
                store.close()
                with HybridStore(path, HashEmbedder()) as again:
                    assert again.count() == 12
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


@pytest.mark.slow
def test_a_holder_that_is_stopped_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_module, "_STOPPED_SECONDS", 1.0)
    with process(tmp_path / "store") as (child, pipe):
        pipe.recv()
        with HybridStore(tmp_path / "store", HashEmbedder()) as store:
            psutil.Process(child.pid).suspend()
            with pytest.raises(StoreError, match=rf"kill -CONT {child.pid}"):
                store.count()
            psutil.Process(child.pid).resume()
            assert store.count() == 0
