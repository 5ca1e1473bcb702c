"""One job for the toolkit, in its own environment, as a child process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from tars_rag.convert.environment import clean_environment
from tars_rag.convert.process import child
from tars_rag.convert.quantised import Ranges
from tars_rag.errors import ConversionError
from tars_rag.progress import NamedProgress

Arrays = Mapping[str, NDArray[Any]]

WORKER: Final = Path(__file__).with_name("worker.py")
_LOG: Final = "toolkit.log"


@dataclass(frozen=True, slots=True)
class Job:
    """What the worker is to do; see `worker.convert`.

    Attributes:
        graph: Serialised ONNX, fixed shapes.
        inputs: Names of its inputs in order.
        target: The SoC.
        custom_string: Stored in the file as it is.
        quantise: ``none``, ``chosen`` or ``everything``.
        int8_nodes: A pattern that the names of the convolutions to quantise match.
        int8_table: Quantise the word table as well.
        ranges: The int8 ranges of chosen layers, see `quantised.Ranges`.
        calibration: Input arrays [rows, ...], or None.
        evaluation: Input arrays [rows, ...] to simulate.
        rows_per_run: Rows of `evaluation` that go through the graph at once.
        dynamic_input: Shapes of the inputs for each of several lengths, or None.
        disable_rules: Names of the toolkit's optimisations that are to be left out.
    """

    graph: bytes
    inputs: tuple[str, ...]
    target: str
    custom_string: str
    quantise: Literal["none", "chosen", "everything"]
    evaluation: Arrays
    int8_nodes: str | None = None
    int8_table: bool = False
    ranges: Ranges = field(default_factory=dict)
    calibration: Arrays | None = None
    rows_per_run: int = 1
    dynamic_input: list[list[list[int]]] | None = None
    disable_rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Built:
    """What the worker did.

    Attributes:
        outputs: What the simulator gave for `Job.evaluation`, float32 [rows, ...].
        build_seconds: Load to export.
        seconds: With the simulation.
        peak_mb: The child's largest resident memory, MiB.
        log: What the toolkit printed.
    """

    outputs: NDArray[np.float32]
    build_seconds: float
    seconds: float
    peak_mb: int
    log: str


def run(job: Job, python: Path, output: Path, workspace: Path, progress: NamedProgress) -> Built:
    """Build `output` (a .rknn file) and simulate it.

    Args:
        job: What to build.
        python: The toolkit environment's interpreter.
        output: The file to write.
        workspace: An existing directory for hundreds of megabytes of intermediate files, on the
            file system of `output`. They are removed if all went well.
        progress: Told the step, and of the simulator the row and the number of rows.

    Raises:
        ConversionError: The toolkit failed or was killed.
        OSError: The workspace cannot be written.
    """
    folder = workspace / output.stem
    folder.mkdir()
    (folder / "model.onnx").write_bytes(job.graph)
    description = {name: value for name, value in asdict(job).items() if name != "graph"}
    description |= {"onnx": "model.onnx", "output": str(output.resolve()), "result": "result.npy"}
    for purpose in ("calibration", "evaluation"):
        arrays: Arrays | None = getattr(job, purpose)
        description[purpose] = purpose if arrays else None
        if arrays:
            (folder / purpose).mkdir()
            for name, array in arrays.items():
                np.save(folder / purpose / f"{name}.npy", array)
    (folder / "job.json").write_text(json.dumps(description), encoding="utf-8")
    done = _work(folder, python, progress)
    if not output.is_file() or not output.stat().st_size:
        what = "the toolkit reported success but wrote no file"
        raise _failure(what, folder)
    built = Built(
        outputs=np.load(folder / "result.npy"),
        build_seconds=done["build_seconds"],
        seconds=done["seconds"],
        peak_mb=done["peak_mb"],
        log=(folder / _LOG).read_text(encoding="utf-8", errors="replace"),
    )
    shutil.rmtree(folder)
    return built


def _work(folder: Path, python: Path, progress: NamedProgress) -> dict[str, Any]:
    """Run the worker and follow its events until the last one, which is returned."""
    command = [str(python), "-I", str(WORKER), "job.json", str(os.getpid())]
    environment = {**clean_environment(), "TMPDIR": str(folder.resolve())}
    last: dict[str, Any] = {}
    with (
        (folder / _LOG).open("wb") as log,
        child(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        for line in process.stdout or ():
            last = json.loads(line)
            if "step" in last:
                progress(last["step"], last.get("row", 0), last.get("rows"))
        code = process.wait()
    if "error" in last:
        raise _failure(last["error"], folder)
    if code < 0:
        msg = (
            f"The toolkit was killed by signal {-code} while it was busy with "
            f"{last.get('step', 'starting')!r}. It needs up to 2 GB of memory: close other "
            "programs, add swap, or convert on a larger machine and copy the bundle."
        )
        raise ConversionError(msg)
    if code or not last.get("done"):
        what = f"the toolkit stopped with exit code {code}"
        raise _failure(what, folder)
    return last


def _failure(what: str, folder: Path) -> ConversionError:
    """What went wrong, with the toolkit's own last complaints."""
    log = (folder / _LOG).read_text(encoding="utf-8", errors="replace")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log).replace("\r", "\n").splitlines()
    complaints = [line.strip() for line in plain if re.match(r"\s*(E |.*(Error|No space))", line)]
    if any("No space left" in line for line in (what, *complaints)):
        msg = (
            "The disk is full: a conversion needs about 1 GB where --out is while it runs. Free "
            "some space, or name a directory on another disk with --out. Nothing was kept."
        )
        return ConversionError(msg)
    said = f" The toolkit said: {' '.join(complaints[-4:])[:800]}" if complaints else ""
    return ConversionError(
        f"The conversion failed: {what}.{said} Try another precision or fewer lengths; if it "
        "stays so, report it with this message."
    )
