"""What the kernel shows of the NPU: which SoC it is, who drives it, and through which files.

librknnrt opens both device files of the driver, ``/dev/dri/card<n>`` and ``renderD<n>``, which
belong to different groups; older kernels have ``/dev/rknpu`` instead. The wheel reads the SoC from
the device tree, and containers hide that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

NPU_CORES: Final = {"rk3588": 3, "rk3576": 2, "rk3568": 1, "rk3566": 1, "rk3562": 1}
"""NPU cores of each SoC that the wheel supports."""

DOCKER: Final = (
    "docker run --device /dev/dri --security-opt systempaths=unconfined "
    "--group-add $(getent group video | cut -d: -f3) "
    "--group-add $(getent group render | cut -d: -f3) "
    "-v /usr/lib/librknnrt.so:/usr/lib/librknnrt.so ..."
)
"""What a container needs: both device files, their groups, the device tree and the library."""

HOST_KERNEL: Final = (
    "boot the vendor's kernel on the host (Home Assistant OS and other mainline kernels have no "
    "driver for this NPU); until then: NPU_EMBEDDER_ENABLED=0"
)

_COMPATIBLE: Final = "proc/device-tree/compatible"
_DOCKER_MARK: Final = ".dockerenv"
# In a container of Docker the wheel refuses to start unless there is a file of this very name.
_WHEEL_ASKS: Final = "dev/dri/renderD129"
# Any of them: the vendor's driver is there, whatever its device files are called.
_DRIVER: Final = (
    "sys/bus/platform/drivers/RKNPU",
    "sys/bus/platform/drivers/rknpu",
    "sys/class/misc/rknpu",
    "sys/module/rknpu",
)
_CONTAINERS: Final = (_DOCKER_MARK, "run/.containerenv", "run/systemd/container")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        level: ``error``: the NPU cannot be used. ``warning``: it can, but not well.
        what: What is wrong.
        why: Why it matters.
        fix: The command that mends it.
    """

    level: Literal["error", "warning"]
    what: str
    why: str
    fix: str


@dataclass(frozen=True)
class Kernel:
    """What was found.

    Attributes:
        soc: The SoC, e.g. rk3588; None: not known.
        driven: A driver of the NPU is there, so there is an NPU, whatever the SoC.
        nodes: Device files of the NPU that are there.
        missing: Those that the driver has made and that are not there.
        link: ``/dev/rknpu`` where it is a link.
        rocket: The mainline driver, which librknnrt cannot use.
        device_tree: The device tree can be read.
        container: This is a container.
        no_driver: Nothing in /sys is the vendor's driver.
    """

    soc: str | None
    driven: bool
    nodes: tuple[Path, ...]
    missing: tuple[Path, ...]
    link: Path | None
    rocket: bool
    device_tree: bool
    container: bool
    no_driver: bool

    @property
    def npu_cores(self) -> int:
        """How many cores the NPU has; 0: there is none that the wheel supports.

        1 where there is one, and which SoC this is cannot be seen.
        """
        return NPU_CORES.get(self.soc or "", int(self.driven and not self.device_tree))


def look(root: Path) -> Kernel:
    """Look at a few files; opens no device."""
    compatible = _text(root / _COMPATIBLE)
    drivers = list(_drivers(root))
    ours = [(node, uevent) for node, uevent in drivers if "DRIVER=RKNPU" in uevent.upper()]
    misc = root / "dev/rknpu"
    link = misc if misc.is_symlink() else None
    rocket = any("DRIVER=rocket" in uevent for _, uevent in drivers)
    socs = [*_socs(compatible), *(soc for _, uevent in ours for soc in _socs(uevent))]
    soc = next((soc for soc in socs if soc in NPU_CORES), socs[0] if socs else None)
    named = [node for node, _ in ours]
    # Where sysfs says nothing of it: the usual name, on a SoC that has an NPU.
    usual = [] if named or soc not in NPU_CORES else [root / "dev/dri/renderD129"]
    plain = [misc] if _exists(misc) and not link else []
    return Kernel(
        soc=soc,
        driven=bool(ours or plain or (rocket and soc in NPU_CORES)),
        nodes=tuple(node for node in (*named, *usual, *plain) if _exists(node)),
        missing=tuple(node for node in named if not _exists(node)),
        link=link,
        rocket=rocket,
        device_tree=bool(compatible),
        container=any(_exists(root / name) for name in _CONTAINERS),
        no_driver=not ours
        and _exists(root / "sys/class/drm")
        and not any(_exists(root / name) for name in _DRIVER),
    )


def findings(kernel: Kernel, may_use: Callable[[Path], bool], root: Path) -> list[Finding]:
    """What keeps the NPU from being used."""

    def names(nodes: tuple[Path, ...]) -> str:
        return ", ".join("/" + str(node.relative_to(root)) for node in nodes)

    found = []
    if kernel.link:
        what = f"/dev/rknpu is a link (to {os.readlink(kernel.link)})"  # noqa: PTH115
        why = "librknnrt takes what it leads to for another driver, and crashes"
        found.append(Finding("error", what, why, "sudo rm /dev/rknpu"))
    if not kernel.nodes:
        found.append(_no_node(kernel))
    elif kernel.missing:
        why = "librknnrt opens both device files of the NPU"
        fix = DOCKER if kernel.container else "sudo udevadm trigger --subsystem-match=drm"
        found.append(Finding("error", f"no device node {names(kernel.missing)}", why, fix))
    elif _exists(root / _DOCKER_MARK) and not _exists(root / _WHEEL_ASKS):
        what = f"no file /{_WHEEL_ASKS} in this container"
        why = f"the wheel wants one of that name in Docker, though the NPU is {names(kernel.nodes)}"
        fix = f"mkdir -p /dev/dri && touch /{_WHEEL_ASKS}  (in the container, as root)"
        found.append(Finding("error", what, why, fix))
    if not kernel.device_tree:
        what = "the device tree is hidden" + (" from this container" if kernel.container else "")
        why = "the wheel reads from /proc/device-tree/compatible which SoC this is"
        fix = DOCKER if kernel.container else f"sudo chmod a+r /{_COMPATIBLE}"
        found.append(Finding("error", what, why, fix))
    blocked = tuple(node for node in kernel.nodes if not may_use(node))
    if blocked:
        fix = "sudo usermod -aG render,video $USER  (then log in again)"
        why = "the NPU cannot be opened"
        what = f"no permission for {names(blocked)}"
        found.append(Finding("error", what, why, DOCKER if kernel.container else fix))
    return found


def _no_node(kernel: Kernel) -> Finding:
    if kernel.rocket:
        what = "this kernel drives the NPU by rocket, the mainline driver"
        why = "librknnrt works with the vendor's driver only"
        fix = "sudo apt-get install linux-image-vendor-rk35xx  (Armbian; or the vendor's image)"
        return Finding("error", what, why, HOST_KERNEL if kernel.container else fix)
    what = "no device node /dev/dri/renderD129 or /dev/rknpu"
    if kernel.container:
        if kernel.no_driver:
            why = "the host's kernel has no driver for the NPU"
            return Finding("error", what, why, HOST_KERNEL)
        return Finding("error", what, "the kernel offers no NPU to this container", DOCKER)
    fix = "sudo modprobe rknpu  (or boot the vendor's kernel: mainline has no rknpu driver)"
    return Finding("error", what, "the kernel offers no NPU", fix)


def _drivers(root: Path) -> Iterator[tuple[Path, str]]:
    """The device files of graphics and accelerators, each with what the kernel says of it."""
    for pattern in ("drm/card*", "drm/renderD*", "accel/accel*"):
        for entry in sorted((root / "sys/class").glob(pattern)):
            if re.fullmatch(r"(card|renderD|accel)\d+", entry.name):  # not the connectors
                folder = "dri" if entry.parent.name == "drm" else "accel"
                yield root / "dev" / folder / entry.name, _text(entry / "device/uevent")


def _socs(text: str) -> list[str]:
    """The SoCs that compatible strings name; rk3588s2 and rk3588-rknpu are rk3588."""
    return re.findall(r"rockchip,(rk\d{4})", text)


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (Path.exists raises where a directory is closed)


def _text(path: Path) -> str:
    """A file's text without padding; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""
