"""What a bug report needs to know: versions, settings, the model cache; no secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tars_rag import __version__, advice
from tars_rag.files import size_of
from tars_rag.guests import GUESTS, version_of

if TYPE_CHECKING:
    from tars_rag.runtimes.npu.probe import Machine
    from tars_rag.settings import Settings

_SECRET: Final = re.compile("token|secret|passw|key|credential", re.IGNORECASE)
_LOGIN: Final = re.compile(r"(?<=://).*@")
_VARIABLES: Final = (
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HTTPS_PROXY",
    "OMP_NUM_THREADS",
    "RKNN_LOG_LEVEL",
)
"""Environment variables of others that change what tars-rag does."""


def versions() -> dict[str, Any]:
    """This package, Python, the system, and every package that tars-rag asks for."""
    return {
        "tars_rag": __version__,
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "virtual_environment": sys.prefix != sys.base_prefix,
        },
        "platform": {
            "system": platform.system(),
            "release": platform.release(),
            "machine": platform.machine(),
            "libc": " ".join(platform.libc_ver()).strip(),
            "distribution": _distribution(),
        },
        "packages": _packages(),
        "guests": [
            {
                "name": guest.name,
                "installed": guest.installed,
                "tested": f"{guest.first} to {guest.last}",
                "is_tested": bool(guest.installed and guest.is_tested(guest.installed)),
            }
            for guest in GUESTS
        ],
    }


def settings_as_json(settings: Settings | None) -> dict[str, Any]:
    """What is set, and by what; what looks like a secret is only said to be set."""
    values = {} if settings is None else settings.model_dump(mode="json")
    named = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    return {
        "values": {name: _harmless(name, value) for name, value in values.items()},
        "set": sorted(settings.model_fields_set) if settings else [],
        "environment": {name: _harmless(name, value) for name, value in named.items()},
    }


def model_cache(root: Path | None) -> dict[str, Any]:
    """Where models are, how much is there, and how much room is left."""
    if root is None:
        return {"path": None, "exists": False}
    known: dict[str, Any] = {"path": str(root), "exists": root.is_dir()}
    there = next((folder for folder in (root, *root.parents) if folder.is_dir()), Path("/"))
    try:
        known["bytes"] = size_of(root)
        known["free_bytes"] = shutil.disk_usage(there).free
    except OSError as error:
        known["problem"] = str(error)
    known["writable"] = os.access(there, os.W_OK)
    return known


def engines() -> str:
    """The CPU engines and their versions, in one line."""
    openvino = version_of("openvino") or f"not installed ({advice.install('openvino')})"
    return f"onnxruntime {version_of('onnxruntime')}; openvino {openvino}"


def placements(settings: Settings, machine: Machine) -> list[dict[str, Any]]:
    """What was measured of the models, and whether it still holds.

    Each with ``model``, ``kind``, ``measured_at`` and ``throttled``, and ``stale``, the reason, or
    ``choices`` by precision class; or one entry with a ``problem``.
    """
    from tars_rag.errors import TarsRagError
    from tars_rag.models import following, layout, verdict
    from tars_rag.models.cache import ModelCache

    store = ModelCache(settings.model_cache_dir)
    try:
        known = verdict.read_all(store.root)
    except TarsRagError as error:
        return [{"problem": str(error), "path": str(store.root / verdict.NAME)}]
    named = {Path(m).name: m for m in (settings.embed_model, settings.rerank_model) if m}
    entries = []
    for found in known:
        is_embedder = found.kind == "embedder"
        placement = settings.embedder_placement if is_embedder else settings.reranker_placement
        entry: dict[str, Any] = {"model": found.model, "kind": found.kind}
        entry |= {"measured_at": found.measured_at, "throttled": found.throttled}
        try:
            local = store.find(named.get(found.model, found.model))
            if local is None:
                entry["stale"] = "the model is not on this machine any more"
            else:
                pooling = layout.pooling(local) if is_embedder else "mean"
                now = following.look_up(local, found.kind, store.root, placement, machine, pooling)
                if isinstance(now, verdict.Stale):
                    entry["stale"] = now.reason
        except TarsRagError as error:
            entry["stale"] = str(error)
        if "stale" not in entry:
            classes = {row.candidate.precision_class for row in found.rows}
            entry["choices"] = {
                name: [asdict(choice) for choice in found.plan(name).choices()]
                for name in sorted(classes)
            }
        entries.append(entry)
    return entries


def without_home(value: Any) -> Any:
    """The same data, the home directory of whoever reports it written as ``~``."""
    if isinstance(value, str):
        home = os.path.expanduser("~")  # noqa: PTH111 (Path.home raises where there is none)
        return value.replace(home, "~") if len(home) > 1 else value
    if isinstance(value, Mapping):
        return {key: without_home(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_home(entry) for entry in value]
    return value


def _harmless(name: str, value: Any) -> Any:
    if value in (None, "") or not isinstance(value, str):
        return value
    return "(set)" if _SECRET.search(name) else _LOGIN.sub("(login)@", value)


def _packages() -> dict[str, str]:
    """Installed versions of what tars-rag, or one of its extras, requires."""
    try:
        wanted = importlib.metadata.requires("tars-rag") or []
    except importlib.metadata.PackageNotFoundError:
        wanted = [guest.name for guest in GUESTS]
    names = {match.group() for line in wanted if (match := re.match(r"[A-Za-z0-9._-]+", line))}
    versions = {name: version_of(name) for name in sorted(names - {"tars-rag"})}
    return {name: version for name, version in versions.items() if version}


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""
