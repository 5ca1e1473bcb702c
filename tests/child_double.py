"""What child processes run in the tests: parts that fail at the worst moment."""

from __future__ import annotations

import threading
import time
from typing import Any

from tars_rag.child import Link
from tars_rag.retrieval.indexes.chroma import child as chroma_child


class Panic(BaseException):
    """As pyo3 raises it where Rust panics: no `Exception`."""


def serve(links: list[Link]) -> None:
    """Answers as the question says, and is read by a thread of its own, as the NPU's cores are."""
    [link] = links
    questions: list[Any] = []
    arrived = threading.Semaphore(0)

    def read() -> None:
        while True:
            questions.append(link.receive()[0])
            arrived.release()

    def as_header(error: BaseException) -> Any:
        if question == "panic, and no words for it":
            raise RuntimeError("no words")
        return {"error": f"{type(error).__name__}: {error}"}

    threading.Thread(target=read, daemon=True).start()
    while arrived.acquire():
        question = questions.pop()
        try:
            link.reply(lambda: _answer(question), as_header)  # noqa: B023
        except RuntimeError:
            time.sleep(60)  # the process lives on: only the link can tell


def _answer(question: str) -> Any:
    if question.startswith("panic"):
        raise Panic("in native code")
    deep: Any = 0
    for _ in range(100_000):
        deep = [deep]
    answers = {
        "a set": ({1, 2}, {}),
        "an object": (object(), {}),
        "deep": (deep, {}),
        "no array": ({}, {"rows": None}),
        "array of objects": ({}, {"rows": __import__("numpy").array([object()])}),
    }
    return answers.get(question, (question, {}))


def serve_chroma(links: list[Link]) -> None:
    """The real server over a Chroma that counts wrongly and panics in `get`."""
    import chromadb

    def panic(*_: Any, **__: Any) -> Any:
        raise Panic("in native code")

    counts = iter([object(), {1}, 3])
    chromadb.Collection.count = lambda self: next(counts)  # type: ignore[assignment, return-value, method-assign]
    chromadb.Collection.get = panic  # type: ignore[method-assign]
    chroma_child.serve(links)
