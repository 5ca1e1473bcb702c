"""A model hub on this machine, and a process that pulls from it. Run by test_model_cache.py.

    python hub_child.py serve FOLDER        prints its address, then logs each file it sends
    python hub_child.py pull CACHE WHEELS   pulls the tiny model and prints its directory

FOLDER holds the repository's files; a file named ``slow`` in it makes the hub stop halfway
through the weights, and what a file named ``fault`` says happens to each file that is asked for.
"""

from __future__ import annotations

import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from modelkit import sha, spec


class Hub(BaseHTTPRequestHandler):
    folder: Path

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        row = spec()
        path = self.folder / self.path.rpartition("/")[2]
        if f"/{row.repository}/resolve/{row.revision}/" not in self.path or not path.is_file():
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        fault = self._fault()
        if fault == "redirect" or (fault == "late redirect" and body):
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "garbage":
            self.wfile.write(b"no such protocol\r\n\r\n")
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{sha(content)}"')
        self.send_header("X-Repo-Commit", row.revision)
        self.end_headers()
        if not body:
            return
        if fault in ("truncated", "reset"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0" * 2)
            self.close_connection = True
            return
        print(path.name, flush=True)
        if path.name == "model.safetensors" and (self.folder / "slow").exists():
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            time.sleep(60)
        self.wfile.write(content)

    def _fault(self) -> str:
        file = self.folder / "fault"
        return file.read_text() if file.exists() else ""

    def log_message(self, *_: object) -> None: ...


def serve(folder: Path) -> None:
    Hub.folder = folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def pull(cache: Path) -> None:
    from tars_rag.models import catalog
    from tars_rag.models.cache import ModelCache

    row = spec()
    catalog._BY_NAME[row.name] = row  # type: ignore[index]
    print(ModelCache(cache).pull(row.name).directory, flush=True)


if __name__ == "__main__":
    {"serve": serve, "pull": pull}[sys.argv[1]](Path(sys.argv[2]))
