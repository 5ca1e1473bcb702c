"""Stands in for convert/worker.py: ONNX Runtime instead of the simulator, a few bytes as .rknn.

Run by path with the same arguments as the worker. A file ``behaviour.json`` beside it says what
goes wrong.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime


def tell(**event):
    print(json.dumps(event), flush=True)


def main(job_file, parent):
    behaviour = json.loads(Path(__file__).with_name("behaviour.json").read_text())
    job = json.loads(Path(job_file).read_text())
    assert os.getppid() == int(parent)
    tell(step="build")
    if "pid_file" in behaviour:
        Path(behaviour["pid_file"]).write_text(str(os.getpid()))
    if behaviour.get("hang"):
        time.sleep(600)
    if behaviour.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if complaint := behaviour.get("complain"):
        print(f"\x1b[31mE RKNN: {complaint}\x1b[0m", file=sys.stderr)
    if operators := behaviour.get("operators"):
        print("D RKNN: [10:00:00.000]     Network Layer Information Table", file=sys.stderr)
        for number, (kind, numbers, unit) in enumerate(operators):
            row = f"{number:<4} {kind:<18} {numbers:<8} {unit:<6} (1,64),(4)      (1,64,1,1)"
            line = f"D RKNN: [10:00:00.000] {row}   0/0/0     48    {kind}:l0.v.r"
            print(line, file=sys.stderr)
    if rules := behaviour.get("rules"):
        Path(rules).write_text(json.dumps(job["disable_rules"]))
    if "exit" in behaviour:
        sys.exit(behaviour["exit"])
    if "error" in behaviour:
        tell(error=behaviour["error"])
        return
    if not behaviour.get("no_file"):
        Path(job["output"]).write_bytes(b"RKNN" + job["custom_string"].encode())
    session = onnxruntime.InferenceSession(job["onnx"], providers=["CPUExecutionProvider"])
    feeds = {name: np.load(f"evaluation/{name}.npy") for name in job["inputs"]}
    rows = range(len(feeds[job["inputs"][0]]))
    outputs = [
        session.run(None, {name: array[row : row + 1] for name, array in feeds.items()})[0]
        for row in rows
    ]
    result = np.concatenate(outputs)
    noise = np.random.default_rng(0).standard_normal(result.shape) * behaviour.get("noise", 0)
    np.save(job["result"], (result + noise).astype(np.float32))
    tell(done=True, build_seconds=1.0, seconds=2.0, peak_mb=10)


if __name__ == "__main__":
    main(*sys.argv[1:])
