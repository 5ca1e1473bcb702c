"""The protocol with child processes: whoever asks gets an answer or an end, never neither."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tars_rag.child import Child, pack
from tars_rag.errors import StoreError
from tars_rag.retrieval.indexes.chroma import process as chroma_process
from tars_rag.retrieval.indexes.chroma.client import ChromaError

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child("child_double:serve")
    yield child
    child.kill()
    child.close()


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ("a set", "TypeError"),
        ("an object", "TypeError"),
        ("deep", "RecursionError"),
        ("no array", "TypeError: rows is not an array"),
        ("array of objects", "TypeError: rows is not an array"),
        ("panic", "Panic: in native code"),
    ],
)
def test_an_answer_that_cannot_be_packed_is_answered_by_its_error(
    child: Child, question: str, error: str
) -> None:
    [link] = child.links
    link.send(question)
    assert link.wait(20)
    header, _ = link.receive()
    assert header["error"].startswith(error)
    link.send("hello")
    assert link.receive() == ("hello", {})


def test_where_even_the_error_cannot_be_told_the_link_ends(child: Child) -> None:
    [link] = child.links
    link.send("panic, and no words for it")
    assert link.wait(20)
    with pytest.raises((EOFError, OSError)):
        link.receive()


def test_a_question_that_cannot_be_packed_was_not_sent(child: Child) -> None:
    [link] = child.links
    with pytest.raises(TypeError):
        link.send({"op": object()})
    link.send("hello")
    assert link.receive() == ("hello", {})
    assert pack("hello")


# --- Chroma's process ---------------------------------------------------------------------------


@pytest.fixture
def chroma(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[chroma_process.ChromaProcess]:
    monkeypatch.setattr(chroma_process, "KEEP_IDLE", 0)
    monkeypatch.setattr(chroma_process, "_idle", [])
    monkeypatch.setattr(
        chroma_process, "Child", lambda entry, links: Child("child_double:serve_chroma", links)
    )
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    process = chroma_process.ChromaProcess(tmp_path / "chroma", lock, links=2)
    os.close(lock)
    yield process
    process.close()


def test_chroma_always_answers(chroma: chroma_process.ChromaProcess) -> None:
    collection = chroma.get_or_create_collection("texts", None, None)
    for _ in range(2):  # objects and sets are no JSON
        with collection.asking("count") as answer, pytest.raises(ChromaError, match="JSON"):
            answer()
    with collection.asking("get") as answer, pytest.raises(ChromaError, match="in native code"):
        answer()
    with collection.asking("count") as answer:
        assert answer() == 3


def test_a_caller_that_fails_before_it_has_its_answer_does_not_wait_for_ever(
    chroma: chroma_process.ChromaProcess,
) -> None:
    collection = chroma.get_or_create_collection("texts", None, None)
    with pytest.raises(ZeroDivisionError), collection.asking("get"):
        raise ZeroDivisionError
    assert chroma.collection_names() == ["texts"]


def test_arguments_that_are_no_json_leave_chroma_running(
    chroma: chroma_process.ChromaProcess,
) -> None:
    collection = chroma.get_or_create_collection("texts", None, None)
    deep: object = 0
    for _ in range(100_000):
        deep = [deep]
    for wrong in (deep, object()):
        with pytest.raises((RecursionError, TypeError)), collection.asking("get", ids=wrong):
            pass
    assert chroma.alive
    assert chroma.collection_names() == ["texts"]


def test_chroma_gone_is_told_at_once(chroma: chroma_process.ChromaProcess) -> None:
    collection = chroma.get_or_create_collection("texts", None, None)
    chroma.abandon()
    with pytest.raises(StoreError, match=r"SIGKILL|not running"), collection.asking("count"):
        pass
