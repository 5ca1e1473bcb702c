"""What this machine is, whether its NPU can be used, and if not: why, and what mends it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tars_rag import advice
from tars_rag.errors import ConfigError
from tars_rag.guests import RKNN, Guest
from tars_rag.runtimes.cores import big_cores
from tars_rag.runtimes.npu import interpreter
from tars_rag.runtimes.npu.gate import MIN_DRIVER
from tars_rag.runtimes.npu.interpreter import Interpreter
from tars_rag.runtimes.npu.kernel import Finding, findings, look
from tars_rag.runtimes.npu.library import GET, PUBLIC_VERSION, Library, find_library, numbers

_DRIVER_VERSIONS = (
    "sys/kernel/debug/rknpu/version",
    "proc/rknpu/version",
    "sys/module/rknpu/version",
)
_VERSION = re.compile(r"(\d+\.\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Machine:
    """What `probe` found. None or empty: not there."""

    model: str | None
    soc: str | None
    npu_cores: int
    driver: str | None
    device_nodes: tuple[str, ...]
    library: str | None
    library_version: str | None
    wheel: str | None
    python: str
    container: bool
    governors: tuple[str, ...]
    npu_governor: str | None
    npu_frequency_mhz: int | None
    cpu_cores: int
    big_cores: tuple[int, ...]
    memory_mb: int | None
    memory_available_mb: int | None
    findings: tuple[Finding, ...]
    npu_python: str | None = None

    @property
    def has_npu(self) -> bool:
        """Whether the SoC has an NPU that this package knows, usable or not."""
        return self.npu_cores > 0

    @property
    def reason(self) -> str:
        """Why the NPU cannot be used, in one line; empty if it can."""
        if not self.has_npu:
            return "this machine has no Rockchip NPU; everything runs on the CPU"
        errors = [f"{f.what}: {f.fix}" for f in self.findings if f.level == "error"]
        return "; ".join(errors)

    def core_masks(self, core_mask: str) -> tuple[int, ...]:
        """One mask for each core that NPU_CORE_MASK allows: every core has a worker of its own.

        A SoC with a single core takes no mask but 0.

        Raises:
            ConfigError: It names a core that this SoC does not have.
        """
        if self.npu_cores <= 1:
            return (0,)
        if core_mask in ("auto", "all"):
            return tuple(1 << n for n in range(self.npu_cores))
        wanted = [int(n) for n in core_mask.split("_")]
        if max(wanted) >= self.npu_cores:
            msg = (
                f"NPU_CORE_MASK={core_mask} names a core that {self.soc} does not have: it has "
                f"{self.npu_cores}. Use auto."
            )
            raise ConfigError(msg)
        return tuple(1 << n for n in wanted)


def probe(
    root: Path = Path("/"),
    *,
    wheel: str | None = None,
    python: tuple[int, ...] = sys.version_info[:2],
    may_use: Callable[[Path], bool] | None = None,
    other: Interpreter | None = None,
) -> Machine:
    """Look at the machine. Reads a few files; opens no device.

    Args:
        root: Where the file system begins.
        wheel: The wheel's version; None: ask the installed packages.
        python: The interpreter's version.
        may_use: Whether a device node may be read and written.
        other: Another Python that runs the NPU; None: what `interpreter.find` finds.
    """
    if root == Path("/"):
        wheel = wheel or RKNN.installed
        other = other or interpreter.find()
    if other:
        wheel = other.wheel
    may_use = may_use or (lambda path: os.access(path, os.R_OK | os.W_OK))
    kernel = look(root)
    library = find_library(root)
    driver = next((v for name in _DRIVER_VERSIONS if (v := _version(_text(root / name)))), None)
    version = library.version if library else None
    npu = next(iter(sorted((root / "sys/class/devfreq").glob("*npu*"))), None)
    frequency = _number(npu / "cur_freq") if npu else None
    policies = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_governor"))
    memory = _memory(root)
    problems = [*_slow(policies, root)]
    if kernel.npu_cores:
        problems += [
            *findings(kernel, may_use, root),
            *_driver(driver),
            *_runtime(library, wheel),
            *(_other(other) if other else _wheel(wheel, python)),
        ]
    return Machine(
        model=_text(root / "proc/device-tree/model") or None,
        soc=kernel.soc,
        npu_cores=kernel.npu_cores,
        driver=driver,
        device_nodes=tuple("/" + str(n.relative_to(root)) for n in kernel.nodes),
        library="/" + str(library.path.relative_to(root)) if library else None,
        library_version=version,
        wheel=wheel,
        python=".".join(map(str, python)),
        container=kernel.container,
        governors=tuple(sorted({_text(p) for p in policies})),
        npu_governor=_text(npu / "governor") or None if npu else None,
        npu_frequency_mhz=frequency // 1_000_000 if frequency else None,
        cpu_cores=os.cpu_count() or 1,
        big_cores=tuple(big_cores(root / "sys")),
        memory_mb=memory.get("MemTotal"),
        memory_available_mb=memory.get("MemAvailable"),
        findings=tuple(problems),
        npu_python=str(other.path) if other else None,
    )


def _driver(version: str | None) -> list[Finding]:
    if version is None or numbers(version) >= MIN_DRIVER:
        return []  # the version is readable for root only on many kernels: not knowing is fine
    least = ".".join(map(str, MIN_DRIVER))
    what = f"NPU driver {version} is older than {least}"
    why = "only core 0 is used with it: the other cores of an RK3588 fail, or freeze the machine"
    return [Finding("warning", what, why, "sudo apt-get update && sudo apt-get full-upgrade")]


def _runtime(library: Library | None, wheel: str | None) -> list[Finding]:
    fix = GET
    if wheel and numbers(wheel)[:2] != numbers(PUBLIC_VERSION)[:2]:
        fix += f" && pip install {RKNN.name}=={PUBLIC_VERSION}"
    if library is None:
        why = "the wheel loads the NPU through it, from /usr/lib only"
        return [Finding("error", "librknnrt.so is not in /usr/lib", why, fix)]
    if library.unreadable:
        what = f"{library.path} cannot be read ({library.unreadable})"
        fix = f"sudo chmod a+rx /usr /usr/lib && sudo chmod a+r {library.path}"
        return [Finding("error", what, "the wheel loads the NPU through it", fix)]
    if not library.is_elf:
        what = f"{library.path.name} is not a library"
        return [Finding("error", what, "it cannot be loaded", fix)]
    if library.version and wheel and numbers(library.version)[:2] != numbers(wheel)[:2]:
        what = f"librknnrt {library.version} does not match {RKNN.name} {wheel}"
        why = "calls of one may mean something else to the other"
        if RKNN.is_tested(library.version):
            fix = f"pip install {RKNN.name}=={library.version}"
        return [Finding("warning", what, why, fix)]
    return []


def _wheel(wheel: str | None, python: tuple[int, ...]) -> list[Finding]:
    if wheel is None:
        why = "Python reaches the NPU through it"
        fix = advice.install("npu")
        if python >= (3, 13):
            why += f"; there is none for Python {python[0]}.{python[1]}"
            fix = (
                f"{interpreter.INSTALL}  (a Python of its own for the NPU; or another one for all, "
                "and tars-rag anew in it: uv venv --python 3.12 .venv  or python3.12 -m venv .venv)"
            )
        return [Finding("error", f"{RKNN.name} is not installed", why, fix)]
    return untested(RKNN, wheel)


def _other(other: Interpreter) -> list[Finding]:
    """Of another Python that is to run the NPU."""
    whose = f"{interpreter.VARIABLE} ({other.path})"
    if other.path == interpreter.python_of(interpreter.home()):
        whose = f"the NPU's Python ({other.path})"
    fix = f"{interpreter.INSTALL} --again && unset {interpreter.VARIABLE}"
    if other.problem:
        why = "the NPU's processes are run by it"
        return [Finding("error", f"{whose} cannot be run: {other.problem}", why, fix)]
    lacks = [name for name, v in ((RKNN.name, other.wheel), ("numpy", other.numpy)) if not v]
    if not lacks:
        return untested(RKNN, other.wheel or "")
    version = ".".join(map(str, other.version))
    why = "the NPU's processes are run by it, and need both"
    if other.version not in interpreter.VERSIONS:
        why = f"it is Python {version}, for which there is no wheel"
    else:
        fix = f"{shlex.quote(str(other.path))} -m pip install '{RKNN.pin}' numpy  (or {fix})"
    return [Finding("error", f"{whose} lacks {' and '.join(lacks)}", why, fix)]


def untested(guest: Guest, version: str) -> list[Finding]:
    """Whether a guest's version is one that tars-rag was tested with."""
    if guest.is_tested(version):
        return []
    what = f"{guest.name} {version} is not a tested version"
    why = f"{guest.private}: tars-rag knows them of {guest.first} to {guest.last} only"
    return [Finding("warning", what, why, f"pip install '{guest.pin}'")]


def _slow(policies: list[Path], root: Path) -> list[Finding]:
    slow = [p for p in policies if _text(p) in ("powersave", "conservative")]
    if not slow:
        return []
    names = ", ".join(sorted({f"{_text(p)} ({p.parent.name})" for p in slow}))
    fix = "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
    why = "tokenising and reranking run on the CPU, at its lowest clock"
    return [Finding("warning", f"CPU governor {names}", why, fix)]


def _memory(root: Path) -> dict[str, int]:
    lines = re.findall(r"(\w+):\s+(\d+) kB", _text(root / "proc/meminfo"))
    return {name: int(kib) // 1024 for name, kib in lines}


def _version(text: str) -> str | None:
    match = _VERSION.search(text)
    return match.group(1) if match else None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """A file's text without padding; empty if it cannot be read (debugfs: root only)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""
