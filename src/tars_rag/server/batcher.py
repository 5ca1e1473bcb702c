"""Texts of different clients in one run of the embedder, without making anybody wait for more.

Two threads: one for those who wait for an answer (a query, a few texts), one for bulk work. Each
takes what is waiting as soon as it is free, so a lone text is never held back for company, and
texts that arrive while a run goes on share the next one. Bulk work is cut into slices, and clients
take turns.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import TarsRagError

Prompt = Literal["query", "passage"]
Lane = Literal["query", "bulk"]
Rows = NDArray[np.float32]

SLICE: Final = 64
"""Most texts of one run."""
FEW: Final = 4
"""Texts of one request that go with the queries."""
MOST_WAITING: Final = 8192
"""Texts that may wait in all; more are refused."""


class OverloadedError(TarsRagError):
    """Too much is waiting; the same request may be sent again in a moment."""


@dataclass(eq=False)
class _Job:
    texts: list[str]
    prompt: Prompt
    future: Future[Rows] = field(default_factory=Future)
    rows: list[Rows] = field(default_factory=list)
    done: int = 0


class Batcher:
    """Embeds for many callers at once.

    Args:
        embedder: Has `embed`, and maybe `embed_query` and `embed_queries`.
        most_waiting: Texts that may wait in all.
    """

    def __init__(self, embedder: Any, most_waiting: int = MOST_WAITING) -> None:
        self._embedder = embedder
        self._most_waiting = most_waiting
        self._changed = threading.Condition()
        self._jobs: dict[Lane, deque[_Job]] = {"query": deque(), "bulk": deque()}
        self._waiting = 0
        self._closed = False
        self.on_run: Callable[[int], None] = lambda texts: None
        lanes: tuple[Lane, ...] = ("query", "bulk")
        self._threads = [
            threading.Thread(target=self._work, args=(lane,), name=f"embed-{lane}", daemon=True)
            for lane in lanes
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Texts that nobody has begun."""
        return self._waiting

    def submit(self, texts: Sequence[str], prompt: Prompt = "passage") -> Future[Rows]:
        """Embed texts; float32 [n, dimension] in their order.

        Cancelling the future drops what of them has not begun.

        Raises:
            OverloadedError: Too much is waiting, or the batcher is closed.
        """
        job = _Job(list(texts), prompt)
        lane: Lane = "query" if len(job.texts) <= FEW else "bulk"
        with self._changed:
            self._take_room(len(job.texts))
            self._jobs[lane].append(job)
            self._changed.notify_all()
        return job.future

    @contextlib.contextmanager
    def room(self, texts: int) -> Iterator[None]:
        """Count texts as waiting while they are looked at, so that too many are refused before.

        Raises:
            OverloadedError: As `submit`.
        """
        with self._changed:
            self._take_room(texts)
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= texts

    def _take_room(self, texts: int) -> None:
        if self._closed:
            msg = "The server is stopping. Try again in a moment."
            raise OverloadedError(msg)
        if self._waiting and self._waiting + texts > self._most_waiting:
            msg = f"{self._waiting} texts are waiting already. Try again in a moment."
            raise OverloadedError(msg)
        self._waiting += texts

    def close(self) -> None:
        """Finish what is waiting, then stop. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, lane: Lane) -> None:
        while parts := self._take(lane):
            self._run(parts)
            # A job that is not done goes behind the others.
            with self._changed:
                for job, _ in parts:
                    left = len(job.texts) - job.done
                    if left and job.future.done():  # its client left meanwhile
                        self._waiting -= left
                    elif left:
                        self._jobs[lane].append(job)

    def _take(self, lane: Lane) -> list[tuple[_Job, list[str]]]:
        """The next texts to run together, all with one prompt; none: the end."""
        jobs = self._jobs[lane]
        with self._changed:
            while True:
                self._drop_left(jobs)
                if jobs:
                    break
                if self._closed:
                    return []
                self._changed.wait()
            prompt, room = jobs[0].prompt, SLICE
            parts: list[tuple[_Job, list[str]]] = []
            while jobs and room and jobs[0].prompt == prompt:
                job = jobs.popleft()
                part = job.texts[job.done : job.done + room]
                room -= len(part)
                self._waiting -= len(part)
                parts.append((job, part))
            return parts

    def _drop_left(self, jobs: deque[_Job]) -> None:
        """Forget the jobs of clients that left."""
        for job in [job for job in jobs if job.future.cancelled()]:
            jobs.remove(job)
            self._waiting -= len(job.texts) - job.done

    def _run(self, parts: list[tuple[_Job, list[str]]]) -> None:
        texts = [text for _, part in parts for text in part]
        try:
            rows = self._embed(texts, parts[0][0].prompt)
        except Exception as error:  # told to whom it belongs, and to nobody else
            if len(parts) > 1:
                for alone in parts:
                    self._run([alone])
            else:
                self._fail(parts[0], error)
            return
        start = 0
        for job, part in parts:
            job.rows.append(rows[start : start + len(part)])
            job.done += len(part)
            start += len(part)
            if job.done == len(job.texts) and job.future.set_running_or_notify_cancel():
                job.future.set_result(np.concatenate(job.rows))

    def _fail(self, part: tuple[_Job, list[str]], error: Exception) -> None:
        job, texts = part
        with self._changed:
            self._waiting -= len(job.texts) - job.done - len(texts)
        job.done = len(job.texts)
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)

    def _embed(self, texts: list[str], prompt: Prompt) -> Rows:
        self.on_run(len(texts))
        if prompt == "passage":
            return np.asarray(self._embedder.embed(texts), np.float32)
        several = getattr(self._embedder, "embed_queries", None)
        if several is not None:
            return np.asarray(several(texts), np.float32)
        one = getattr(self._embedder, "embed_query", None)
        if one is None:
            return np.asarray(self._embedder.embed(texts), np.float32)
        return np.stack([np.asarray(one(text), np.float32) for text in texts])


class BatchedEmbedder:
    """An embedder whose texts go through a `Batcher`; what a store of the server is given."""

    def __init__(self, embedder: Any, batcher: Batcher) -> None:
        self._embedder = embedder
        self._batcher = batcher
        self.fingerprint: str = embedder.fingerprint

    def embed(self, texts: Sequence[str]) -> Rows:
        """Vectors [n, dim] of n passages."""
        if not texts:
            return np.asarray(self._embedder.embed(texts), np.float32)
        return self._batcher.submit(texts).result()

    def embed_query(self, text: str) -> Rows:
        """The vector [dim] of one query, with others that are waiting."""
        row: Rows = self._batcher.submit([text], "query").result()[0]
        return row

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._embedder, name)
