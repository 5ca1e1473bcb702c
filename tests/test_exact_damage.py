"""The files of an exact index: damage is noticed, a write is whole or not, readers see one."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.exact import code_directory, rows
from tars_rag.retrieval.indexes.exact.index import ExactIndex

pytestmark = pytest.mark.slow

DIM = 10


def make(path: Path) -> ExactIndex:
    """Three commits: 20 rows, 5 replaced and 3 removed, and 7 more."""
    rng = np.random.default_rng(1)
    index = ExactIndex(path, DIM)
    index.add([f"p{place}" for place in range(20)], rng.standard_normal((20, DIM)))
    index.commit("1")
    index.add([f"p{place}" for place in range(5)], rng.standard_normal((5, DIM)))
    index.remove(["p7", "p8", "p9"])
    index.commit("2")
    index.add([f"q{place}" for place in range(7)], rng.standard_normal((7, DIM)))
    index.commit("3")
    return index


def content(index: ExactIndex) -> tuple[Any, ...]:
    vectors = {key: row.tobytes() for key, row in index.vectors(index.ids()).items()}
    answer = index.nearest(np.arange(1.0, DIM + 1), 100)
    return vectors, answer, index.generation, index.digest, index.stamp


def opened(path: Path, *, read_only: bool = False) -> tuple[Any, ...]:
    index = ExactIndex(path, DIM, read_only=read_only)
    found = content(index)
    index.close()
    return found


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    expected = content(make(tmp_path / "codes"))
    path = tmp_path / "codes/rows-1.log"
    whole = path.read_bytes()
    silent = 0
    for place in range(len(whole)):
        hurt = bytearray(whole)
        hurt[place] ^= 1 << place % 8
        path.write_bytes(hurt)
        problem = ExactIndex.damage(tmp_path / "codes")
        if problem is None:
            silent += 1
            assert opened(tmp_path / "codes", read_only=True) == expected
        elif place % 50 == 0:
            with pytest.raises(rows.DamageError, match="--repair"):
                ExactIndex(tmp_path / "codes", DIM)
    assert silent < 512  # what is unused in the head
    path.write_bytes(whole)
    assert opened(tmp_path / "codes") == expected


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    make(tmp_path / "codes")
    path = tmp_path / "codes/rows-1.log"
    for size in range(0, path.stat().st_size, 7):
        (tmp_path / "cut").mkdir()
        (tmp_path / "cut/rows-1.log").write_bytes(path.read_bytes()[:size])
        assert ExactIndex.damage(tmp_path / "cut")
        shutil.rmtree(tmp_path / "cut")
    path.unlink()
    assert ExactIndex.damage(tmp_path / "codes") == "the row file is missing"


def test_ids_of_a_file_that_is_cut_off_while_it_is_open_are_right_or_refused(
    tmp_path: Path,
) -> None:
    index = make(tmp_path / "codes")
    expected, path = index.ids(), tmp_path / "codes/rows-1.log"
    refused = []
    for size in range(path.stat().st_size, 0, -1):
        os.truncate(path, size)
        try:
            assert index.ids() == expected
        except rows.DamageError:
            refused.append(size)
    assert len(refused) == refused[0] > 512  # from the end of the last id on, past the head


@pytest.mark.parametrize("how", ["flip", "truncate", "delete", "empty", "zeros", "longer"])
@pytest.mark.parametrize("read_only", [True, False])
def test_codes_that_do_not_fit_are_made_again(how: str, read_only: bool, tmp_path: Path) -> None:
    expected = content(make(tmp_path / "codes"))
    path = tmp_path / "codes/codes-1.bin"
    whole = path.read_bytes()
    hurt = {
        "flip": whole[:77] + bytes([whole[77] ^ 64]) + whole[78:],
        "truncate": whole[: 15 * DIM + 3],
        "empty": b"",
        "zeros": bytes(len(whole)),
        "longer": whole + bytes(100),
    }
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes(hurt[how])
    assert ExactIndex.damage(tmp_path / "codes") is None
    assert opened(tmp_path / "codes", read_only=read_only) == expected
    if not read_only:
        assert path.read_bytes()[: 32 * DIM] == whole[: 32 * DIM]


def test_a_write_that_was_cut_off_is_whole_or_not_there(tmp_path: Path) -> None:
    """The head is written last and not fsync'd: old head, and any part of the batch after it."""
    index = make(tmp_path / "codes")
    path = tmp_path / "codes/rows-1.log"
    before, old = path.read_bytes(), content(index)
    index.add(["new", "p1"], np.eye(2, DIM))
    index.commit("4")
    after, new = path.read_bytes(), content(index)
    index.close()
    head = rows._HEAD_SIZE
    lagging = before[:head] + after[head:]
    for size in range(len(before), len(after) + 1):
        zeros = lagging[:size] + bytes(len(after) - size)
        for image in (lagging[:size], zeros):
            path.write_bytes(image)
            whole = image == lagging
            assert ExactIndex.damage(tmp_path / "codes") is None
            assert opened(tmp_path / "codes", read_only=True) == (new if whole else old)
        if size % 20 == 0 and not whole:
            assert opened(tmp_path / "codes") == old
            assert path.stat().st_size == len(before)


def test_bytes_of_an_older_file_are_no_batch(tmp_path: Path) -> None:
    """A batch that was cut off and comes back behind a newer one is not taken for the next."""
    index = make(tmp_path / "codes")
    path = tmp_path / "codes/rows-1.log"
    start = path.stat().st_size
    index.add(["x"], np.eye(1, DIM))
    index.commit("x")
    one = path.read_bytes()
    index.add(["y"], np.eye(1, DIM))
    index.commit("y")
    two = path.read_bytes()
    index.close()
    other = rows._HEAD_SIZE
    path.write_bytes(one[:other] + one[other:start] + two[len(one) :] + one[start:])
    assert ExactIndex.damage(tmp_path / "codes")
    shutil.rmtree(tmp_path / "codes")
    expected = content(make(tmp_path / "codes"))
    with path.open("ab") as stream:
        stream.write(two[start:])
    assert opened(tmp_path / "codes") == expected


@pytest.mark.parametrize("name", ["fdatasync", "pwrite", "ftruncate"])
def test_a_write_that_fails_changes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make(tmp_path / "codes")
    before = content(index)

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    index.add([f"new {place}" for place in range(3000)], np.ones((3000, DIM)))
    index.remove(["p1"])
    with monkeypatch.context() as context:
        context.setattr(os, name, fail)
        with pytest.raises(StoreError, match="No space left"):
            index.commit("4")
    assert content(index) == before
    assert opened(tmp_path / "codes", read_only=True)[0] == before[0]
    index.commit("4")
    assert index.count() == 17 + 7 + 3000 - 1
    assert opened(tmp_path / "codes") == content(index)


def test_a_compaction_that_fails_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index = make(tmp_path / "codes")
    monkeypatch.setattr(code_directory, "_DEAD", 0)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    index.remove([f"p{place}" for place in range(20)])
    with monkeypatch.context() as context:
        context.setattr(Path, "rename", fail)
        index.commit("4")
    assert "No space left" in caplog.text
    assert [path.name for path in sorted((tmp_path / "codes").iterdir())] == [
        "codes-1.bin",
        "rows-1.log",
    ]
    expected = content(index)
    assert len(expected[0]) == 7
    index.commit("5")
    assert [path.name for path in sorted((tmp_path / "codes").iterdir())] == [
        "codes-2.bin",
        "rows-2.log",
    ]
    assert opened(tmp_path / "codes")[:2] == expected[:2]


def test_an_older_copy_is_told_by_its_generation_and_digest(tmp_path: Path) -> None:
    index = make(tmp_path / "codes")
    shutil.copytree(tmp_path / "codes", tmp_path / "old")
    for path in (tmp_path / "codes", tmp_path / "old"):
        copy = ExactIndex(path, DIM)
        assert copy.digest == index.digest
        copy.add(["x"], np.full((1, DIM), 1 + (path.name == "old")))
        copy.commit("4")
        copy.close()
    one, two = opened(tmp_path / "codes"), opened(tmp_path / "old")
    assert one[2] == two[2] == index.generation + 1
    assert len({one[3], two[3], index.digest}) == 3


def test_readers_see_one_commit_whatever_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are replaced by each commit: no search may see rows of two, nor of none."""
    monkeypatch.setattr(code_directory, "_DEAD", 300)
    monkeypatch.setattr(code_directory, "_BATCHES", 10)
    rng = np.random.default_rng(0)
    ids = [f"p{place:03}" for place in range(200)]
    index = ExactIndex(tmp_path / "codes", DIM)
    # Every row of a version has the same, the version's own, cosine with the query.
    query, other = np.eye(2, DIM)
    versions = [np.cos(angle) * query + np.sin(angle) * other for angle in np.linspace(0.1, 1, 60)]
    index.add(ids, np.repeat(versions[:1], 200, axis=0))
    index.commit("0")
    follower = ExactIndex(tmp_path / "codes", DIM, read_only=True)
    stop, problems, looks = threading.Event(), [], [0]

    def look(which: ExactIndex, follow: bool) -> None:
        try:
            while not stop.is_set():
                if follow:
                    which.refresh()
                found = which.nearest(query, 300)
                some = which.nearest(query, 3, ids[50:60])
                held = which.vectors(ids)
                looks[0] += 1
                assert [key for key, _ in found] == ids
                assert len({score for _, score in found}) == 1
                assert [key for key, _ in some] == ids[50:53]
                assert len({row.tobytes() for row in held.values()}) == 1
        except BaseException as error:
            problems.append(error)
            raise

    threads = [threading.Thread(target=look, args=(index, False)) for _ in range(3)]
    threads.append(threading.Thread(target=look, args=(follower, True)))
    for thread in threads:
        thread.start()
    for number, version in enumerate(versions[1:], 1):
        order = rng.permutation(200)
        index.add([ids[place] for place in order], np.repeat([version], 200, axis=0))
        index.commit(str(number))
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert looks[0] > 20
    follower.refresh()
    assert content(follower) == content(index)
    assert not (tmp_path / "codes/rows-1.log").exists()
