"""What a Ray cluster costs, and what it survives: two nodes on this machine, each with one CPU.

    python benchmarks/ray_cluster.py --passages 20000

Each node is a `ray start` in a network namespace with an address of its own (needs root and `ip`)
and has its own model cache, so that the model is brought to it. `tars-rag embed` runs three times
on the same passages: in one process with two threads, on the cluster, and on the cluster while a
worker and then a node are killed. Prints one JSON document: seconds, the ratio of the first two,
and whether ids and vectors of all three are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from tars_rag.ingest.embed_files import SHARD

WORDS = [f"word{number}" for number in range(2000)]
ADDRESS = "10.77.0.{}"


def write_passages(path: Path, count: int) -> None:
    source = random.Random(7)
    with path.open("w") as stream:
        for number in range(count):
            text = " ".join(source.choices(WORDS, k=source.randint(8, 60)))
            stream.write(json.dumps({"id": f"d{number}", "text": text}) + "\n")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def inside(node: int, *command: str, cache: Path | None = None) -> list[str]:
    variables = [f"MODEL_CACHE_DIR={cache}"] if cache else []
    return ["ip", "netns", "exec", f"tars{node}", "env", *variables, *command]


class Nodes:
    """Two network namespaces with a wire between them, and Ray in each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for node in (1, 2):
            ip("netns", "add", f"tars{node}")
        ip("link", "add", "tars-v1", "netns", "tars1", "type", "veth", "peer", "name", "tars-v2",
           "netns", "tars2")  # fmt: skip
        for node in (1, 2):
            ip("-n", f"tars{node}", "addr", "add", f"{ADDRESS.format(node)}/24", "dev",
               f"tars-v{node}")  # fmt: skip
            for device in ("lo", f"tars-v{node}"):
                ip("-n", f"tars{node}", "link", "set", device, "up")
        self.processes = [self.start(1), self.start(2)]

    def start(self, node: int) -> subprocess.Popen[bytes]:
        """Begin one; there is no cheap way to ask it when it is ready."""
        role = ["--head", "--port=6379"] if node == 1 else [f"--address={ADDRESS.format(1)}:6379"]
        words = ["start", *role, f"--node-ip-address={ADDRESS.format(node)}", "--num-cpus=1",
                 "--disable-usage-stats", "--include-dashboard=false", "--block",
                 "--object-store-memory=300000000",
                 f"--temp-dir={self.folder}/r{node}"]  # fmt: skip
        command = [sys.executable, "-m", "ray.scripts.scripts", *words]
        if node == 2:
            command.remove("--include-dashboard=false")
        cache = self.folder / f"models{node}"
        log = (self.folder / f"ray{node}.log").open("wb")
        process = subprocess.Popen(inside(node, *command, cache=cache), stdout=log, stderr=log)
        time.sleep(15 if node == 1 else 10)
        return process

    def kill_node(self, node: int) -> None:
        """All its processes at once, as when the power goes."""
        pids = subprocess.run(
            ["ip", "netns", "pids", f"tars{node}"], check=True, capture_output=True, text=True
        )
        for pid in pids.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        self.processes[node - 1].wait()

    def close(self) -> None:
        """Leave nothing behind."""
        for node in (1, 2):
            self.kill_node(node)
            ip("netns", "del", f"tars{node}")


def embed(source: Path, output: Path, *more: str, node: int | None = None) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tars_rag", "embed", str(source), str(output), "--device", "cpu"]
    command = [*words, "--json", *more]
    return subprocess.Popen(
        command if node is None else inside(node, *command),
        stdout=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> float:
    said, _ = process.communicate()
    if process.returncode:
        sys.exit(f"tars-rag embed ended with {process.returncode}")
    try:
        return float(json.loads(said)["seconds"])
    except ValueError:
        sys.exit(f"tars-rag embed said, where JSON was to be: {said}")


def parts(output: Path) -> int:
    folder = output.with_name(output.name + ".parts")
    return len(list(folder.glob("*.parquet"))) if folder.exists() else 0


def differing(one: Path, two: Path) -> dict[str, float]:
    a, b = (pq.read_table(path).to_pydict() for path in (one, two))
    far = max(
        abs(x - y)
        for left, right in zip(a["vector"], b["vector"], strict=True)
        for x, y in zip(left, right, strict=True)
    )
    return {"ids_equal": a["id"] == b["id"], "largest_difference": far, "rows": len(b["id"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=20_000)
    count = parser.parse_args().passages
    address = f"{ADDRESS.format(1)}:6379"
    with tempfile.TemporaryDirectory(prefix="tr") as name:
        folder = Path(name)
        source = folder / "rows.jsonl"
        write_passages(source, count)
        alone = finished(embed(source, folder / "alone"))
        nodes = Nodes(folder)
        try:
            cluster = finished(embed(source, folder / "cluster", "--ray", address, node=1))
            output = folder / "killed"
            process = embed(source, output, "--ray", address, node=1)
            shards = -(-count // SHARD)
            while parts(output) < max(1, shards // 4):
                time.sleep(0.1)
            workers = [p for p in psutil.process_iter(["name"]) if "_Worker" in p.info["name"]]
            workers[0].kill()
            while parts(output) < max(2, shards // 2):
                time.sleep(0.1)
            nodes.kill_node(2)
            killed = finished(process)
        finally:
            nodes.close()
        result = {
            "passages": count,
            "seconds": {"alone": alone, "cluster": cluster, "killed": killed},
            "cluster_to_alone": cluster / alone,
            "cluster_against_alone": differing(folder / "alone", folder / "cluster"),
            "killed_against_alone": differing(folder / "alone", folder / "killed"),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
