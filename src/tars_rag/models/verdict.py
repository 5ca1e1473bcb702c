"""What was measured of the models on this machine: ``placement.json`` in the model cache.

`tars-rag bench` writes it; what opens a model follows it as long as everything that it was measured
with is still the same. What differs makes it stale: that is said, and it is not followed.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tars_rag.errors import ModelError
from tars_rag.files import write_atomically
from tars_rag.guests import version_of
from tars_rag.models.assignment import Candidate, Measurement, Plan
from tars_rag.runtimes.cores import allowed_cores
from tars_rag.runtimes.npu.manifest import ModelKind

if TYPE_CHECKING:
    from tars_rag.runtimes.npu.probe import Machine

NAME: Final = "placement.json"
MEASURE: Final = "tars-rag bench"
_FORMAT: Final = "tars-rag-placement"
_VERSION: Final = 1
_MOST_BYTES: Final = 8 << 20
_PROCESSOR: Final = re.compile(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", re.MULTILINE)

Key = Mapping[str, str]
"""What a verdict holds for, by name: all of it must be as it was; empty: it is not there."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured of one model.

    Attributes:
        model: Its name.
        kind: What it is used as.
        key: What the figures hold for, of `machine_key` and `model_key`.
        rows: The figures.
        measured_at: When, as ISO 8601 in UTC.
        throttled: Why the clocks were not at their highest while it was measured; empty: they were.
        notes: Clocks, governors and what else the measuring program found, for people.
    """

    model: str
    kind: ModelKind
    key: Key
    rows: tuple[Measurement, ...]
    measured_at: str
    throttled: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    def plan(self, precision_class: str | None = None) -> Plan:
        """The fastest placement by these figures; see `Plan`."""
        return Plan(self.rows, precision_class)


@dataclass(frozen=True, slots=True)
class Stale:
    """A verdict that does not hold any more, and why, in one line."""

    verdict: Verdict
    reason: str


def machine_key(machine: Machine, *, root: Path = Path("/")) -> dict[str, str]:
    """What of this machine the figures depend on: processor, cores, SoC, versions of engines."""
    return {
        "processor": machine.model or _processor(root),
        "cores": str(len(allowed_cores())),
        "soc": machine.soc or "",
        "onnxruntime": version_of("onnxruntime") or "",
        "openvino": version_of("openvino") or "",
        "rknn-toolkit-lite2": machine.wheel or "",
        "librknnrt": machine.library_version or "",
    }


def model_key(
    weights_sha256: str, bundle_sha256: str | None = None, threads: int | None = None
) -> dict[str, str]:
    """What of a model they depend on.

    Args:
        weights_sha256: Of the safetensors file, or of the ready-made graph.
        bundle_sha256: What names the content of the bundle that was measured; None: none was.
        threads: As in `Placement`.
    """
    return {
        "weights": weights_sha256,
        "bundle": bundle_sha256 or "",
        "threads": str(threads or "auto"),
    }


def read(cache: Path, model: str, kind: ModelKind, key: Key) -> Verdict | Stale | None:
    """The verdict of a model.

    Args:
        cache: The model cache.
        model: Its name.
        kind: What it is used as.
        key: What is the case now.

    Returns:
        What was measured; what was measured of something else, with what differs; None where
        nothing was.

    Raises:
        ModelError: The file is damaged.
    """
    found = next((v for v in read_all(cache) if (v.model, v.kind) == (model, kind)), None)
    if found is None:
        return None
    changes = [
        f"{name} was {found.key.get(name) or 'not there'} and is {key.get(name) or 'not there'}"
        for name in sorted({*found.key, *key})
        if found.key.get(name, "") != key.get(name, "")
    ]
    if changes:
        return Stale(found, f"{'; '.join(changes)}. Measure again: {MEASURE}")
    return found


def read_all(cache: Path) -> list[Verdict]:
    """Every verdict in the file; none where there is no file.

    Raises:
        ModelError: The file is damaged.
    """
    path = cache / NAME
    try:
        if not path.is_file():
            return []
        if path.stat().st_size > _MOST_BYTES:
            msg = f"more than {_MOST_BYTES} bytes"
            raise ValueError(msg)
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != _FORMAT or data["version"] != _VERSION:
            msg = f"format {data['format']!r:.40} version {data['version']!r:.40}"
            raise ValueError(msg)
        return [_verdict(entry) for entry in data["models"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{path} cannot be read ({str(error)[:200]}). Measure again: rm {path} && {MEASURE}"
        raise ModelError(msg) from error


def write(cache: Path, verdicts: Sequence[Verdict]) -> Path:
    """Put verdicts into the file, in the place of earlier ones of the same models.

    Returns:
        The file.

    Raises:
        OSError: It cannot be written; the old one is untouched.
    """
    try:
        known = read_all(cache)
    except ModelError:
        known = []  # damaged: what is measured now replaces it
    new = {(verdict.model, verdict.kind) for verdict in verdicts}
    kept = [verdict for verdict in known if (verdict.model, verdict.kind) not in new]
    data = {
        "format": _FORMAT,
        "version": _VERSION,
        "models": [_entry(verdict) for verdict in (*kept, *verdicts)],
    }
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / NAME
    write_atomically(path, (json.dumps(data, indent=1) + "\n").encode("utf-8"))
    return path


def _entry(verdict: Verdict) -> dict[str, Any]:
    """As JSON, with what the figures say for whoever reads it."""
    entry = asdict(verdict)
    classes = sorted({row.candidate.precision_class for row in verdict.rows})
    entry["choices"] = {name: [asdict(c) for c in verdict.plan(name).choices()] for name in classes}
    return entry


def _verdict(entry: Mapping[str, Any]) -> Verdict:
    rows = tuple(
        Measurement(
            int(row["length"]),
            int(row["count"]),
            _candidate(row["candidate"]),
            float(row["ms"]),
            float(row["spread"]),
        )
        for row in entry["rows"]
    )
    if not rows or not all(row.ms > 0 and math.isfinite(row.ms) for row in rows):
        msg = f"the figures of {entry['model']!r:.80} are not times"
        raise ValueError(msg)
    verdict = Verdict(
        model=str(entry["model"]),
        kind=entry["kind"],
        key={str(name): str(value) for name, value in entry["key"].items()},
        rows=rows,
        measured_at=str(entry["measured_at"]),
        throttled=str(entry["throttled"]),
        notes={str(name): str(value) for name, value in entry["notes"].items()},
    )
    verdict.plan()  # what makes no plan is damaged
    return verdict


def _candidate(entry: Mapping[str, Any]) -> Candidate:
    tokens = entry["tokens_per_batch"]
    if entry["device"] not in ("cpu", "npu") or not (tokens is None or int(tokens) > 0):
        msg = f"{entry!r:.100} is not a placement"
        raise ValueError(msg)
    return Candidate(
        entry["device"],
        str(entry["engine"]),
        str(entry["precision"]),
        str(entry["precision_class"]),
        None if tokens is None else int(tokens),
    )


def _processor(root: Path) -> str:
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = _PROCESSOR.search(text)
    return match.group(1).strip() if match else os.uname().machine
