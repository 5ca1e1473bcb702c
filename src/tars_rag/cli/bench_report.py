"""``tars-rag bench --report``: doctor and bench in one file that can be sent to anybody.

What may be in it is named here; all the rest stays out. Paths, names of directories, of hosts and
of people are taken out of sentences.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import re
import socket
from collections.abc import Mapping
from typing import Any, Final

from tars_rag.cli import surroundings

_PATH: Final = re.compile(r"(?<![\w./~])(?:~|\.{1,2})?(?:/[^\s/'\",;:()<>]+)+/?")
_SYSTEM: Final = ("/dev/", "/proc/", "/sys/", "/usr/lib", "/usr/bin", "/lib/")
"""Places that are the same everywhere."""
_SETTINGS: Final = (
    *("npu_embedder_enabled", "npu_rerank_enabled", "npu_core_mask", "npu_fallback_cpu"),
    *("cpu_engine", "rag_strategy", "memory_top_k"),
)
"""Those whose values are choices of a list, or numbers."""
_FINDING: Final = ("level", "what", "why", "fix")


def shareable(bench: Mapping[str, Any]) -> str:
    """The report as JSON text.

    Args:
        bench: What `tars_rag.bench.results.Report.as_dict` gave.
    """
    from tars_rag.cli.doctor import examined

    doctor = examined()
    settings = doctor["settings"]["values"]
    told = {
        "npu_usable": doctor["npu_usable"],
        "npu_reason": doctor["npu_reason"],
        "versions": surroundings.versions(),
        "settings": {name: settings[name] for name in _SETTINGS if name in settings},
        "findings": [{k: f[k] for k in _FINDING if k in f} for f in doctor["findings"]],
        "faults": [{k: f[k] for k in ("core_mask", "reason") if k in f} for f in doctor["faults"]],
    }
    hidden = _names() | _own_models(bench)
    value = _without({"format": "tars-rag-bench-report", "doctor": told, "bench": bench}, hidden)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _names() -> dict[str, str]:
    """Who and what machine this is, with what stands for them."""
    found = {socket.gethostname(): "(host)"}
    with contextlib.suppress(KeyError, OSError):  # a process of nobody
        found[getpass.getuser()] = "(user)"
    # A name as common as a word of these reports tells nothing and would spoil them.
    return {name: word for name, word in found.items() if len(name) > 2 and name != "root"}


def _own_models(bench: Mapping[str, Any]) -> dict[str, str]:
    """Models that are no catalogue's: their names are of the user's making."""
    from tars_rag.models.catalog import find_spec

    names = [str(row["model"]) for part in ("reranker", "embedder") for row in bench[part]["rows"]]
    own = [name for name in dict.fromkeys(names) if find_spec(name) is None]
    return {name: f"own model {number}" for number, name in enumerate(own, 1)}


def _without(value: Any, hidden: Mapping[str, str]) -> Any:
    """The same data without names and paths, in keys and values."""
    if isinstance(value, str):
        for name in sorted(hidden, key=len, reverse=True):
            value = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", hidden[name], value)
        return _PATH.sub(_harmless, surroundings.without_home(value))
    if isinstance(value, Mapping):
        return {_without(key, hidden): _without(entry, hidden) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without(entry, hidden) for entry in value]
    return value


def _harmless(found: re.Match[str]) -> str:
    path = found.group()
    return path if path.startswith(_SYSTEM) else "(path)"
