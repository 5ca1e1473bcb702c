"""The log: what is durable comes back, what was never acknowledged does not, damage is seen."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage.change import Change
from tars_rag.retrieval.storage.write_ahead_log import WriteAheadLog

BODIES = [b"first", b"second " * 50, b"\xf4wal" * 9, b"fourth", b"x" * 300_000, b"last"]


def opened(path: Path, identity: str = "one") -> tuple[WriteAheadLog, tuple[bytes, ...]]:
    log = WriteAheadLog(path, identity)
    contents = log.read()
    assert contents.damage is None
    log.open()
    return log, contents.records


def filled(path: Path, bodies: list[bytes] = BODIES, *, before: int = 0) -> Path:
    """A log of these records, and with `before` of earlier ones that were forgotten."""
    log, _ = opened(path)
    if before:
        log.append([b"old %d" % n + bytes(before) for n in range(5)])
        log.reset()
    for body in bodies:
        log.append([body])
    log.close()
    return path


@pytest.mark.parametrize("before", [0, 1, 60, 70_000])
def test_records_come_back_until_they_are_forgotten(tmp_path: Path, before: int) -> None:
    path = filled(tmp_path / "log", before=before)
    log, records = opened(path)
    assert records == tuple(BODIES)
    log.append([b"more", b"and more"])
    log.close()
    log, records = opened(path)
    assert records == (*BODIES, b"more", b"and more")
    log.reset()
    log.append([b"new"])
    log.close()
    assert opened(path)[1] == (b"new",)


def test_there_is_no_file_before_the_first_record(tmp_path: Path) -> None:
    log, records = opened(tmp_path / "log")
    log.reset()
    log.close()
    assert records == ()
    assert list(tmp_path.iterdir()) == []


def spans(path: Path) -> list[tuple[int, int]]:
    """Where each record lies, and what says behind it that it is durable."""
    data = path.read_bytes()
    places, start = [], 1024
    for body in BODIES:
        at = data.index(body, start)
        places.append((at - 28, at + len(body)))
        start = at + len(body)
    return places


@pytest.mark.parametrize("place", range(len(BODIES)))
@pytest.mark.parametrize("what", ["marker", "length", "number", "settled", "checksum", "body"])
@pytest.mark.parametrize("before", [0, 70_000])
def test_a_flipped_bit_in_an_acknowledged_record_is_damage(
    tmp_path: Path, place: int, what: str, before: int
) -> None:
    path = filled(tmp_path / "log", before=before)
    start, end = spans(path)[place]
    offsets = {"marker": 0, "length": 4, "number": 9, "settled": 17, "checksum": 25}
    data = bytearray(path.read_bytes())
    data[start + offsets[what] if what in offsets else end - 1] ^= 4
    path.write_bytes(data)
    contents = WriteAheadLog(path, "one").read()
    assert contents.damage == "1 acknowledged writes cannot be read"
    assert contents.records == tuple(body for n, body in enumerate(BODIES) if n != place)


@pytest.mark.parametrize("before", [0, 70_000])
def test_every_damaged_byte_is_seen_or_does_not_matter(tmp_path: Path, before: int) -> None:
    path = filled(tmp_path / "log", [b"a" * 30, b"b" * 40], before=before)
    whole = path.read_bytes()
    for offset in [*range(0, 1300, 7), *range(1300, len(whole), 9973)]:
        data = bytearray(whole)
        data[offset] ^= 0x20
        path.write_bytes(data)
        contents = WriteAheadLog(path, "one").read()
        assert contents.damage or contents.records == (b"a" * 30, b"b" * 40), offset
    for size in (0, 100, 1024, 1100, 4096, 100_000):
        path.write_bytes(whole[:size])
        assert WriteAheadLog(path, "one").read().damage, size


@settings(max_examples=30, deadline=None)
@given(
    kept=st.lists(st.binary(min_size=1, max_size=2000), max_size=4),
    torn=st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_what_a_power_cut_left_of_a_write_is_its_beginning_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, kept: list[bytes], torn: list[bytes], seed: int
) -> None:
    """Sectors of what was not acknowledged arrive in any order."""
    path = filled(tmp_path_factory.mktemp("log") / "log", kept or [b"one"])
    before = path.read_bytes()
    log, records = opened(path)
    log.append(torn)
    log.close()
    after = bytearray(path.read_bytes())
    rng = random.Random(seed)
    for start in range(1024, len(before), 512):
        if rng.random() < 0.5:
            after[start : start + 512] = before[start : start + 512]
    del after[len(before) :]
    path.write_bytes(after)
    found = WriteAheadLog(path, "one").read()
    # The frame that says that all is durable may have arrived, too: then the test has made damage.
    if found.damage is None:
        log, left = opened(path)
        assert left[: len(records)] == records
        assert left[len(records) :] == tuple(torn[: len(left) - len(records)])
        log.append([b"next"])
        log.close()
        assert opened(path)[1] == (*left, b"next")


def test_what_was_never_acknowledged_does_not_come_back_behind_the_next_record(
    tmp_path: Path,
) -> None:
    path = filled(tmp_path / "log", [b"kept"])
    log, _ = opened(path)
    start = log._end
    log.append([b"torn", b"whole"])
    log.close()
    data = bytearray(path.read_bytes())
    data[start : start + 4] = bytes(4)  # the first of the group did not arrive, the second did
    settled = data.rindex(b"\xf4wal")
    data[settled : settled + 28] = bytes(28)
    path.write_bytes(data)
    log, records = opened(path)
    assert records == (b"kept",)
    log.append([b"next"])  # as long as the one that is lost
    log.close()
    assert opened(path)[1] == (b"kept", b"next")


def test_a_write_that_failed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "log", [b"kept"])
    log, _ = opened(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda _: (_ for _ in ()).throw(OSError(5, "a bad disk")))
        with pytest.raises(OSError, match="a bad disk"):
            log.append([b"lost", b"lost too"])
        with pytest.raises(OSError, match="a bad disk"):
            log.append([b"lost as well"])
    log.append([b"next"])
    log.close()
    assert opened(path)[1] == (b"kept", b"next")


def test_a_log_of_another_embedders_vectors_is_refused_if_it_holds_any(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", [b"kept"])
    assert "another embedder" in str(WriteAheadLog(path, "two").read().damage)
    log, _ = opened(path)
    log.reset("two")
    log.close()
    log, records = opened(path, "two")
    log.append([b"theirs"])
    log.close()
    assert records == ()
    assert opened(path, "two")[1] == (b"theirs",)


def test_the_file_does_not_grow_without_end(tmp_path: Path) -> None:
    log, _ = opened(tmp_path / "log")
    for _ in range(3):
        for _ in range(70):
            log.append([bytes(100_000)])
        log.reset()
        assert (tmp_path / "log").stat().st_size <= 4 << 20
    log.close()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(min_size=1), st.text(), st.dictionaries(st.text(), st.integers())),
        max_size=4,
    ),
    st.lists(st.text(min_size=1), max_size=4),
)
def test_a_change_comes_back_as_it_was(
    contents: list[tuple[str, str, dict[str, int]]], deleted: list[str]
) -> None:
    passages = [Passage(*content) for content in contents] + [Passage("\ud800", "\udfff\0")]
    vectors = np.random.default_rng(0).standard_normal((len(passages), 5)).astype(np.float32)
    stored = Change.unpacked(Change.upsert(passages, vectors).packed())
    assert [entry.passage for entry in stored.entries] == passages
    assert (np.stack([entry.vector for entry in stored.entries]) == vectors).all()
    assert Change.unpacked(Change(deleted=tuple(deleted)).packed()).deleted == tuple(deleted)
