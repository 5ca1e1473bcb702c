"""Files that a crash never leaves half, and two processes that never write the same one."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tars_rag.files import (
    is_partial,
    publishing,
    replace_directory,
    replacing,
    restore_directory,
    set_aside,
    sha256_of,
    size_of,
    write_atomically,
)

WRITER = """
import sys, time
from pathlib import Path
from tars_rag.files import publishing, replacing
how = {"file": replacing, "directory": publishing}[sys.argv[2]]
with how(Path(sys.argv[1])) as part:
    (part / "half" if part.is_dir() else part).write_text("half")
    print(part.name, flush=True)
    time.sleep(600)
"""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def writer(path: Path, kind: str) -> tuple[subprocess.Popen[str], str]:
    """A process that is in the middle of writing `path`, and the name it writes to."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), kind], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process, process.stdout.readline().strip()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data in (b"one", b"two"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert names(tmp_path) == ["a"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with contextlib.suppress(RuntimeError), replacing(path) as part:
        part.write_bytes(b"half")
        assert names(tmp_path) == sorted(["a", part.name])
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_directory_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "d"
    with contextlib.suppress(RuntimeError), publishing(path) as part:
        (part / "x").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []
    with publishing(path) as part:
        (part / "sub").mkdir()
        (part / "sub" / "x").write_text("whole")
        (part / "link").symlink_to("/nowhere")
        assert not path.exists()
    assert (path / "sub" / "x").read_text() == "whole"
    assert names(tmp_path) == ["d"]


def test_a_directory_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "d"

    def publish() -> None:
        with publishing(path) as part:
            (part / "x").write_text("ours")
            directory(path, "theirs")

    with pytest.raises(OSError):
        publish()
    assert (path / "x").read_text() == "theirs"
    assert names(tmp_path) == ["d"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "name[1]*"  # nothing in a name is a pattern
    how = replacing if kind == "file" else publishing
    process, part = writer(path, kind)
    try:
        assert is_partial(part, path.name)
        with how(path) as ours:
            assert ours.name != part
        assert names(tmp_path) == sorted([path.name, part])
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert names(tmp_path) == sorted([path.name, part])  # SIGKILL: it could not clean up
    if kind == "directory":
        path.rmdir()
    with how(path):
        pass
    assert names(tmp_path) == [path.name]


def test_leftovers_of_other_names_are_left_alone(tmp_path: Path) -> None:
    others = [".b.0123456789ab.partial", ".a.x.partial", "a.partial", ".a.0123456789ab.partial2"]
    for name in others:
        (tmp_path / name).touch()
    write_atomically(tmp_path / "a", b"")
    assert names(tmp_path) == sorted(["a", *others])


def test_many_writers_of_one_name(tmp_path: Path) -> None:
    """Each writes a file of its own: what is there at any time is what one of them wrote."""
    path = tmp_path / "a"
    contents = [bytes([n]) * 100_000 for n in range(4)]
    digests = set()

    def write(data: bytes) -> None:
        for _ in range(15):
            write_atomically(path, data)
            digests.add(sha256_of(path))

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for data in contents:
        write_atomically(path, data)
        digests.discard(sha256_of(path))
    assert digests == set()
    assert names(tmp_path) == ["a"]


def test_nothing_is_written_where_nothing_can_be(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write_atomically(tmp_path / "missing" / "a", b"x")
    assert names(tmp_path) == []


def test_the_size_of_a_directory_that_is_being_written(tmp_path: Path) -> None:
    """As the word index does it: a file that was listed is gone before it is looked at."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to(tmp_path / "model" / "weights")
    (tmp_path / "leads nowhere").symlink_to(tmp_path / "nothing")
    assert size_of(tmp_path) == 2000
    assert size_of(tmp_path / "nothing") == 0
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for name in range(50):
                (tmp_path / f"{name}").write_bytes(bytes(3))
            for name in range(50):
                (tmp_path / f"{name}").unlink()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        sizes = {size_of(tmp_path) for _ in range(500)}
    finally:
        stop.set()
        writer.join()
    assert min(sizes) >= 2000
    assert max(sizes) <= 2150
    assert len(sizes) > 1


def directory(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "x").write_text(content)
    return path


def test_a_directory_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "d"
    for content in ("one", "two"):
        replace_directory(directory(tmp_path / "new", content), target)
        assert (target / "x").read_text() == content
        assert names(tmp_path) == ["d"]


def test_a_directory_whose_replacement_was_cut_short_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies after the old one was set aside and before the new one is in its place."""
    target, new = directory(tmp_path / "d", "old"), directory(tmp_path / "new", "new")
    rename = Path.rename

    def dying(path: Path, to: Path) -> Path:
        if path == new:
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", dying)
    with pytest.raises(KeyboardInterrupt):
        replace_directory(new, target)
    monkeypatch.undo()
    assert not target.exists()
    restore_directory(set_aside(new), target)
    assert (target / "x").read_text() == "old"
    restore_directory(set_aside(new), target)
    assert (target / "x").read_text() == "old"


def test_a_directory_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    target = directory(tmp_path / "d", "old")
    with pytest.raises(OSError):
        replace_directory(tmp_path / "missing", target)
    assert (target / "x").read_text() == "old"
    assert names(tmp_path) == ["d"]
