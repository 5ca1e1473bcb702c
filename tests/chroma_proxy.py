"""A proxy before a Chroma server that delays, repeats, drops and cuts requests.

Not for the children of a fork: it is run in threads of the test's own process.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fate = Callable[[str, str], str]
"""From method and path to what is done with a request (see `Proxy`)."""


class Proxy:
    """Passes requests on to a server, as `fate` says of each:

    - ``pass``: as it is
    - ``late``: answered with a broken connection, carried out up to `delay` seconds later
    - ``twice``: carried out and answered, and carried out once more up to `delay` seconds later
    - ``cut``: carried out, but the connection is closed instead of an answer
    - ``drop``: the connection is closed, nothing is carried out
    - ``slow``: carried out and answered up to `delay` seconds later
    - ``stall``: nothing happens until the proxy is closed
    - ``half``: carried out, and half of the answer is sent before the connection is closed
    - ``trickle``: carried out, and a byte of the answer is sent every tenth of a second
    """

    def __init__(self, upstream: str, delay: float = 1.0, seed: int = 0) -> None:
        self.fate: Fate = lambda _method, _path: "pass"
        self.seen: Counter[str] = Counter()
        self._closing = threading.Event()
        self._later: list[threading.Thread] = []
        rng = random.Random(seed)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fate = proxy.fate(self.command, self.path)
                proxy.seen[fate] += 1
                wait = rng.random() * delay
                if fate == "stall":
                    proxy._closing.wait()
                kept = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                work = functools.partial(
                    _carried_out, upstream, self.command, self.path, body, kept
                )
                if fate in ("late", "twice"):
                    proxy._carry_out_later(wait, work)
                if fate in ("late", "drop", "stall"):
                    self.close_connection = True
                    return
                if fate == "slow":
                    time.sleep(wait)
                try:
                    status, headers, content = work()
                except OSError:
                    self.close_connection = True
                    return
                if fate == "cut":
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if fate == "half":
                    self.wfile.write(content[: len(content) // 2])
                    self.close_connection = True
                elif fate == "trickle":
                    for n in range(len(content)):
                        self.wfile.write(content[n : n + 1])
                        if proxy._closing.wait(0.1):
                            break
                else:
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = _handle

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None: ...

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _carry_out_later(self, wait: float, work: Callable[[], Any]) -> None:
        def run() -> None:
            time.sleep(wait)
            with contextlib.suppress(OSError, http.client.HTTPException):
                work()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._later.append(thread)

    def settle(self) -> None:
        """Wait until everything that is late has been carried out."""
        for thread in self._later:
            thread.join()
        self._later.clear()

    def close(self) -> None:
        """Let go of everybody."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _carried_out(
    upstream: str, method: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, list[tuple[str, str]], bytes]:
    """What the server answers: status, headers, content."""
    link = http.client.HTTPConnection(upstream.rpartition("/")[2], timeout=60)
    try:
        link.request(method, path, body, headers)
        answer = link.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        link.close()
