"""``tars-rag doctor``: what this machine can do, what is wrong, and what mends it."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from tars_rag.cli.console import out, print_json
from tars_rag.cli.resources import JsonOption, read_settings

if TYPE_CHECKING:
    from tars_rag.runtimes.npu.gate import Note
    from tars_rag.runtimes.npu.kernel import Finding
    from tars_rag.runtimes.npu.probe import Machine
    from tars_rag.settings import Settings


ClearOption = Annotated[
    bool,
    typer.Option(
        "--clear-npu-notes",
        help="Forget which NPU cores stopped the machine while they were opened.",
    ),
]


def doctor(as_json: JsonOption = False, clear_npu_notes: ClearOption = False) -> None:
    """Say what machine and NPU this is, what is wrong, and the command that mends it.

    With --json: everything that a bug report needs, without secrets.
    """
    from tars_rag.runtimes.npu import gate

    if clear_npu_notes:
        gate.clear()
    if as_json:
        print_json(examined())
        return
    from tars_rag.cli import surroundings

    seen = _examine()
    machine, problems, recent = seen.machine, seen.problems, seen.recent
    table = Table(show_header=False, box=None, pad_edge=False)
    engines, placement = ("Engines", surroundings.engines()), _placement_row(seen.placed)
    for name, value in [*_rows(machine, seen.models), engines, placement]:
        table.add_row(Text(name, style="bold"), Text(value))
    out.print(table)
    for problem in problems:
        colour = "red" if problem["level"] == "error" else "yellow"
        out.print(Text(f"\n{problem['level']}: {problem['what']}", style=colour), soft_wrap=True)
        out.print(Text(f"  why: {problem['why']}"), soft_wrap=True)
        out.print(Text(f"  fix: {problem['fix']}"), soft_wrap=True)
    for fault in recent:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(fault["time"]))
        told = f"\n{when}: NPU core mask {fault['core_mask']} was retired: {fault['reason']}"
        out.print(Text(told, style="yellow"), soft_wrap=True)
    out.print()
    if machine.reason:
        verdict_text = f"NPU: not usable ({machine.reason})."
        if not machine.has_npu:
            verdict_text = "There is no NPU on this machine. Everything runs on the CPU."
        out.print(Text(verdict_text), soft_wrap=True)
    else:
        out.print(Text(f"NPU: ready, {machine.npu_cores} core(s).", style="green"))


def examined() -> dict[str, Any]:
    """What a bug report needs, without secrets, as plain values."""
    from tars_rag.cli import surroundings
    from tars_rag.runtimes.npu import gate

    seen = _examine()
    settings, machine = seen.settings, seen.machine
    root = _cache(settings) if settings else None
    report = {
        "npu_usable": not machine.reason,
        "npu_reason": machine.reason,
        **surroundings.versions(),
        "machine": {k: v for k, v in asdict(machine).items() if k != "findings"},
        "settings": surroundings.settings_as_json(settings),
        "model_cache": surroundings.model_cache(root),
        "models": seen.models,
        "placements": seen.placed,
        "findings": seen.problems,
        "npu_notes": [asdict(note) for note in gate.notes()],
        "faults": seen.recent,
    }
    found: dict[str, Any] = surroundings.without_home(report)
    return found


@dataclass(frozen=True, slots=True)
class _Examined:
    """What was looked at. `placed`: where models were measured to run best."""

    settings: Settings | None
    machine: Machine
    models: list[dict[str, Any]]
    placed: list[dict[str, Any]]
    problems: list[dict[str, str]]
    recent: list[dict[str, Any]]


def _examine() -> _Examined:
    from tars_rag.cli import surroundings
    from tars_rag.runtimes.npu import faults, gate, interpreter
    from tars_rag.runtimes.npu.probe import probe

    settings, problems = _settings()
    named = settings.npu_python if settings else None
    machine = probe(other=interpreter.find(named)) if named else probe()
    problems += [asdict(f) for f in (*machine.findings, *_untested())]
    models = _models(settings) if settings else []
    placed = surroundings.placements(settings, machine) if settings else []
    problems += [*_model_findings(models, machine), *_placement_findings(placed)]
    problems += map(_freeze, gate.freezes())
    recent = [asdict(f) for f in faults.recent()[-5:]]
    return _Examined(settings, machine, models, placed, problems, recent)


def _settings() -> tuple[Settings | None, list[dict[str, str]]]:
    """The settings, or what is wrong with them: doctor is what one runs then."""
    from tars_rag.errors import ConfigError

    try:
        return read_settings(), []
    except ConfigError as error:
        what = " ".join(str(error).split())
        why = "every other command stops there"
        return None, [_finding("error", what, why, "correct the variable that is named")]


def _untested() -> list[Finding]:
    """Chroma and tantivy; the NPU's wheel is the probe's."""
    from tars_rag.guests import CHROMA, TANTIVY
    from tars_rag.runtimes.npu.probe import untested

    known = [(guest, guest.installed) for guest in (CHROMA, TANTIVY)]
    return [finding for guest, version in known if version for finding in untested(guest, version)]


def _freeze(note: Note) -> dict[str, str]:
    from tars_rag.runtimes.npu.gate import CLEAR

    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(note.time))
    what = f"on {when} the machine stopped while NPU core mask {note.core_mask} was opened"
    why = f"it is not opened again with kernel {note.kernel}; the other cores are"
    return _finding("warning", what, why, f"{CLEAR}  (after an update, or if it was a power cut)")


def _cache(settings: Settings) -> Path:
    from tars_rag.models.cache import ModelCache

    return ModelCache(settings.model_cache_dir).root


def _rows(machine: Machine, models: list[dict[str, Any]]) -> list[tuple[str, str]]:
    unknown = "not found"
    memory = f"{machine.memory_mb} MB, {machine.memory_available_mb} MB available"
    cpu = f"{machine.cpu_cores} cores"
    if len(machine.big_cores) < machine.cpu_cores:
        cpu += f", of which big: {', '.join(map(str, machine.big_cores))}"
    if machine.governors:
        cpu += f"; governor {', '.join(machine.governors)}"
    rows = [("Python", machine.python), ("CPU", cpu), ("Memory", memory)]
    if machine.has_npu:
        frequency = machine.npu_frequency_mhz
        npu = f"{machine.npu_cores} core(s)" + (f" at {frequency} MHz" if frequency else "")
        library = machine.library or unknown
        rows = [
            ("Board", f"{machine.model or 'unknown'} ({machine.soc or 'unknown SoC'})"),
            ("NPU", npu + (f", governor {machine.npu_governor}" if machine.npu_governor else "")),
            ("NPU driver", machine.driver or "version not readable (root only on many kernels)"),
            ("Device nodes", ", ".join(machine.device_nodes) or unknown),
            ("librknnrt", f"{library} {machine.library_version or ''}".strip()),
            ("rknn-toolkit-lite2", machine.wheel or "not installed"),
            *([("NPU's Python", machine.npu_python)] if machine.npu_python else []),
            ("Container", "yes" if machine.container else "no"),
            *rows,
        ]
    names = [f"{m['name']} ({m['where']})" for m in models]
    return [*rows, ("Models", ", ".join(names) or "none; fetch: tars-rag models pull")]


def _models(settings: Settings) -> list[dict[str, Any]]:
    """The models of the cache, and what the NPU's variables point at."""
    from tars_rag.models.cache import ModelCache
    from tars_rag.runtimes.npu.manifest import MANIFEST_NAME

    store = ModelCache(settings.model_cache_dir)
    rows: list[dict[str, Any]] = [
        {"name": m.name, "where": "CPU", "path": str(m.directory), "kind": m.kind}
        for m in store.list()
        if m.present
    ]
    named = {
        "RKNN_EMBEDDER_PATH": (settings.rknn_embedder_path, "embedder", settings.embed_model),
        "RKNN_RERANKER_PATH": (settings.rknn_reranker_path, "cross-encoder", settings.rerank_model),
    }
    for variable, (path, kind, model) in named.items():
        if path:
            rows.append(_on_npu(path, kind) | {"variable": variable, "model": model})
    paths = {row["path"] for row in rows}
    bundles = (file.parent for file in sorted(store.root.glob(f"*/{MANIFEST_NAME}")))
    return rows + [_on_npu(bundle) for bundle in bundles if str(bundle) not in paths]


def _on_npu(path: Path, kind: str = "") -> dict[str, Any]:
    """What a file or bundle for the NPU is, or what is wrong with it."""
    from tars_rag.errors import ModelError
    from tars_rag.runtimes.npu.bundle import read_model
    from tars_rag.runtimes.npu.manifest import load_manifest

    row: dict[str, Any] = {"name": path.name, "where": "NPU", "path": str(path)}
    try:
        used_as = kind or load_manifest(path).kind
        npu = read_model(path, "embedder" if used_as == "embedder" else "cross-encoder")
    except ModelError as error:
        return row | {"problem": str(error)}
    known: dict[str, Any] = {"model": npu.model, "target": npu.target, "toolkit": npu.toolkit}
    known |= {"kind": used_as, "precision": npu.precision, "remarks": npu.remarks}
    return row | {name: value for name, value in known.items() if value}


def _model_findings(models: list[dict[str, Any]], machine: Machine) -> list[dict[str, str]]:
    from tars_rag.runtimes.npu.library import compare

    found = []
    for model in models:
        name = model["name"]
        convert = (
            f"tars-rag convert {model.get('model') or name} --target {machine.soc or 'rk3588'}"
        )
        if model.get("precision"):
            convert += f" --precision {model['precision']}"
        if "problem" in model:
            variable = model.get("variable")
            fix = f"unset {variable}" if variable else f"rm -r {shlex.quote(model['path'])}"
            fix += f"  (or make it anew on a PC: {convert})"
            found.append(_finding("error", model["problem"], "it cannot be loaded", fix))
            continue
        target, toolkit = model.get("target"), model.get("toolkit")
        if target and machine.has_npu and target != machine.soc:
            why = f"this board is a {machine.soc}; the file does not run on it"
            found.append(_finding("error", f"{name} was converted for {target}", why, convert))
        if odd := compare(name, toolkit, machine.library_version, convert):
            found.append(_finding("warning", odd.what, odd.why, odd.fix))
        for remark in model.get("remarks", ()):
            why = "it may be slow there, or fail, though the simulator gave the right answers"
            better = _without_integers(model.get("precision") or "")
            fix = (
                f"{convert.partition(' --precision')[0]} --precision {better}"
                if better
                else f"python benchmarks/npu_cores.py --rknn-path {shlex.quote(model['path'])}"
            )
            found.append(_finding("warning", f"{name}: {remark}", why, fix))
    return found


def _placement_row(placed: list[dict[str, Any]]) -> tuple[str, str]:
    """Of which models it was measured where they run fastest."""
    told = [
        f"{entry['model']} ({entry['kind']}): "
        + ("stale" if "stale" in entry else f"measured {entry['measured_at']}")
        for entry in placed
        if "problem" not in entry
    ]
    return "Placement", "; ".join(told) or "not measured: defaults; to measure: tars-rag bench"


def _placement_findings(placed: list[dict[str, Any]]) -> list[dict[str, str]]:
    from tars_rag.models.verdict import MEASURE

    found = []
    for entry in placed:
        if "problem" in entry:
            fix = f"rm {shlex.quote(entry['path'])} && {MEASURE}"
            found.append(_finding("warning", entry["problem"], "it is not followed", fix))
        elif "stale" in entry:
            what = f"what was measured of {entry['model']} ({entry['kind']}) holds no more"
            reason = entry["stale"].partition(" Measure again:")[0].rstrip(".")
            found.append(_finding("warning", what, f"{reason}; it is not followed", MEASURE))
        elif entry["throttled"]:
            what = f"{entry['model']} ({entry['kind']}) was measured while it was slowed down"
            found.append(_finding("warning", what, entry["throttled"], MEASURE))
    return found


def _without_integers(precision: str) -> str:
    """The precision whose graphs leave to the host what they would run on the CPU; or empty."""
    if precision.endswith("-host"):
        return ""
    return f"{precision}-host" if precision in ("hq", "int8") else "fp16-host"


def _finding(level: str, what: str, why: str, fix: str) -> dict[str, str]:
    return {"level": level, "what": what, "why": why, "fix": fix}
