"""Images of real boards and containers, as made-up file trees: doctor's verdict and its fix.

Names of drivers, nodes and compatible strings are those of public device trees and reports; the
combinations were put together here and not copied from boards.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tars_rag.runtimes.npu import kernel, probe
from tars_rag.runtimes.npu.interpreter import Interpreter

_look = probe.probe  # others put a double in its place
LIBRARY = b"\x7fELF..librknnrt version: 2.3.2 (429f97ae6b@2025-04-09T09:09:27).."
RK3588 = b"xunlong,orangepi-5-max\0rockchip,rk3588\0"
UEVENT = (
    b"DRIVER=RKNPU\nOF_NAME=npu\nOF_FULLNAME=/npu@fdab0000\nOF_COMPATIBLE_0=rockchip,%s-rknpu\n"
)
VOP = b"DRIVER=rockchip-drm\nOF_COMPATIBLE_0=rockchip,display-subsystem\n"
GPU = b"DRIVER=panthor\nOF_COMPATIBLE_0=rockchip,rk3588-mali\n"


@dataclass
class Image:
    """A tree: what the device tree says, who drives the NPU through which nodes, and the rest."""

    compatible: bytes | None = RK3588
    npu: str = "rk3588"
    nodes: tuple[str, ...] = ("card1", "renderD129")
    in_dev: tuple[str, ...] | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    denied: tuple[str, ...] = ()
    library: bytes | None = LIBRARY
    wheel: str | None = "2.3.2"
    python: tuple[int, int] = (3, 11)
    other: Interpreter | None = None

    def probe(self, root: Path) -> probe.Machine:
        tree = {
            "sys/class/drm/card0/device/uevent": VOP,
            "sys/class/drm/card0-HDMI-A-1/status": b"connected\n",
            "sys/class/drm/renderD128/device/uevent": GPU,
            "dev/dri/card0": b"",
            "dev/dri/renderD128": b"",
        }
        if self.compatible is not None:
            tree["proc/device-tree/compatible"] = self.compatible
        for node in self.nodes:
            tree[f"sys/class/drm/{node}/device/uevent"] = UEVENT % self.npu.encode()
        for node in self.nodes if self.in_dev is None else self.in_dev:
            tree[f"dev/dri/{node}"] = b""
        if self.library:
            tree["usr/lib/librknnrt.so"] = self.library
        for name, content in (tree | self.files).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        for name, target in self.links.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(target)
        return _look(
            root,
            wheel=self.wheel,
            python=self.python,
            other=self.other,
            may_use=lambda node: node.name not in self.denied,
        )


DOCKERENV = {".dockerenv": b""}
OTHER = Path("/opt/npu/bin/python")
READY = {
    "Orange Pi OS 6.1, RK3588": Image(),
    "Armbian vendor 6.1, RK3588S": Image(b"radxa,rock-5a\0rockchip,rk3588s\0"),
    "Radxa OS, RK3582": Image(b"radxa,rock-5c-lite\0rockchip,rk3582\0rockchip,rk3588s\0"),
    "a box with RK3588S2": Image(b"vendor,box\0rockchip,rk3588s2\0"),
    "Ubuntu Rockchip, other numbers": Image(nodes=("card2", "renderD130")),
    "Friendly Elec, RK3576": Image(b"friendlyelec,nanopi-m5\0rockchip,rk3576\0", "rk3576"),
    "Radxa OS, RK3566": Image(b"radxa,zero3\0rockchip,rk3566\0", "rk3568"),
    "RK3568B2": Image(b"vendor,board\0rockchip,rk3568b2\0", "rk3568"),
    "istoreos, no renderD129 but renderD128": Image(nodes=("card1",)),
    "Orange Pi OS 5.10, misc device": Image(nodes=(), files={"dev/rknpu": b""}),
    "Docker with all options": Image(files=DOCKERENV),
    "Docker privileged": Image(files=DOCKERENV),
    "Docker, other numbers and the name that the wheel wants": Image(
        nodes=("card0", "renderD130"), files=DOCKERENV | {"dev/dri/renderD129": b""}
    ),
    "Orange Pi OS 5.10 in Docker": Image(
        nodes=(),
        files=DOCKERENV
        | {"dev/rknpu": b"", "dev/dri/renderD129": b"", "sys/class/misc/rknpu/dev": b"10:58\n"},
    ),
    "LXC with both nodes": Image(files={"run/systemd/container": b"lxc\n"}),
    "Podman, other numbers": Image(nodes=("card2", "renderD130"), files={"run/.containerenv": b""}),
    "Armbian vendor 6.1, RK3576": Image(b"armsom,sige5\0rockchip,rk3576\0", "rk3576"),
    "Ubuntu Rockchip, RK3588S": Image(b"khadas,edge2\0rockchip,rk3588s\0"),
}


@pytest.mark.parametrize("image", READY.values(), ids=READY)
def test_an_image_on_which_it_works(image: Image, tmp_path: Path) -> None:
    found = image.probe(tmp_path)
    assert found.has_npu
    assert found.reason == ""
    assert found.findings == ()
    assert found.device_nodes
    assert found.core_masks("auto")


NOT = {
    "Armbian mainline 6.18": (
        Image(
            nodes=(),
            files={
                "sys/class/accel/accel0/device/uevent": b"DRIVER=rocket\n",
                "dev/accel/accel0": b"",
            },
        ),
        "drives the NPU by rocket",
        "linux-image-vendor-rk35xx",
    ),
    "a kernel without any driver": (Image(nodes=()), "no device node", "modprobe rknpu"),
    "Home Assistant OS, no driver": (
        Image(nodes=(), files=DOCKERENV),
        "no device node",
        "boot the vendor's kernel on the host.*Home Assistant OS",
    ),
    "Home Assistant OS, rocket": (
        Image(
            nodes=(),
            files=DOCKERENV | {"sys/class/accel/accel0/device/uevent": b"DRIVER=rocket\n"},
        ),
        "drives the NPU by rocket",
        "vendor",
    ),
    "Docker, other numbers": (
        Image(nodes=("card2", "renderD130"), files=DOCKERENV),
        "no file /dev/dri/renderD129 in this container",
        "touch /dev/dri/renderD129",
    ),
    "Orange Pi OS 5.10 in Docker, --device /dev/rknpu only": (
        Image(
            nodes=(),
            files=DOCKERENV | {"dev/rknpu": b"", "sys/class/misc/rknpu/dev": b"10:58\n"},
        ),
        "no file /dev/dri/renderD129 in this container",
        "mkdir -p /dev/dri && touch /dev/dri/renderD129",
    ),
    "Orange Pi OS 5.10 in Docker, no options": (
        Image(nodes=(), files=DOCKERENV | {"sys/class/misc/rknpu/dev": b"10:58\n"}),
        "no device node",
        "docker run --device /dev/dri",
    ),
    "RK3576, mainline": (
        Image(b"friendlyelec,nanopi-m5\0rockchip,rk3576\0", nodes=()),
        "no device node",
        "vendor's kernel",
    ),
    "RK3566, the user in no group": (
        Image(b"radxa,zero3\0rockchip,rk3566\0", "rk3568", denied=("card1", "renderD129")),
        "no permission for /dev/dri/card1, /dev/dri/renderD129",
        "usermod -aG render,video",
    ),
    "RK3582, library of a browser's error page": (
        Image(b"radxa,rock-5c-lite\0rockchip,rk3582\0rockchip,rk3588s\0", library=b"<html>"),
        "librknnrt.so is not a library",
        "curl -fLo",
    ),
    "Docker, no options": (
        Image(compatible=None, in_dev=(), files=DOCKERENV),
        "no device node.*device tree is hidden",
        "--device /dev/dri --security-opt systempaths=unconfined",
    ),
    "Docker, --device only: the device tree is masked": (
        Image(compatible=None, files=DOCKERENV),
        "device tree is hidden from this container",
        "systempaths=unconfined",
    ),
    "Docker, one node only": (
        Image(in_dev=("renderD129",), files=DOCKERENV),
        "no device node /dev/dri/card1",
        "--device /dev/dri",
    ),
    "Docker, without the groups": (
        Image(denied=("card1", "renderD129"), files=DOCKERENV),
        "no permission for /dev/dri/card1, /dev/dri/renderD129",
        "getent group video.*getent group render",
    ),
    "Podman, SoC not even in sysfs": (
        Image(
            compatible=None,
            nodes=("renderD129",),
            files={
                "run/.containerenv": b"",
                "sys/class/drm/renderD129/device/uevent": b"DRIVER=RKNPU\n",
            },
        ),
        "device tree is hidden",
        "systempaths=unconfined",
    ),
    "in group render but not video": (
        Image(denied=("card1",)),
        "no permission for /dev/dri/card1",
        "usermod -aG render,video",
    ),
    "the guide's link at /dev/rknpu": (
        Image(links={"dev/rknpu": "dri/renderD129"}),
        r"/dev/rknpu is a link \(to dri/renderD129\)",
        "sudo rm /dev/rknpu",
    ),
    "a link that leads nowhere": (
        Image(links={"dev/rknpu": "/nowhere"}),
        "/dev/rknpu is a link",
        "sudo rm /dev/rknpu",
    ),
    "the node was deleted": (
        Image(in_dev=("card1",)),
        "no device node /dev/dri/renderD129",
        "udevadm trigger",
    ),
    "Armbian trixie, Python 3.13": (
        Image(wheel=None, python=(3, 13)),
        "rknn-toolkit-lite2 is not installed",
        r"tars-rag npu install.*uv venv --python 3.12",
    ),
    "Armbian trixie, the NPU's own Python gone": (
        Image(wheel=None, python=(3, 13), other=Interpreter(OTHER, problem="No such file")),
        r"NPU_PYTHON \(/opt/npu/bin/python\) cannot be run: No such file",
        "tars-rag npu install --again",
    ),
    "NPU_PYTHON of a version without a wheel": (
        Image(wheel=None, python=(3, 13), other=Interpreter(OTHER, (3, 13), None, "2.2.0")),
        "lacks rknn-toolkit-lite2",
        "tars-rag npu install",
    ),
    "NPU_PYTHON without wheel and numpy": (
        Image(wheel=None, python=(3, 13), other=Interpreter(OTHER, (3, 12))),
        "lacks rknn-toolkit-lite2 and numpy",
        r"/opt/npu/bin/python -m pip install 'rknn-toolkit-lite2>=.*' numpy",
    ),
    "no library": (Image(library=None), "librknnrt.so is not in /usr/lib", "curl -fLo"),
}


@pytest.mark.parametrize(("image", "what", "fix"), NOT.values(), ids=NOT)
def test_an_image_on_which_it_does_not(image: Image, what: str, fix: str, tmp_path: Path) -> None:
    found = image.probe(tmp_path)
    assert found.has_npu, "a board with an NPU is not a laptop"
    errors = [finding for finding in found.findings if finding.level == "error"]
    assert re.search(what, ", ".join(finding.what for finding in errors)), errors
    assert re.search(fix, " ".join(finding.fix for finding in errors)), errors
    assert all(finding.why for finding in errors)
    assert re.search(fix, found.reason)


LAPTOPS = {
    "two graphics cards": Image(
        compatible=None,
        nodes=(),
        files={
            "sys/class/drm/renderD129/device/uevent": b"DRIVER=amdgpu\n",
            "dev/dri/renderD129": b"",
        },
    ),
    "an Intel NPU": Image(
        compatible=None,
        nodes=(),
        files={"sys/class/accel/accel0/device/uevent": b"DRIVER=intel_vpu\n"},
    ),
    "Raspberry Pi 5": Image(b"raspberrypi,5-model-b\0brcm,bcm2712\0", nodes=()),
    "RK3399": Image(b"pine64,rockpro64\0rockchip,rk3399\0", nodes=()),
    "Docker on a laptop": Image(compatible=None, nodes=(), files=DOCKERENV),
}


@pytest.mark.parametrize("image", LAPTOPS.values(), ids=LAPTOPS)
def test_a_machine_without_such_an_npu(image: Image, tmp_path: Path) -> None:
    found = image.probe(tmp_path)
    assert not found.has_npu
    assert "everything runs on the CPU" in found.reason
    assert found.findings == ()


def test_the_driver_names_the_soc_where_the_device_tree_is_hidden(tmp_path: Path) -> None:
    found = Image(compatible=None, npu="rk3576", files=DOCKERENV).probe(tmp_path)
    assert (found.soc, found.npu_cores) == ("rk3576", 2)


def test_the_docker_command_is_one(tmp_path: Path) -> None:
    """Whatever a container was not given, the same command gives all of it."""
    fixes = {
        finding.fix
        for name, (image, _, _) in NOT.items()
        if name.startswith("Docker, ") and name != "Docker, other numbers"
        for finding in image.probe(tmp_path / str(id(image))).findings
    }
    assert fixes == {kernel.DOCKER}


def test_another_python_is_told_with_what_it_has(tmp_path: Path) -> None:
    other = Interpreter(OTHER, (3, 12), "2.3.2", "2.2.0")
    found = Image(wheel=None, python=(3, 13), other=other).probe(tmp_path)
    assert found.findings == ()
    assert (found.python, found.wheel, found.npu_python) == ("3.13", "2.3.2", str(OTHER))
    odd = dataclasses.replace(other, wheel="2.6.0")
    [finding] = [
        finding
        for finding in Image(wheel=None, other=odd).probe(tmp_path / "odd").findings
        if "tested" in finding.what
    ]
    assert finding.level == "warning"
