"""A server under load, against the library: answers, throughput, a lone query, overload.

    python benchmarks/serve_load.py [--clients 64] [--seconds 60] [--rounds 5] [--texts 256]

It starts `tars-rag serve` on the loopback, with stores in a temporary directory. First more is
asked than may wait. Then server and library take turns: embedding in bulk, and single queries
while bulk work goes on. At last many clients do mixed work, and every answer is compared with what
the library says of the same. Clients and server share the machine's cores.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import passages, queries
from tars_rag import Embedder, HybridStore, Passage, Reranker
from tars_rag.retrieval.pipeline import Pipeline

BULK = 64
"""Texts of one bulk request."""


class Client:
    """One connection to the server that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)

    def ask(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and answer."""
        try:
            return self._ask(path, body)
        except ConnectionError:  # it was idle for so long that the server closed it
            self._connection.close()
            return self._ask(path, body)

    def _ask(self, path: str, body: Any) -> tuple[int, Any]:
        headers = {"content-type": "application/json"}
        self._connection.request("POST", path, json.dumps(body), headers)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def right(self, path: str, body: Any, seen: Counter[str] | None = None) -> Any:
        """The answer; asked again where the server has too much to do."""
        while True:
            status, answer = self.ask(path, body)
            if status == 429:
                if seen is not None:
                    seen["429"] += 1
                time.sleep(0.2)
            elif status == 200:
                return answer
            else:
                raise AssertionError((status, answer))

    def embed(self, texts: list[str], seen: Counter[str] | None = None) -> Any:
        """The rows of texts."""
        body = {"input": texts, "encoding_format": "base64"}
        rows = self.right("/v1/embeddings", body, seen)["data"]
        return np.stack([np.frombuffer(base64.b64decode(r["embedding"]), "<f4") for r in rows])

    def close(self) -> None:
        """Leave."""
        self._connection.close()


@contextlib.contextmanager
def server(stores: dict[str, Path], model: str, reranker: str) -> Iterator[int]:
    """A process of its own: the port it listens at."""
    named = [word for name, path in stores.items() for word in ("--store", f"{name}={path}")]
    command = [sys.executable, "-m", "tars_rag", "serve", "--port", "0", "--device", "cpu", *named]
    own = {**os.environ, "EMBED_MODEL": model, "RERANK_MODEL": reranker}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=own)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"running on http://[\d.]+:(\d+)", line):
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield int(found[1])
                break
        else:
            sys.exit("The server did not start.")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


@dataclass
class Known:
    """What the library says."""

    texts: list[str]
    rows: Any
    questions: list[str]
    hits: list[list[tuple[str, float]]]
    scores: Any


def known(embedder: Embedder, reranker: Reranker, fixed: Path, count: int) -> Known:
    texts, questions = passages(None, count), queries(None, 30)
    rows = embedder.embed(texts)
    with HybridStore(fixed, embedder) as store:
        store.upsert([Passage(f"p{n}", text) for n, text in enumerate(texts)], rows)
        found = [Pipeline(store).search(question, 5).passages for question in questions]
    hits = [[(hit.id, hit.score) for hit in one] for one in found]
    scores = np.stack([reranker.score(question, texts[:5]) for question in questions])
    return Known(texts, rows, questions, hits, scores)


def mixed(port: int, it: Known, clients: int, seconds: float) -> Counter[str]:
    """Mixed work of many clients, every answer verified; what was seen."""
    seen: Counter[str] = Counter()
    lock, end = threading.Lock(), time.monotonic() + seconds

    def work(number: int) -> None:
        choose, own, client = random.Random(number), Counter[str](), Client(port)
        while time.monotonic() < end:
            kind = choose.choice(("one text", "some texts", "search", "rerank", "write"))
            if kind in ("one text", "some texts"):
                count = 1 if kind == "one text" else 16
                chosen = choose.sample(range(len(it.texts)), count)
                told = client.embed([it.texts[n] for n in chosen], own)
                good = np.allclose(told, it.rows[chosen], atol=1e-4)
            elif kind == "search":
                n = choose.randrange(len(it.questions))
                body = {"query": it.questions[n], "k": 5, "rerank": False}
                hits = client.right("/v1/stores/fixed/search", body, own)["passages"]
                good = [hit["id"] for hit in hits] == [
                    key for key, _ in it.hits[n]
                ] and np.allclose(
                    [hit["score"] for hit in hits], [score for _, score in it.hits[n]], atol=1e-4
                )
            elif kind == "rerank":
                n = choose.randrange(len(it.questions))
                body = {"query": it.questions[n], "documents": it.texts[:5]}
                rows = client.right("/v1/rerank", body, own)["results"]
                scores = {row["index"]: row["relevance_score"] for row in rows}
                good = np.allclose([scores[i] for i in range(5)], it.scores[n], atol=1e-4)
            else:
                key, path = f"of-{number}-{own['write']}", "/v1/stores/notes"
                text = it.texts[choose.randrange(len(it.texts))][:80] + f" {key}"
                client.right(f"{path}/passages", {"passages": [{"id": key, "text": text}]}, own)
                got = client.right(f"{path}/get", {"ids": [key]}, own)["passages"]
                gone = client.right(f"{path}/delete", {"ids": [key]}, own)["deleted"]
                good = [p["text"] for p in got] == [text] and gone == 1
            own[kind] += 1
            own["wrong"] += not good
        client.close()
        with lock:
            seen.update(own)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    return seen


def bulk_rates(port: int, embedder: Embedder, texts: list[str], rounds: int) -> list[float]:
    """The server's rate of embedding in bulk as a share of the library's, round by round."""
    parts = [texts[n : n + BULK] for n in range(0, len(texts), BULK)]
    ratios, local = [], threading.local()

    def ask(part: list[str]) -> None:
        if not hasattr(local, "client"):
            local.client = Client(port)
        local.client.embed(part)

    with ThreadPoolExecutor(4) as pool:
        for turn in range(rounds + 1):
            start = time.perf_counter()
            embedder.embed(texts)
            middle = time.perf_counter()
            list(pool.map(ask, parts))
            if turn:  # the first warms up
                ratios.append((middle - start) / (time.perf_counter() - middle))
    return ratios


def lone_queries(
    ask: Callable[[str], object], bulk: Callable[[], object], questions: list[str], seconds: float
) -> list[float]:
    """Milliseconds of single queries while bulk work goes on."""
    stop, times = threading.Event(), []

    def load() -> None:
        while not stop.is_set():
            bulk()

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    end, n = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        start = time.perf_counter()
        ask(questions[n % len(questions)])
        times.append((time.perf_counter() - start) * 1e3)
        time.sleep(0.02)
        n += 1
    stop.set()
    for thread in threads:
        thread.join()
    return times


def overload(port: int, texts: list[str]) -> str:
    """More than may wait: how many were refused, and how soon the server answers again."""
    whole = (texts * (2048 // len(texts) + 1))[:2048]
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=300) for _ in range(12)]
    body = json.dumps({"input": whole})
    for one in connections:
        one.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
    time.sleep(3)
    probe, refused, told = Client(port), 0, ""
    for _ in range(10):  # what was refused was answered at once
        other = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        other.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
        other.sock.settimeout(2)
        with contextlib.suppress(TimeoutError):
            answer = other.getresponse()
            refused += answer.status == 429
            told = answer.headers.get("Retry-After", "nothing")
        other.close()
    for one in connections:
        one.close()  # they leave: their work is dropped
    start = time.perf_counter()
    probe.embed(texts[:BULK])
    seconds = time.perf_counter() - start
    return f"{refused} of 10 refused (Retry-After: {told}); then {BULK} texts took {seconds:.1f} s"


def p99(times: list[float]) -> float:
    return float(np.percentile(times, 99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=256, help="Of one round of bulk work.")
    parser.add_argument("--no-overload", dest="overload", action="store_false")
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--reranker", default="ms-marco-MiniLM-L-12-v2")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Embedder(options.model, device="cpu") as embedder,
        Reranker(options.reranker) as reranker,
    ):
        stores = {name: Path(folder) / name for name in ("fixed", "notes")}
        it = known(embedder, reranker, stores["fixed"], options.texts)
        with server(stores, options.model, options.reranker) as port:
            print(f"load of the machine before: {os.getloadavg()[0]:.1f}", flush=True)
            client = Client(port)
            if options.overload:
                print("overload:", overload(port, it.texts), flush=True)
            ratios = bulk_rates(port, embedder, it.texts, options.rounds)
            told = ", ".join(f"{one:.2f}" for one in ratios)
            print(
                f"bulk, of the library's rate: {statistics.median(ratios):.2f} ({told})", flush=True
            )
            times: dict[str, list[float]] = {"library": [], "server": []}
            for _ in range(options.rounds):
                for name, (one, many) in {
                    "library": (embedder.embed_query, lambda: embedder.embed(it.texts[:BULK])),
                    "server": (
                        lambda text: client.embed([text]),
                        lambda: Client(port).embed(it.texts[:BULK]),
                    ),
                }.items():
                    times[name] += lone_queries(one, many, it.questions, 4)
            for name, some in times.items():
                half = statistics.median(some)
                print(
                    f"lone query under bulk, {name}: median {half:.1f} ms, p99 {p99(some):.1f} ms"
                )
            print(f"p99, times the library's: {p99(times['server']) / p99(times['library']):.2f}")
            seen = mixed(port, it, options.clients, options.seconds)
            print(f"{options.clients} clients, {options.seconds:g} s: {dict(sorted(seen.items()))}")
            print(f"load of the machine after: {os.getloadavg()[0]:.1f}")
        with HybridStore(stores["notes"], embedder) as store:
            print(f"left in the store that was written to: {store.count()}")


if __name__ == "__main__":
    main()
