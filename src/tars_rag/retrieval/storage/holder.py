"""Who holds a store: what the lock's file says of its holder, and what became of that process.

A pid alone says nothing in a container, on a shared file system, or once it was given to another
process. So the file also names machine, boot, pid namespace and the time the process began; and the
process of Chroma, which may outlive its program and then holds the lock alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path

_PROC = Path("/proc")
_RECORD_BYTES = 512


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lock, or held it last.

    Attributes:
        pid: Of the process, in its own pid namespace.
        host: The name of its machine or container.
        boot: What names the machine, and this boot of it; empty: unknown.
        namespace: Its pid namespace; 0: unknown.
        began: When it began, in ticks since the boot; 0: unknown.
        chroma: Pid of its Chroma process, which has the lock too; 0: none, or not yet.
        shares: It answers others at the store's socket (see `listener`).
    """

    pid: int
    host: str = ""
    boot: str = ""
    namespace: int = 0
    began: int = 0
    chroma: int = 0
    shares: bool = False

    @classmethod
    def this_process(cls, chroma: int = 0, *, shares: bool = False) -> Holder:
        """Us."""
        pid = os.getpid()
        return cls(pid, os.uname().nodename, *_here(), _began(pid), chroma, shares)

    @classmethod
    def of(cls, lock: Path) -> Holder | None:
        """Who holds a lock, by what its file says; None: nobody, or it does not say."""
        try:
            with lock.open("rb") as stream:
                return cls.parsed(stream.read(4096))
        except OSError:
            return None

    @classmethod
    def parsed(cls, record: bytes) -> Holder | None:
        """What a lock's file says; None: nothing. Earlier versions wrote a pid only."""
        try:
            found = json.loads(record)
            if isinstance(found, int):
                return cls(found)
            known = {field.name for field in fields(cls)}
            return cls(**{key: value for key, value in found.items() if key in known})
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None

    @staticmethod
    def nobody() -> bytes:
        """What stands in the lock's file when it was given back."""
        return _padded(None)

    @staticmethod
    def wanted() -> bytes:
        """What stands there when readers have it, and somebody waits: each time something else."""
        return _padded({"wanted": secrets.token_hex(8)})

    def record(self) -> bytes:
        """For the lock's file."""
        return _padded(asdict(self))

    @property
    def is_near(self) -> bool:
        """Whether its pids mean here what they meant there."""
        return not self.boot or (self.boot, self.namespace) == _here()

    @property
    def is_this_process(self) -> bool:
        """Whether it is us."""
        return self.pid == os.getpid() and self.is_near and self._still(self.pid)

    @property
    def is_alive(self) -> bool:
        """Whether the process is still there; only of one that is near."""
        return _exists(self.pid) and self._still(self.pid)

    @property
    def is_stopped(self) -> bool:
        """Whether it is there and does nothing, for it was stopped (SIGSTOP, Ctrl-Z)."""
        return self.is_near and _state(self.pid) in ("T", "t") and self._still(self.pid)

    @property
    def chroma_is_stopped(self) -> bool:
        """Whether its Chroma is there and does nothing, for it was stopped (SIGSTOP, Ctrl-Z)."""
        return self.chroma > 0 and _state(self.chroma) in ("T", "t")

    def where(self) -> str:
        """The process, for people."""
        if self.is_near:
            return f"another process (pid {self.pid})"
        there = f"pid {self.pid} there, host {self.host!r}"
        if self.boot == _here()[0]:
            return f"another container of this machine ({there})"
        return f"another machine or container ({there})"

    def _still(self, pid: int) -> bool:
        return not self.began or _began(pid) in (0, self.began)


def _padded(content: object) -> bytes:
    """JSON of one length, so that writing it anew is one step."""
    return json.dumps(content).encode("ascii").ljust(_RECORD_BYTES - 1) + b"\n"


def processes_with(descriptor: int) -> list[int]:
    """Pids, besides ours, that have the file of a descriptor open, as far as we may see."""
    status = os.fstat(descriptor)
    pids = [int(entry.name) for entry in _PROC.glob("[0-9]*")]
    return [pid for pid in pids if pid != os.getpid() and _has_open(pid, status)]


def _has_open(pid: int, file: os.stat_result) -> bool:
    with contextlib.suppress(OSError):  # the process is gone, or is another user's
        for link in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.path.samestat(link.stat(), file):
                    return True
    return False


def _here() -> tuple[str, int]:
    """The boot and pid namespace of this process; empty and 0 where the system does not tell."""
    boot, namespace = "", 0
    with contextlib.suppress(OSError):
        boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = (_PROC / "self/ns/pid").stat().st_ino
    return boot, namespace


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _status(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, the first being the state; [] if unknown."""
    try:
        return (_PROC / str(pid) / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return []


def _state(pid: int) -> str:
    return (_status(pid) or [""])[0]


def _began(pid: int) -> int:
    status = _status(pid)
    return int(status[19]) if len(status) > 19 else 0
