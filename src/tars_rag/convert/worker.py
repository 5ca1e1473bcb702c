"""Runs inside the toolkit's environment, by path: ONNX and arrays in, .rknn and arrays out.

It may import what that environment has (the standard library, numpy, onnx, rknn) and nothing of
tars_rag. Its job is a JSON file; what it has to say goes to standard output, one JSON object a
line. The toolkit writes what it likes to file descriptor 1, so that is turned to standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1


def main(job_file: str, parent: str) -> None:
    """Do the job; every failure is reported as an ``error`` event."""
    # Whoever waits for this may be killed outright; then nobody would want the result.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return
    descriptor = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(descriptor, "w", buffering=1, encoding="utf-8") as events:

        def tell(**event: Any) -> None:
            events.write(json.dumps(event) + "\n")

        job = json.loads(Path(job_file).read_text(encoding="utf-8"))
        try:
            convert(job, tell)
        except Exception as error:
            tell(error=f"{type(error).__name__}: {error}")


class ToolkitError(Exception):
    """A toolkit call returned an error code."""


def check(code: object, what: str) -> None:
    """The toolkit hardly ever raises: a code other than 0 is its way to fail."""
    if code != 0:
        msg = f"{what} returned {code}"
        raise ToolkitError(msg)


def convert(job: dict[str, Any], tell: Any) -> None:
    """Build, export, and run the held-out inputs in the simulator.

    Args:
        job: ``onnx``, ``output``, ``target``, ``custom_string``; ``quantise``: ``none``,
            ``everything`` or ``chosen``; for ``chosen`` also ``int8_nodes`` (a pattern that node
            names match), ``int8_table`` and ``ranges``; ``calibration`` and ``evaluation``
            (directories with one ``.npy`` per input, [rows, ...], or None), ``inputs`` (their
            names in order), ``rows_per_run``, ``dynamic_input`` (shapes, or None),
            ``disable_rules`` (optimisations to leave out), ``result`` (where the simulated
            outputs go).
        tell: Takes an event as keywords.
    """
    from rknn.api import RKNN

    started = time.monotonic()
    tell(step="load")
    rknn = RKNN(verbose=True)  # its log has the table of the compiled operators
    configuration = {
        "target_platform": job["target"],
        "optimization_level": 3,
        "custom_string": job["custom_string"],
    }
    if job["quantise"] != "none":
        configuration |= {
            "quantized_dtype": "w8a8",
            "quantized_algorithm": "normal",
            "quantized_method": "channel",
        }
    if job["target"] == "rk3588":
        # The runtime gives every core a context of its own; without the tasks for two and three
        # cores the file is smaller.
        configuration["single_core_mode"] = True
    if job.get("disable_rules"):
        configuration["disable_rules"] = job["disable_rules"]
    if job.get("dynamic_input"):
        configuration["dynamic_input"] = job["dynamic_input"]
    check(rknn.config(**configuration), "config")
    check(rknn.load_onnx(model=job["onnx"]), "load_onnx")
    if job["quantise"] == "none":
        tell(step="build")
        check(rknn.build(do_quantization=False), "build")
    elif job["quantise"] == "everything":
        tell(step="calibrate")
        check(rknn.build(do_quantization=True, dataset=write_dataset(job)), "build")
    else:
        tell(step="calibrate")
        check(
            rknn.hybrid_quantization_step1(dataset=write_dataset(job), proposal=False),
            "hybrid_quantization_step1",
        )
        stem = Path(job["onnx"]).stem
        chosen = keep_float16(f"{stem}.model", f"{stem}.quantization.cfg", job)
        tell(step="build", int8_nodes=chosen)
        rknn.release()
        rknn = RKNN(verbose=True)  # step 2 refuses an object that has loaded a model
        check(
            rknn.hybrid_quantization_step2(
                model_input=f"{stem}.model",
                data_input=f"{stem}.data",
                model_quantization_cfg=f"{stem}.quantization.cfg",
            ),
            "hybrid_quantization_step2",
        )
    tell(step="export")
    check(rknn.export_rknn(job["output"]), "export_rknn")
    built = time.monotonic() - started
    if job.get("evaluation"):
        simulate(rknn, job, tell)
    tell(
        done=True,
        build_seconds=round(built, 1),
        seconds=round(time.monotonic() - started, 1),
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    )


def write_dataset(job: dict[str, Any]) -> str:
    """One .npy per input and row, and the list of them that the toolkit reads."""
    import numpy as np

    lines = []
    arrays = [np.load(Path(job["calibration"]) / f"{name}.npy") for name in job["inputs"]]
    for row in range(len(arrays[0])):
        names = [f"calibration_{row}_{column}.npy" for column in range(len(arrays))]
        for name, array in zip(names, arrays):  # noqa: B905
            np.save(name, array[row : row + 1])
        lines.append(" ".join(names))
    Path("dataset.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "dataset.txt"


def keep_float16(model_file: str, configuration_file: str, job: dict[str, Any]) -> int:
    """List every tensor but the chosen ones under custom_quantize_layers as float16.

    Left in int8 are the outputs of the convolutions (as the toolkit makes of linear layers)
    whose names match, and, with ``int8_table``, the word table: its Gather, the conversion
    behind it, and reshapes of either. Returns the number of convolutions left in int8.
    """
    import onnx

    graph = onnx.load(model_file).graph
    producer = {name: node for node in graph.node for name in node.output}
    inputs = {value.name for value in graph.input}
    wanted = re.compile(job["int8_nodes"]) if job["int8_nodes"] else None
    table = job["int8_table"]
    chosen = set()

    def int8(node: Any) -> bool:
        if node.op_type == "Conv":
            if wanted and wanted.match(node.name):
                chosen.add(node.name)
                return True
            return False
        if not table:
            return False
        if node.op_type in ("Gather", "exDataConvert"):
            return True
        source = node.input[0] if node.input else ""
        of_table = source in producer and producer[source].op_type == "Gather"
        return node.op_type in ("Reshape", "Transpose") and (source in inputs or of_table)

    text = Path(configuration_file).read_text(encoding="utf-8")
    for node in graph.node:
        if node.op_type == "Conv" and (found := job["ranges"].get(node.name.split(".mm")[0])):
            text = set_range(text, node.input[0], *found[:2])
            text = set_range(text, node.output[0], *found[2:])
    tensors = re.findall(r"^    (\S.*?):\s*$", text, flags=re.M)
    float16 = [t for t in tensors if "_2sdpa" in t or (t in producer and not int8(producer[t]))]
    block = "custom_quantize_layers:\n" + "".join(f"    {name}: float16\n" for name in float16)
    text, found = re.subn(
        r"custom_quantize_layers:.*?(?=^\S)", lambda _: block, text, count=1, flags=re.M | re.S
    )
    if found != 1 or not float16:
        msg = "the toolkit's quantisation file does not look as expected"
        raise ToolkitError(msg)
    Path(configuration_file).write_text(text, encoding="utf-8")
    return len(chosen)


def set_range(text: str, tensor: str, low: float, high: float) -> str:
    """Put another range into the tensor's block of the quantisation file."""
    # Scale and zero point follow from these; the toolkit refuses a file that changes them.
    values = {"min": min(low, 0.0), "max": max(high, 0.0)}
    head = re.search(rf"^    {re.escape(tensor)}:\s*$", text, flags=re.M)
    if not head:
        msg = f"the toolkit's quantisation file does not list {tensor}"
        raise ToolkitError(msg)
    end = re.compile(r"^    \S", flags=re.M).search(text, head.end())
    stop = end.start() if end else len(text)
    block = text[head.end() : stop]
    for name, value in values.items():
        block, found = re.subn(
            rf"^(        {name}:\s*\n\s+-\s+)\S+$", rf"\g<1>{value}", block, flags=re.M
        )
        if found != 1:
            msg = f"the toolkit's quantisation file has no single {name} for {tensor}"
            raise ToolkitError(msg)
    return text[: head.end()] + block + text[stop:]


def simulate(rknn: Any, job: dict[str, Any], tell: Any) -> None:
    """Run every held-out row and save the first output of each, [rows, ...]."""
    import numpy as np

    check(rknn.init_runtime(), "init_runtime")
    arrays = [np.load(Path(job["evaluation"]) / f"{name}.npy") for name in job["inputs"]]
    rows, batch = len(arrays[0]), job["rows_per_run"]
    outputs = []
    for row in range(0, rows, batch):
        answer = rknn.inference(inputs=[array[row : row + batch] for array in arrays])
        if not answer:
            msg = f"the simulator returned nothing for row {row}"
            raise ToolkitError(msg)
        outputs.append(np.asarray(answer[0], np.float32))
        tell(step="simulate", row=row + batch, rows=rows)
    np.save(job["result"], np.concatenate(outputs))


if __name__ == "__main__":
    main(*sys.argv[1:])
