"""After a power cut at any moment the store has everything that it acknowledged.

A process killed leaves every write in the kernel's memory; a power cut takes those that were not
fsync'd. So a child's file operations are recorded, cut off at many places, and what a disk may hold
then is opened and checked (see `power_cut`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import power_cut
from power_cut import Call, Disk
from store_child import Ledger, passage
from tars_rag.retrieval.indexes.chroma import files as seal
from tars_rag.retrieval.storage import state as store_state
from tars_rag.retrieval.storage.layout import JOURNAL

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not power_cut.can_record(), reason="strace is missing or not allowed"),
]

CUTS = int(os.environ.get("TARS_RAG_CUTS", "20"))
POLICIES = ("nothing", "everything", "names", "bytes", "some", "some", "some")
WORKERS = 2
THRESHOLDS = (1000, 10)  # Chroma's own, and one with which it saves its vectors all the time


@dataclass
class Recording:
    root: Path
    calls: list[Call]

    @property
    def log(self) -> str:
        return str(self.root / "log")


@pytest.fixture(scope="module", params=THRESHOLDS)
def recording(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Recording:
    return record(tmp_path_factory.mktemp("power"), request.param)


def record(base: Path, threshold: int) -> Recording:
    root = base / "root"
    root.mkdir()
    child = Path(__file__).with_name("power_child.py")
    numbers = ("1", str(threshold), "12")
    power_cut.record(
        base / "trace", [str(child), str(root / "new" / "store"), str(root / "log"), *numbers]
    )
    return Recording(root, list(power_cut.calls(base / "trace", root)))


@dataclass
class State:
    """One directory as a power cut may leave it, and what must be in its store."""

    directory: Path
    what: str
    ledger: Ledger
    idle: bool


def states(
    recording: Recording,
    kind: str,
    number: int,
    seed: int,
    where: Path,
    deaf: Callable[[str], bool] = lambda path: False,
) -> Iterator[State]:
    """As many states, cut right after acknowledgements, around fsyncs and renames, and anywhere."""
    rng = random.Random(seed)
    known = recording.calls
    acknowledged = [n for n, call in enumerate(known) if call.path == recording.log]
    turning = [n for n, c in enumerate(known) if c.name in power_cut.SYNCS or "rename" in c.name]
    before = [n - 1 for n in turning if n]
    groups = (acknowledged, turning, before, range(len(known)))
    cuts: dict[int, list[str]] = {}
    for turn in range(number):
        cuts.setdefault(rng.choice(groups[turn % 4]), []).append(rng.choice(POLICIES))
    disk, ledger = Disk(recording.root, kind, deaf), Ledger()
    idle = False  # everything is acknowledged, and the store is open
    for place, call in enumerate(known):
        disk.play(call)
        if call.path == recording.log and call.name == "write":
            message = json.loads(call.strings[0][1])
            ledger.hear(message)
            idle = message in ("open", "done")
        for policy in cuts.get(place, ()):
            name = Path(call.path).relative_to(recording.root)
            what = f"{kind}, {policy}, after {call.name} {name} (line {call.ended})"
            directory = where / f"state{place}-{rng.getrandbits(32)}"
            disk.write_to(directory, rng, policy)
            yield State(directory, what, deepcopy(ledger), idle)


def check_states(pipe: Connection) -> None:
    """Answer for each state what is wrong; in a child, because some damage kills the process."""
    seal.boot_id = lambda: "after the power cut"
    # The disk is the same: a copy would be compared whole.
    store_state.State.moved = lambda self, path: False
    with contextlib.suppress(EOFError):
        while True:
            state = pipe.recv()
            try:
                path = state.directory / "new" / "store"
                flushing = (path / JOURNAL).exists()  # small writes, in the background
                rebuilt = state.ledger.check(path, passage("after", 7))
                assert not (rebuilt and state.idle and not flushing), (
                    "vectors that were sealed were made anew"
                )
                pipe.send((rebuilt, None))
            except BaseException:
                pipe.send((0, traceback.format_exc(limit=-3)))


class Checker:
    """A child that checks states; another takes its place when one kills it."""

    context = multiprocessing.get_context("forkserver")

    def __init__(self) -> None:
        self.context.set_forkserver_preload(["store_child", "tantivy"])
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = self.context.Pipe()
        self.child = self.context.Process(target=check_states, args=(theirs,))
        self.child.start()
        theirs.close()

    def __call__(self, state: State) -> tuple[int, str | None]:
        self.pipe.send(state)
        try:
            if not self.pipe.poll(120):
                self.child.kill()
            return self.pipe.recv()
        except EOFError:
            self.child.join()
            code = self.child.exitcode
            self._start()
            return 0, f"the process died: {code}"

    def close(self) -> None:
        self.pipe.close()
        self.child.join()


def losses(source: Iterator[State]) -> tuple[list[str], int]:
    """What is wrong with which states, and in how many the vectors were made anew."""
    wrong, anew = [], 0
    with ThreadPoolExecutor(WORKERS) as pool, contextlib.ExitStack() as stack:
        checkers = [stack.enter_context(contextlib.closing(Checker())) for _ in range(WORKERS)]
        while batch := list(itertools.islice(source, WORKERS)):
            answers = pool.map(lambda check, state: check(state), checkers, batch)
            for state, (rebuilt, problem) in zip(batch, answers, strict=True):
                anew += rebuilt > 0
                if problem:
                    wrong.append(f"{state.what}: {problem}")
                shutil.rmtree(state.directory)
    return wrong, anew


def test_the_replay_of_a_recording_ends_where_the_disk_did(
    recording: Recording, tmp_path: Path
) -> None:
    """Otherwise a call is missed, and the states are none that a disk could have."""
    disk = Disk(recording.root, "posix")
    for call in recording.calls:
        disk.play(call)
    disk.write_to(tmp_path / "replayed", random.Random(0), "everything")
    assert contents(tmp_path / "replayed") == contents(recording.root)


def contents(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
    }


@pytest.mark.parametrize("kind", ["posix", "ext4"])
def test_a_power_cut_loses_nothing_acknowledged(
    recording: Recording, kind: str, tmp_path: Path
) -> None:
    wrong, anew = losses(states(recording, kind, CUTS, 1, tmp_path))
    print(f"{kind}: {CUTS} states, vectors made anew in {anew}")
    assert not wrong, f"{len(wrong)} of {CUTS}\n" + "\n".join(wrong)


@pytest.mark.parametrize("ignored", ["/new/store", "/chroma.sqlite3", "/write-ahead.log"])
def test_where_a_disk_ignores_an_fsync_the_same_test_fails(
    recording: Recording, ignored: str, tmp_path: Path
) -> None:
    """The store's directory, Chroma's database and the log must be durable in time.

    The journal need not: without it the indexes' own states say that they differ.
    """
    source = states(recording, "posix", 40, 1, tmp_path, lambda path: path.endswith(ignored))
    assert losses(source)[0]
