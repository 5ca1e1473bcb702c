"""A model hub on the loopback address, with the answers and layouts of the real one.

Large files are on another path, behind a redirect, and can be had in parts; the listing says their
sha256. `Hub.faults` says what goes wrong with a path, once for each entry.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """What the hub has, and what was asked of it."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, bytes]] = {}
        self.token: dict[str, str] = {}
        self.faults: dict[str, list[str | int]] = {}
        self.asked: list[str] = []
        self.address = ""

    def add(self, repository: str, folder: Path) -> None:
        """Publish a model directory."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.models[repository] = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in files
        }


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def large(name: str) -> bool:
    return name.endswith((".safetensors", "tokenizer.json"))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        stored = re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path)
        found = listing or file or stored
        repository = found[1] if found else ""
        files = hub.models.get(repository)
        name = found[2] if found and not listing else "listing"
        queue = hub.faults.get(name, [])
        fault = queue[0] if queue and (body or isinstance(queue[0], int)) else ""
        if fault:
            queue.pop(0)
        if isinstance(fault, int):
            self._send(fault, b'{"error": "said by the stand-in"}', body=body)
        elif files is None or (not listing and name not in files):
            code = "EntryNotFound" if files else "RepoNotFound"
            self._send(404, b"{}", body=body, **{"X-Error-Code": code})
        elif not self._allowed(repository) and not stored:
            code = "GatedRepo" if hub.token[repository].startswith("gated") else "RepoNotFound"
            status = 403 if code == "GatedRepo" else 401
            self._send(status, b"{}", body=body, **{"X-Error-Code": code})
        elif listing:
            self._send(200, self._listing(repository, files), body=body)
        elif file and large(name):
            self._send(
                302,
                b"",
                body=body,
                Location=f"{hub.address}/cdn/{repository}/{name}",
                ETag=f'"{sha(files[name])}"',
                **{
                    "X-Linked-Etag": f'"{sha(files[name])}"',
                    "X-Linked-Size": str(len(files[name])),
                    "X-Repo-Commit": COMMIT,
                },
            )
        else:
            self._content(files[name], str(fault), body=body)

    def _listing(self, repository: str, files: dict[str, bytes]) -> bytes:
        rows: list[dict[str, object]] = []
        for name, content in files.items():
            row: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": "b"}
            if large(name):
                row["lfs"] = {"sha256": sha(content), "size": len(content), "pointerSize": 130}
            rows.append(row)
        return json.dumps({"id": repository, "sha": COMMIT, "siblings": rows}).encode()

    def _content(self, content: bytes, fault: str, *, body: bool) -> None:
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked:
            start = int(asked[1])
        if fault == "altered":
            content = bytes([content[0] ^ 1]) + content[1:]
        rest = content[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", f'"{sha(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        if fault == "cut":
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(rest)

    def _allowed(self, repository: str) -> bool:
        wanted = self.hub.token.get(repository)
        return wanted is None or self.headers.get("Authorization") == f"Bearer {wanted}"

    def _send(self, status: int, content: bytes, *, body: bool, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...
