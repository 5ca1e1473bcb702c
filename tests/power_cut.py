"""A file system after a power cut, made from a trace of what processes did to the real one.

SQLite's crash tests put such a layer under the database. Chroma and tantivy leave no place for
one, so `strace` records every call that changes a directory, and `Disk` replays the calls and
keeps apart what is durable and what a power cut may still take.

Two kinds of disk:

- "posix": what POSIX promises and no more. An fsync saves the bytes and the size of its file, or
  the names in its directory. Of all else any part may be on disk, in any order.
- "ext4": names change in one order, and an fsync carries every older change with it.

On both, bytes that were not fsync'd arrive in sectors of 512 bytes, each old, new, or as it was in
between; a file that grew may have its new size and zeros in place of the bytes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeAlias

SECTOR = 512
CHANGES = (
    "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,truncate,ftruncate,fallocate,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "fsync,fdatasync,lseek,mmap,copy_file_range,sendfile"
)
OTHERS = "clone,clone3,read"  # whose descriptors a thread has, and where in a file it writes
OPENS = ("open", "openat", "creat")
SYNCS = ("fsync", "fdatasync")

_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\w+)(?:<(.*)>)?")
_CLONE = re.compile(r"(\d+) +(?:clone3?\((.*)|<\.\.\. clone3? resumed>.*)")
_UNFINISHED = re.compile(r"(\d+) +(\w+\(.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")
_STRING = re.compile(r'(?:(?:\d+|AT_FDCWD)<([^<>]*)>, )?"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_DESCRIPTOR = re.compile(r"(\d+)<([^<>]*)>")


def can_record() -> bool:
    """Whether strace is installed, and allowed to trace: in some containers it is not."""
    command = ["strace", "-f", "--seccomp-bpf", "-o", os.devnull, "true"]
    if shutil.which("strace") is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def record(trace: Path, arguments: Sequence[str]) -> None:
    """Run a Python program and write what it and its children did to files into `trace`."""
    command = ["strace", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "100000000", "-o", str(trace)]
    command += ["-e", f"trace={CHANGES},{OTHERS}", "-e", "raw=read"]  # read what, it does not say
    subprocess.run([*command, sys.executable, *arguments], check=True)


@dataclass(frozen=True)
class Call:
    """One system call that succeeded; it began and ended at these lines of the trace."""

    process: str
    name: str
    arguments: str
    strings: list[tuple[str, bytes]]  # (directory of the descriptor before it, the string)
    result: int
    result_path: str
    began: int
    ended: int

    @property
    def paths(self) -> list[str]:
        return [str(Path(base, os.fsdecode(text))) for base, text in self.strings]

    @property
    def descriptor(self) -> tuple[int, str]:
        """Number and path of the first file descriptor among the arguments; (-1, "") if none."""
        found = _DESCRIPTOR.search(self.arguments)
        return (int(found[1]), _plain(found[2])) if found else (-1, "")

    @property
    def path(self) -> str:
        """What the call is about."""
        return self.result_path or self.descriptor[1] or self.paths[-1]

    @property
    def last(self) -> int:
        """The last argument."""
        return int(self.arguments.split(", ")[-1])


def calls(trace: Path, below: Path) -> Iterator[Call]:
    """The calls that had to do with anything under `below`, in the order in which they ended."""
    waiting: dict[str, tuple[int, str]] = {}
    opened: dict[tuple[str, int], str] = {}
    starters = _starters(trace)
    with trace.open(encoding="ascii") as lines:
        for number, raw in enumerate(lines):
            began, line = number, raw.rstrip("\n")
            if match := _UNFINISHED.fullmatch(line):
                waiting[match[1]] = number, match[2]
                continue
            if match := _RESUMED.fullmatch(line):
                began, start = waiting.pop(match[1])
                line = f"{match[1]} {start}{match[2]}"
            match = _LINE.match(line)
            if match is None or match[4].startswith("-"):
                continue  # a call that failed, a signal, an exit
            process, arguments = match[1], match[3]
            while process in starters:
                process = starters[process]
            if match[2] == "read":  # raw: the descriptor is a bare number
                descriptor = int(arguments.split(",")[0], 0)
                arguments = f"{descriptor}<{opened.get((process, descriptor), '')}>"
            strings = []
            for base, text, cut in _STRING.findall(arguments):
                assert not cut, "strace shortened a string"
                strings.append((_plain(base), _bytes(text)))
            made = _plain(match[5] or "").removesuffix(" (deleted)")
            result = int(match[4], 0)
            call = Call(process, match[2], arguments, strings, result, made, began, number)
            if call.name in OPENS:
                opened[process, call.result] = made
            about = [made, call.descriptor[1], *(call.paths if "write" not in call.name else ())]
            if any(f"{path}/".startswith(f"{below}/") for path in about):
                yield call


def _starters(trace: Path) -> dict[str, str]:
    """{thread: the one that started it}: they share their descriptors."""
    found, flags = {}, {}
    with trace.open(encoding="ascii") as lines:
        for line in lines:
            if match := _CLONE.match(line):
                flags[match[1]] = match[2] or flags[match[1]]
                thread = line.rpartition(" = ")[2].strip()
                if "CLONE_THREAD" in flags[match[1]] and thread.isdigit():
                    found[thread] = match[1]
    return found


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _plain(text: str) -> str:
    return os.fsdecode(_bytes(text)) if text.startswith("\\x") else text


@dataclass(eq=False)
class File:
    """Durable bytes, and what was written since: for each sector a list of pieces, oldest first."""

    durable: bytearray = field(default_factory=bytearray)
    pieces: dict[int, list[tuple[int, int, bytes]]] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.sizes[-1][1] if self.sizes else len(self.durable)

    def write(self, line: int, start: int, data: bytes) -> None:
        end = start + len(data)
        for sector in range(start // SECTOR, -(-end // SECTOR)):
            first, last = max(start, sector * SECTOR), min(end, (sector + 1) * SECTOR)
            piece = (line, first, data[first - start : last - start])
            self.pieces.setdefault(sector, []).append(piece)
        if end > self.size:
            self.sizes.append((line, end))

    def truncate(self, line: int, size: int) -> None:
        self.write(line, size, bytes(max(0, self.size - size)))
        self.sizes.append((line, size))

    def sync(self, before: int) -> None:
        """What was written before that line is durable."""
        self.durable = bytearray(self.image(lambda lines: sum(line < before for line in lines)))
        for sector, pieces in list(self.pieces.items()):
            self.pieces[sector] = [piece for piece in pieces if piece[0] >= before]
            if not self.pieces[sector]:
                del self.pieces[sector]
        self.sizes = [size for size in self.sizes if size[0] >= before]

    def image(
        self,
        count: Callable[[list[int]], int],
        size_count: Callable[[list[int]], int] | None = None,
    ) -> bytes:
        """The bytes, where of each sector's pieces, and of the sizes, the first so many are there.

        The pieces of one sector arrive in order, because a sector is written as it is in memory.
        """
        kept = (size_count or count)([line for line, _ in self.sizes])
        size = self.sizes[kept - 1][1] if kept else len(self.durable)
        content = bytearray(self.durable).ljust(max(size, self.size), b"\0")
        for pieces in self.pieces.values():
            for _, start, data in pieces[: count([line for line, _, _ in pieces])]:
                content[start : start + len(data)] = data
        return bytes(content[:size]).ljust(size, b"\0")


@dataclass(eq=False)
class Directory:
    names: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)


Node: TypeAlias = "File | Directory"
Change: TypeAlias = "tuple[Directory, str, Node | None]"


class Disk:
    """What the calls on `root` did, and what of it would outlast a power cut.

    Args:
        root: A directory that was there, empty, before the first call.
        kind: "posix" or "ext4".
        deaf: Says of which paths the fsync is ignored, to see what would be lost without it.
    """

    def __init__(
        self, root: Path, kind: str, deaf: Callable[[str], bool] = lambda path: False
    ) -> None:
        self.root, self.kind, self.deaf = root, kind, deaf
        self.top = Directory()
        self.pending: list[tuple[int, list[Change]]] = []  # names; oldest first
        self.offsets: dict[tuple[str, int], int] = {}  # by process and descriptor

    def play(self, call: Call) -> None:
        """Do to this disk what the call did to the real one."""
        number, path = call.descriptor
        if path.endswith(" (deleted)"):
            return  # no name leads to it: not to be found after a power cut
        if call.name in OPENS:
            self._open(call)
        elif call.name == "read":
            self.offsets[call.process, number] += call.result
        elif call.name == "lseek":
            self.offsets[call.process, number] = call.result
        elif call.name in ("write", "writev"):
            start = self.offsets[call.process, number]
            self.offsets[call.process, number] = start + call.result
            self._write(call, self._file(path), start)
        elif call.name == "pwrite64":
            self._write(call, self._file(path), call.last)
        elif call.name == "ftruncate":
            self._file(path).truncate(call.ended, call.last)
        elif call.name in SYNCS:
            if not self.deaf(path):
                self._sync(self._find(path), call.began)
        elif call.name in ("rename", "renameat", "renameat2"):
            old, new = call.paths
            (source, name), (target, new_name) = self._parent(old), self._parent(new)
            node = source.names[name]
            self._change(call, [(target, new_name, node), (source, name, None)])
        elif call.name in ("unlink", "unlinkat", "rmdir"):
            self._change(call, [(*self._parent(call.paths[0]), None)])
        elif call.name in ("mkdir", "mkdirat"):
            self._change(call, [(*self._parent(call.paths[0]), Directory())])
        elif call.name == "mmap":
            shared_write = "MAP_SHARED" in call.arguments and "PROT_WRITE" in call.arguments
            assert not shared_write, f"{path} is written through memory: not simulated"
        else:
            message = f"{call.name} on {path}: not simulated"
            raise NotImplementedError(message)

    def write_to(self, directory: Path, rng: Random, policy: str) -> None:
        """Make `directory` what a power cut now may leave.

        Args:
            directory: To be made.
            rng: Decides where there is a choice.
            policy: What is on disk of all that was not fsync'd: "nothing", "everything", "names"
                (and sizes, but no bytes), "bytes" (of files that have their names) or "some".
        """
        held = {"nothing": 0.0, "everything": 1.0, "names": 1.0, "bytes": 0.0}
        share = held.get(policy)
        trees: dict[Directory, dict[str, Node]] = {}
        upto = rng.randint(0, len(self.pending)) if share is None else share * len(self.pending)
        for place, (_, changes) in enumerate(self.pending):
            if rng.random() < 0.5 if share is None and self.kind == "posix" else place < upto:
                for where, name, node in changes:
                    _set(trees.setdefault(where, dict(where.durable)), name, node)

        def count(lines: list[int]) -> int:
            if policy == "some":
                return rng.choice((0, len(lines), rng.randint(0, len(lines))))
            return len(lines) if policy in ("everything", "bytes") else 0

        def size_count(lines: list[int]) -> int:
            return len(lines) if policy == "names" else count(lines)

        def write(node: Node, path: Path) -> None:
            if isinstance(node, File):
                path.write_bytes(node.image(count, size_count))
                return
            path.mkdir()
            for name, child in trees.get(node, node.durable).items():
                write(child, path / name)

        write(self.top, directory)

    def _open(self, call: Call) -> None:
        if Path(call.result_path) == self.root:
            return
        parent, name = self._parent(call.result_path)
        node = parent.names.get(name)
        if node is None and "O_CREAT" in call.arguments:
            node = File()
            self._change(call, [(parent, name, node)])
        assert node is not None, f"{call.result_path} came from nowhere"
        if isinstance(node, File):
            if "O_TRUNC" in call.arguments and node.size:
                node.truncate(call.ended, 0)
            assert "O_APPEND" not in call.arguments, "appending: not simulated"
            self.offsets[call.process, call.result] = 0

    @staticmethod
    def _write(call: Call, file: File, start: int) -> None:
        data = b"".join(text for _, text in call.strings)
        file.write(call.ended, start, data[: call.result])

    def _change(self, call: Call, changes: list[Change]) -> None:
        for directory, name, node in changes:
            _set(directory.names, name, node)
        self.pending.append((call.ended, changes))

    def _sync(self, node: Node, before: int) -> None:
        """Make durable what was done to a file or directory before that line."""
        grew = isinstance(node, File) and bool(node.sizes)
        if isinstance(node, File):
            node.sync(before)
        older = [change for change in self.pending if change[0] < before]
        mine = [any(node in (c[0], c[2]) for c in changes) for _, changes in older]
        if self.kind == "ext4":
            # New bytes need blocks, and so a commit of everything; overwriting need not commit.
            upto = len(older) if grew else max((n for n, m in enumerate(mine, 1) if m), default=0)
            chosen = older[:upto]
        else:
            chosen = [entry for entry in older if any(c[0] is node for c in entry[1])]
        for entry in chosen:
            self.pending.remove(entry)
            for directory, name, child in entry[1]:
                _set(directory.durable, name, child)

    def _parent(self, path: str) -> tuple[Directory, str]:
        parts = Path(path).relative_to(self.root).parts
        node: Node = self.top
        for part in parts[:-1]:
            assert isinstance(node, Directory)
            node = node.names[part]
        assert isinstance(node, Directory)
        return node, parts[-1]

    def _find(self, path: str) -> Node:
        if Path(path) == self.root:
            return self.top
        parent, name = self._parent(path)
        return parent.names[name]

    def _file(self, path: str) -> File:
        node = self._find(path)
        assert isinstance(node, File)
        return node


def _set(names: dict[str, Node], name: str, node: Node | None) -> None:
    names.pop(name, None)
    if node is not None:
        names[name] = node
