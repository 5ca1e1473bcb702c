"""The command line end to end, over tiny models with random weights, without a network."""

from __future__ import annotations

import ast
import contextlib
import gzip
import json
import os
import pickle
import pty
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from tars_rag.cli import app, console
from tars_rag.cli.console import say_again, say_once
from tars_rag.errors import StoreError
from tars_rag.models.embedder import Embedder
from tars_rag.models.local import write_record
from tars_rag.models.reranker import Reranker
from tars_rag.retrieval.lending import lend
from tars_rag.retrieval.storage.holder import Holder
from tars_rag.retrieval.storage.layout import SOURCES as NAME
from tars_rag.retrieval.storage.store_json import VERSION
from tars_rag.retrieval.store import HybridStore
from tars_rag.settings import Settings
from tiny_models import *  # noqa: F403  (fixtures)

MISSING = "ms-marco-TinyBERT-L-2-v2"


@pytest.fixture(autouse=True)
def board(embedder_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board without a hub, whose .env names a tiny embedder and a reranker it does not have."""
    for name in ("RAG_STRATEGY", "MEMORY_TOP_K", "NPU_EMBEDDER_ENABLED", "NPU_RERANK_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EMBED_MODEL", embedder_dir)
    monkeypatch.setenv("RERANK_MODEL", MISSING)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    directory = tmp_path / "notes"
    directory.mkdir()
    (directory / "boards.md").write_text("# Boards\n\nA board with a fan sleeps well.")
    (directory / "cats.txt").write_text("The cat and the dog sleep on the sofa.")
    (directory / "rows.jsonl").write_text(
        '{"id": "m1", "text": "piano music", "metadata": {"kind": "music"}}\n'
        '{"id": "m2", "text": "guitar music in the garden", "metadata": {"kind": "music"}}\n'
    )
    return directory


def run(*arguments: str | Path) -> typer.testing.Result:
    result = typer.testing.CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def ok(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(*arguments: str | Path, code: int = 1) -> str:
    """What a failing command says on stderr; nothing may be on stdout, no traceback anywhere."""
    result = run(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if code == 1:
        *_, line = result.stderr.strip().splitlines()
        assert line.startswith("error: ")
    return result.stderr


# --- the frame ---


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        yield (*path, name), command
        if hasattr(command, "list_commands"):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_help_lists_every_command() -> None:
    page = ok("--help")
    for name in ("quickstart", "index", "query", "store", "models", "eval"):
        assert f" {name} " in page


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_a_help_page_and_is_in_the_docs(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert f"Usage: tars-rag {' '.join(path)}" in ok(*path, "--help")
    docs = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
    assert f"tars-rag {' '.join(path)}" in docs
    if path[0] in ("convert", "doctor", "bench"):  # they have pages of their own
        return
    options = {name for parameter in command.params for name in parameter.opts if name[:2] == "--"}
    assert {name for name in options - {"--help"} if name not in docs} == set()


def test_version() -> None:
    assert ok("--version").startswith("tars-rag 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing-like-it"],
        ["query", "x"],
        ["query", "x", "--store", "s", "-k", "0"],
        ["query", "x", "--store", "s", "--strategy", "dense"],
        ["query", "x", "--store", "s", "--where", "{"],
        ["query", "x", "--store", "s", "--where", "[1]"],
        ["query", "x", "--store", "s", "--budget-ms", "0"],
        ["index", "--store", "s"],
        ["index", "x", "--store", "s", "--device", "gpu"],
        ["models"],
    ],
)
def test_a_mistake_in_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_errors_are_one_red_line_and_a_traceback_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    import tars_rag.cli.query

    def broken(*_: object) -> None:
        msg = "The disk is gone.\nMount it."
        raise StoreError(msg)

    monkeypatch.setattr(tars_rag.cli.query.resources, "require_store", broken)
    line = refused("query", "x", "--store", "s")
    assert line == "error: The disk is gone. Mount it.\n"
    with pytest.raises(StoreError, match="The disk is gone"):
        run("--debug", "query", "x", "--store", "s")


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("RAG_STRATEGY", "dense", "naive"),
        ("MEMORY_TOP_K", "0", "greater than"),
        ("NPU_CORE_MASK", "9", "0_1_2"),
        ("NPU_EMBEDDER_ENABLED", "maybe", "true"),
    ],
)
def test_an_unknown_value_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, allowed: str, notes: Path
) -> None:
    monkeypatch.setenv(variable, value)
    line = refused("index", notes, "--store", "s")
    assert f"{variable}='{value}'" in line
    assert allowed in line


def test_a_dot_env_file_is_read(
    notes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ok("index", notes, "--store", "s")
    (tmp_path / ".env").write_text("MEMORY_TOP_K=1\nRAG_STRATEGY=lexical\n")
    found = json.loads(ok("query", "music", "--store", "s", "--json"))
    assert found["strategy"] == "lexical"
    assert len(found["passages"]) == 1
    found = json.loads(ok("query", "music", "--store", "s", "--json", "-k", "2"))
    assert len(found["passages"]) == 2


# --- index ---


def test_index_twice_and_after_a_change(notes: Path) -> None:
    first = json.loads(ok("index", notes, "--store", "s", "--json"))
    assert (first["indexed"], first["written"], first["total"]) == (3, 4, 4)
    again = json.loads(ok("index", notes, "--store", "s", "--json"))
    assert (again["indexed"], again["unchanged"], again["written"]) == (0, 3, 0)
    (notes / "cats.txt").write_text("A bird.")
    assert "1 files indexed, 2 unchanged" in ok("index", notes, "--store", "s")
    (notes / "cats.txt").unlink()
    result = run("index", notes, "--store", "s")
    assert "--prune deletes their passages" in result.stderr
    pruned = json.loads(ok("index", notes, "--store", "s", "--prune", "--json"))
    assert (pruned["deleted"], pruned["total"]) == (1, 3)


def test_index_goes_on_past_a_bad_file_and_says_so(notes: Path) -> None:
    (notes / "bad.txt").write_bytes(b"\xff\xfe")
    (notes / "bad.md").write_bytes(b"caf\0\xe9")
    (notes / "photo.png").write_bytes(b"\x89PNG")
    result = run("index", notes, "--store", "s", "--json")
    assert result.exit_code == 1
    assert "bad.md is a binary file" in result.stderr
    assert "1 .png" in result.stderr
    summary = json.loads(result.stdout)
    assert summary["total"] == 4
    assert [Path(f["source"]).name for f in summary["failures"]] == ["bad.md"]


def test_a_file_of_bad_rows_is_one_line(notes: Path) -> None:
    (notes / "figures.jsonl").write_text('{"value": 1}\n' * 70 + '{"text": "a board"}\n')
    (notes / "other.jsonl").write_text("[]\n")
    result = run("index", notes, "--store", "s", "--json")
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("not indexed")]
    assert len(lines) == 2
    assert "figures.jsonl: line 1: 'text' is missing (and 69 more rows; --json" in lines[0]
    assert "other.jsonl: line 1: " in lines[1]
    failures = json.loads(result.stdout)["failures"]
    assert len(failures) == 71
    assert failures[69]["problem"].startswith("line 70: ")


def test_many_bad_files_are_counted(notes: Path) -> None:
    for number in range(30):
        (notes / f"{number:02}.txt").write_bytes(b"caf\0\xe9")
    errors = run("index", notes, "--store", "s").stderr
    assert errors.count("not indexed: ") == 20
    assert "... and 10 more files" in errors


def blank(directory: Path) -> None:
    (directory / "blank.md").write_text("\n")


def image(directory: Path) -> None:
    (directory / "photo.png").write_bytes(b"\x89PNG\0")


def bad_row(directory: Path) -> None:
    (directory / "rows.jsonl").write_text('{"id": "a"}\n')


@pytest.mark.parametrize("make", [None, blank, image, bad_row])
@pytest.mark.parametrize("json_wanted", [False, True])
def test_a_slip_in_the_path_makes_no_store(tmp_path: Path, make: Any, json_wanted: bool) -> None:
    if make:
        (tmp_path / "dir").mkdir()
        make(tmp_path / "dir")
    result = run("index", "dir", "--store", "s2", *(["--json"] if json_wanted else []))
    assert result.exit_code == 1
    assert "error: There is no text to index in dir, so no store was made at s2" in result.stderr
    assert not (tmp_path / "s2").exists()
    if json_wanted:
        assert json.loads(result.stdout)["total"] == 0
    assert "There is no store at s2" in refused("query", "x", "--store", "s2")


def test_an_option_that_is_refused_makes_no_store(notes: Path, tmp_path: Path) -> None:
    refused("index", notes, "--store", "s2", "--chunk-tokens", "9999")
    refused("index", notes, "--store", "s2", "--overlap", "9999")
    assert not (tmp_path / "s2").exists()


def test_a_store_whose_files_are_gone_is_still_pruned(notes: Path) -> None:
    ok("index", notes, "--store", "s")
    for path in notes.iterdir():
        path.unlink()
    assert json.loads(ok("index", notes, "--store", "s", "--prune", "--json"))["total"] == 0


def test_a_home_directory_is_one_in_every_command(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    ok("index", notes, "--store=~/s")
    assert (tmp_path / "home" / "s" / "store.json").is_file()
    ok("query", "cat", "--store=~/s", "--no-rerank")
    assert "sound" in ok("store", "check", "~/s")
    assert "read as de" in ok("store", "relex", "~/s", "--language", "de")
    assert "0 passages embedded" in ok("store", "reembed", "~/s")
    assert not (tmp_path / "~").exists()
    for command in (["index", notes], ["query", "x"]):
        assert "not known here" in refused(*command, "--store=~nobody-of-that-name/s")


def test_index_refuses_a_chunk_the_model_cannot_read(notes: Path) -> None:
    line = refused("index", notes, "--store", "s", "--chunk-tokens", "9999")
    assert "this embedder reads 1 to" in line


def test_index_into_a_directory_that_is_something_else(notes: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"jpeg")
    assert "is not empty" in refused("index", notes, "--store", "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_index_into_a_directory_that_cannot_be_written(notes: Path) -> None:
    line = refused("index", notes, "--store", "/proc/store")  # not even root may
    assert "/proc/store cannot be" in line


def test_index_where_a_file_is_in_the_way(notes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot be opened" in refused("index", notes, "--store", "file/s")


def test_another_embedder_is_refused_by_name(notes: Path, other_embedder_dir: str) -> None:
    ok("index", notes, "--store", "s")
    line = refused("query", "cat", "--store", "s", "--model", other_embedder_dir)
    assert "store reembed" in line
    assert "do not mix" in line
    assert "store reembed" in refused("index", notes, "--store", "s", "--model", other_embedder_dir)


def test_an_unknown_model_is_refused_with_the_known_ones(notes: Path) -> None:
    assert "all-MiniLM-L6-v2" in refused("index", notes, "--store", "s", "--model", "minilm")


# --- the README's own commands ---

ROOT = Path(__file__).parents[1]


def readme_arguments(command: str) -> list[str]:
    """What the README gives to `tars-rag COMMAND`, without the command itself."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [line] = [found for found in text.splitlines() if f"bin/tars-rag {command} " in found]
    return shlex.split(line)[1:]


def run_the_readme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The second command of the README, over the checkout's own pages, and its question."""
    index, query = readme_arguments("index"), readme_arguments("query")
    assert index[-2:] == query[-2:] == ["--store", "my-store"]
    monkeypatch.chdir(ROOT)
    place = ["--store", str(tmp_path / "my-store")]
    result = run(*index[:-2], *place, "--json")
    assert (result.exit_code, json.loads(result.stdout)["failures"]) == (0, [])
    found: dict[str, Any] = json.loads(ok(*query[:-2], *place, "--no-rerank", "--json"))
    return found


@pytest.mark.slow
def test_the_pages_are_indexed_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run_the_readme(monkeypatch, tmp_path)["passages"]


@pytest.mark.weights
def test_the_readmes_question_is_answered_by_another_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("EMBED_MODEL", "XDG_CACHE_HOME", "MODEL_CACHE_DIR"):
        monkeypatch.delenv(name)
    found = run_the_readme(monkeypatch, tmp_path)
    best = found["passages"][0]
    assert found["query"] not in best["text"]
    assert Path(best["id"].partition("#")[0]).parent.name == "docs"


# --- query ---


def test_query_finds_and_explains(notes: Path) -> None:
    ok("index", notes, "--store", "s")
    page = run("query", "piano", "--store", "s", "-k", "2")
    assert page.exit_code == 0
    assert "1. " in page.stdout
    assert "m1" in page.stdout.splitlines()[0]
    assert "ms in all" in page.stdout
    assert f"tars-rag models pull {MISSING}" in page.stderr
    assert "Boards" in ok("query", "fan", "--store", "s", "--strategy", "lexical", "--no-rerank")


def test_commands_work_beside_a_process_that_has_the_store_open(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok("index", notes, "--store", "s")
    monkeypatch.setattr(Holder, "is_this_process", property(lambda _: False))  # so it is another's
    with Embedder.from_env() as embedder, HybridStore("s", embedder) as holder:
        (notes / "late.md").write_text("# Late\n\nA harpsichord in the hall.")
        before = holder.count()
        ok("index", notes, "--store", "s")
        assert holder.count() == before + 1
        assert "late.md" in ok("query", "harpsichord", "--store", "s", "-k", "1")
        assert "piano music" in ok("show", "m1", "--store", "s")
        ok("store", "rm", str(notes / "late.md"), "--store", "s")
        assert holder.count() == before
        assert "is open in another process" in refused("store", "compact", "s")


@pytest.fixture
def lent(
    notes: Path, reranker_dir: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[dict[str, Any]]]:
    """The questions that a process was asked which has the store s and its models open."""
    monkeypatch.setenv("RERANK_MODEL", reranker_dir)
    ok("index", notes, "--store", "s")
    monkeypatch.setattr(Holder, "is_this_process", property(lambda _: False))  # so it is another's
    asked: list[dict[str, Any]] = []
    with (
        Embedder.from_env() as embedder,
        Reranker.from_settings(Settings.from_env()) as reranker,  # type: ignore[union-attr]
        HybridStore("s", embedder) as holder,
    ):
        lend(holder, reranker)
        answer = holder._access.lent["answer"]  # type: ignore[attr-defined]

        def note(question: Any) -> Any:
            for part in answer(question):
                asked.append({"answered": part[0] is not None, **question})
                yield part

        holder.lend("answer", note)
        yield asked


def test_a_query_beside_a_holder_has_the_answer_of_a_cold_one(
    lent: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*arguments: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(ok("query", *arguments, "--store", "s", "--json"))
        told["steps"] = [step["name"] for step in told["steps"]]
        return told

    questions = [
        ["music in the garden"],
        ["a fan", "-k", "1", "--no-rerank", "--strategy", "naive"],
        ["music", "--where", '{"kind": "music"}', "--window", "1"],
        ["music", "--strategy", "lexical", "--min-score", "0.2"],
    ]
    warm = [answer(*question) for question in questions]
    assert [one["answered"] for one in lent] == [True] * 4
    with monkeypatch.context() as patch:
        patch.setattr("tars_rag.cli.resources.ask_holder", lambda *_, **__: None)
        cold = [answer(*question) for question in questions]
    assert warm == cold
    assert len(lent) == 4
    bad = '{"kind": {"$no": 1}}'
    assert "no operator '$no'" in refused("query", "fan", "--store", "s", "--where", bad)


def test_models_that_the_holder_has_not_open_are_opened_here(
    lent: list[dict[str, Any]], other_embedder_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "made with" in refused("query", "fan", "--store", "s", "--model", other_embedder_dir)
    run("query", "fan", "--store", "s", "--precision", "int8")
    monkeypatch.setenv("RERANK_MODEL", MISSING)
    assert "No reranker" in run("query", "fan", "--store", "s").stderr
    assert [one["answered"] for one in lent] == [False] * 3


def test_a_query_beside_a_holder_loads_no_model_and_no_index(
    lent: list[dict[str, Any]],
) -> None:
    code = """
import sys
from tars_rag.cli import app
try:
    app(["query", "music", "--store", "s", "--json"])
except SystemExit as end:
    assert not end.code, end.code
heavy = {"chromadb", "onnxruntime", "tantivy", "tokenizers", "onnx", "openvino"}
print(sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert lent[0]["answered"]


def test_a_question_needs_no_quotation_marks(notes: Path) -> None:
    ok("index", notes, "--store", "s")
    words = ["how", "many", "guitars", "--store", "s", "are", "there", "--json"]
    assert json.loads(ok("query", *words))["query"] == "how many guitars are there"
    quoted = json.loads(ok("query", "how  many", "--store", "s", "--json"))
    assert quoted["query"] == "how  many"
    dashed = json.loads(ok("query", "--store", "s", "--json", "--", "what", "is", "-k"))
    assert dashed["query"] == "what is -k"


def test_the_missing_reranker_is_told_once(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok("index", notes, "--store", "s")
    first, second = run("query", "piano", "--store", "s"), run("query", "cat", "--store", "s")
    assert f"tars-rag models pull {MISSING}" in first.stderr
    assert second.stderr == ""
    for page in (first, second):  # not silently: the line of the times says so
        assert page.stdout.splitlines()[-1].endswith("; not reranked")
    assert "not reranked" not in ok("query", "cat", "--store", "s", "--no-rerank")
    monkeypatch.setenv("RERANK_MODEL", "ms-marco-MiniLM-L-12-v2")
    assert "ms-marco-MiniLM-L-12-v2" in run("query", "piano", "--store", "s").stderr


def test_what_was_told_is_told_again_after_a_change(capsys: pytest.CaptureFixture[str]) -> None:
    for topic in ("a", "a", "b"):
        say_once(topic, f"about {topic}")
    assert capsys.readouterr().err == "about a\nabout b\n"
    say_again("a")
    say_again("never told")
    for topic in ("a", "b"):
        say_once(topic, f"about {topic}")
    assert capsys.readouterr().err == "about a\n"


def test_it_is_told_each_time_where_nothing_can_be_remembered(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok("index", notes, "--store", "s")
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert MISSING in run("query", "piano", "--store", "s").stderr


def test_an_empty_store_says_that_it_is(notes: Path) -> None:
    ok("index", notes, "--store", "my store")
    found = run("query", "piano", "--store", "my store", "--where", '{"kind": "none"}')
    assert "empty" not in found.stderr
    for path in notes.iterdir():
        path.unlink()
    ok("index", notes, "--store", "my store", "--prune")
    found = run("query", "piano", "--store", "my store", "--json")
    assert (found.exit_code, json.loads(found.stdout)["passages"]) == (0, [])
    assert "The store my store is empty" in found.stderr
    assert found.stderr.strip().endswith("--store 'my store'")


MARKDOWN = (
    """# Cooling

Most **small boards** get hot, see [the table](https://example.org/table).

| board | watts |
|---|---|
| first | 5 |

"""
    + " ".join(["Some words that nobody asked for stand here."] * 6)
    + """
The cooled guitar is rarely mentioned anywhere. It stays so.
"""
)


def test_passages_are_wrapped_at_words_and_show_what_was_found(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (notes / "cooling.md").write_text(MARKDOWN)
    ok("index", notes / "cooling.md", "--store", "s", "--chunk-tokens", "126")
    monkeypatch.setattr(console.out, "width", 60)  # COLUMNS counts only where the program starts
    page = ok("query", "guitar cooling", "--store", "s", "--strategy", "lexical")
    lines = [line for line in page.splitlines() if line.startswith("   ")]
    assert len(lines) > 3
    assert all(len(line) <= 60 for line in lines)
    words = {word.strip(",.") for line in lines for word in line.split()} - {""}
    assert words <= set(re.findall(r"\w+", MARKDOWN))
    assert "The cooled guitar" in " ".join(" ".join(lines).split())
    assert "\x1b" not in page
    monkeypatch.setenv("COLUMNS", "200")
    page = ok("query", "table watts", "--store", "s", "--strategy", "lexical")
    assert "Most small boards get hot, see the table." in page
    assert "board, watts\n   first, 5\n" in page
    assert not {"**", "|", "](", "# "} & {mark for mark in ("**", "|", "](", "# ") if mark in page}


def in_a_terminal(*arguments: str | Path, answer: str = "") -> tuple[int, str]:
    """Exit code, and all that a terminal shows of a command."""
    master, slave = pty.openpty()
    code = "from tars_rag.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"},
    ) as child:
        os.close(slave)
        os.write(master, answer.encode())
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while piece := os.read(master, 65536):
                shown += piece
        os.close(master)
    return child.returncode, shown.decode()


@pytest.mark.slow
def test_found_words_are_marked_on_a_terminal(notes: Path) -> None:
    ok("index", notes, "--store", "s")
    code, shown = in_a_terminal("query", "what", "music", "with", "guitars", "--store", "s")
    assert code == 0
    for word in ("guitar", "music"):
        assert f"\x1b[1;33m{word}\x1b[0m" in shown
    assert "\x1b[1;33mwith" not in shown  # in the question, and says nothing


def test_query_json_is_pure_and_whole(notes: Path) -> None:
    ok("index", notes, "--store", "s")
    found = json.loads(ok("query", "music", "--store", "s", "--json"))
    assert set(found) == {"query", "strategy", "passages", "steps"}
    assert {p["id"] for p in found["passages"]} >= {"m1", "m2"}
    for passage in found["passages"]:
        assert isinstance(passage["score"], float)
        assert passage["rerank_score"] is None
    assert [step["name"] for step in found["steps"]] == ["embed", "lexical", "vectors", "fuse"]
    assert all(step["milliseconds"] >= 0 for step in found["steps"])


def test_query_with_a_filter(notes: Path) -> None:
    ok("index", notes, "--store", "s")
    where = '{"kind": "music"}'
    found = json.loads(ok("query", "sleep", "--store", "s", "--where", where, "--json"))
    assert {p["id"] for p in found["passages"]} == {"m1", "m2"}
    line = refused("query", "sleep", "--store", "s", "--where", '{"kind": {"$like": 1}}')
    assert "$like" in line


def test_query_reranks_if_a_reranker_is_there(
    notes: Path, reranker_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok("index", notes, "--store", "s")
    monkeypatch.setenv("RERANK_MODEL", reranker_dir)
    found = json.loads(ok("query", "music", "--store", "s", "--json"))
    assert found["steps"][-1]["name"] == "rerank"
    scores = [p["rerank_score"] for p in found["passages"]]
    assert scores == sorted(scores, reverse=True)
    assert all(isinstance(score, float) for score in scores)
    found = json.loads(ok("query", "music", "--store", "s", "--json", "--no-rerank"))
    assert all(p["rerank_score"] is None for p in found["passages"])


@pytest.mark.parametrize("strategy", ["hybrid", "naive", "lexical"])
def test_a_least_score_leaves_out_what_does_not_fit(notes: Path, strategy: str) -> None:
    ok("index", notes, "--store", "s")
    asked = ["query", "guitar music", "--store", "s", "--strategy", strategy, "--json"]
    everything = json.loads(ok(*asked))["passages"]
    relevances = [p["relevance"] for p in everything]
    assert all(0 <= value <= 1 for value in relevances)
    least = relevances[0]
    some = json.loads(ok(*asked, "--min-score", str(least)))["passages"]
    assert some == [p for p in everything if p["relevance"] >= least] != []
    words = ["query", "zeppelin", "--store", "s", "--strategy", "lexical", "--min-score", "0.1"]
    assert "Nothing was found." in ok(*words)
    assert run(*asked, "--min-score", "1.5").exit_code == 2


def test_a_reranker_asked_for_must_be_had(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok("index", notes, "--store", "s")
    line = refused("query", "music", "--store", "s", "--rerank")
    assert f"tars-rag models pull {MISSING}" in line
    monkeypatch.setenv("RERANK_MODEL", "")
    assert "RERANK_MODEL is empty" in refused("query", "music", "--store", "s", "--rerank")
    quiet = run("query", "music", "--store", "s")
    assert (quiet.exit_code, quiet.stderr) == (0, "")


@pytest.mark.parametrize(
    "text", ["", "   ", "\n", "😀", "a\0b", '"unclosed AND ( OR', "é" * 10_000]
)
def test_any_text_may_be_asked(notes: Path, text: str) -> None:
    ok("index", notes, "--store", "s")
    assert len(json.loads(ok("query", text, "--store", "s", "--json"))["passages"]) == 4


@pytest.mark.parametrize("make", [None, "empty", "foreign"])
def test_a_store_that_is_not_there_is_an_error(tmp_path: Path, make: str | None) -> None:
    if make:
        (tmp_path / "s").mkdir()
    if make == "foreign":
        (tmp_path / "s" / "x").write_text("x")
    line = refused("query", "x", "--store", "s")
    assert "tars-rag index" in line
    there = [path.name for path in (tmp_path / "s").iterdir()] if make else []
    assert there == (["x"] if make == "foreign" else [])


# --- quickstart, models, eval ---


def test_quickstart_answers_from_the_sample(
    reranker_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = run("quickstart")
    assert page.exit_code == 0
    assert f"tars-rag models pull {MISSING}" in page.stderr
    assert int(page.stdout.split()[0]) >= 81
    assert f"({page.stdout.split()[0]} written" in page.stdout
    # a cache outlives an upgrade: the store that an older version left there is not this one
    assert f"quickstart/v{VERSION}-" in page.stdout.replace("\n", "")
    assert "rerank " not in page.stdout
    assert page.stdout.count("1. ") == 3
    # names its own words: found by BM25, whatever the random vectors say
    assert "retrieval/reciprocal-rank-fusion" in page.stdout
    assert "next: tars-rag index" in page.stdout
    monkeypatch.setenv("RERANK_MODEL", reranker_dir)
    again = ok("quickstart")
    assert "(0 written" in again
    for step in ("embed", "lexical", "vectors", "fuse", "rerank"):
        assert f"{step} " in again


def test_quickstart_with_a_reranker_asked_for(tmp_path: Path) -> None:
    assert "models pull" in refused("quickstart", "--rerank", "--store", "q")


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_CACHE_DIR", str(tmp_path / "models"))
    assert ok("models", "path").strip() == str(tmp_path / "models")
    assert MISSING in ok("models", "list")
    rows = json.loads(ok("models", "list", "--json"))
    e5 = next(row for row in rows if row["name"] == "multilingual-e5-small")
    assert e5["prompts"] == {"query": "query: ", "passage": "passage: "}
    assert e5["languages"] == ["multi"]
    assert {row["kind"] for row in rows} >= {"embedder", "reranker"}
    assert not any(row["present"] for row in rows)
    assert "no models" in run("models", "verify").stderr
    assert "Fetch it" in refused("models", "verify", MISSING)
    assert "HF_HUB_OFFLINE" in refused("models", "pull", MISSING)
    assert "Unknown model 'x'" in refused("models", "pull", "x")
    assert "models pull" in refused("models", "export", MISSING, "--to", "m.tar")
    (tmp_path / "m.tar").write_bytes(b"no tar")
    assert "m.tar" in refused("models", "import", "m.tar")


def test_a_damaged_model_is_named_by_verify(embedder_dir: str, tmp_path: Path) -> None:
    shutil.copytree(embedder_dir, tmp_path / "sound")
    write_record(tmp_path / "sound", ["config.json", "model.safetensors"], "a test")
    shutil.copytree(tmp_path / "sound", tmp_path / "cut")
    (tmp_path / "cut" / "config.json").write_text("{")
    result = run("models", "verify", "./cut", "./sound")
    assert result.exit_code == 1
    assert "config.json has 1 bytes" in result.stderr
    assert result.stdout == "./sound: sound\n"
    assert "config.json" in refused("index", tmp_path, "--store", "s", "--model", "./cut")
    assert not (tmp_path / "s").exists()


def test_eval_prints_exactly_the_measures(tmp_path: Path, reranker_dir: str) -> None:
    from test_evaluate import CORPUS, QRELS, QUERIES, write_collection

    write_collection(tmp_path / "c", CORPUS, QUERIES, QRELS)
    plain = json.loads(ok("eval", "c", "--json"))
    # One shape, whatever is asked for: by strategy, and everything in rows.
    rest = ["documents", "queries", "rows", "differences", "tuned"]
    assert list(plain) == ["naive", "lexical", "hybrid", *rest]
    for row in plain["rows"]:
        values = plain[row["strategy"]]
        assert list(values) == ["ndcg@10", "mrr@10", "recall@100"]
        assert all(isinstance(value, float) for value in values.values())
        assert values.items() <= row.items()
    assert (plain["documents"], plain["queries"], plain["tuned"]) == (3, 2, [])
    full = json.loads(ok("eval", "c", "--json", "--model-dir", reranker_dir, "--store", "kept"))
    assert list(full) == ["naive", "lexical", "hybrid", "hybrid+rerank", *rest]
    assert all(full[name] == plain[name] for name in ("naive", "lexical", "hybrid"))
    assert full["rows"][:3] == plain["rows"]
    assert full["rows"][3]["reranker"]
    assert (tmp_path / "kept").is_dir()
    table = ok("eval", "c", "--strategy", "lexical", "--store", "kept")
    assert "3 documents, 2 queries" in table
    assert "naive" not in table
    assert "models pull" in refused("eval", "c", "--strategy", "hybrid+rerank")
    assert "corpus.jsonl" in refused("eval", tmp_path)


def test_eval_of_several_at_once(tmp_path: Path, reranker_dir: str) -> None:
    from test_evaluate import CORPUS, QRELS, QUERIES, write_collection

    write_collection(tmp_path / "c", CORPUS, QUERIES, QRELS)
    found = json.loads(ok("eval", "c", "--json", "--reranker", reranker_dir, "--language", "en"))
    assert (found["documents"], found["queries"]) == (3, 2)
    assert found["hybrid+rerank"].items() <= found["rows"][-1].items()
    rankings = [(row["strategy"], row["reranker"]) for row in found["rows"]]
    assert rankings[-2:] == [("hybrid", None), ("hybrid", Path(reranker_dir).name)]
    assert len(found["differences"]) == 6
    last = found["differences"][-1]
    assert (last["row"], last["less"], last["measure"]) == (3, 2, "ndcg@10")
    assert last["low"] <= last["mean"] <= last["high"]
    two = ok("eval", "c", "--language", "en", "--language", "de", "--store", "kept")
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"default-en", "default-de"}
    assert "more than chance" in two
    assert two.count("lexical") == 2
    assert two.count("naive") == 1  # vectors know no language
    assert "4 judged queries" in refused("eval", "c", "--tune")


def test_padding_needs_what_it_asks_for(tmp_path: Path) -> None:
    """Documents and queries; who judged what does not matter to the amount of work."""
    from test_evaluate import CORPUS, QRELS, QUERIES, write_collection

    write_collection(tmp_path / "c", CORPUS, QUERIES, QRELS)
    shutil.rmtree(tmp_path / "c" / "qrels")
    counted = json.loads(ok("padding", "c", "--lengths", "16,32", "--json"))
    queries, passages = counted["work"]
    assert (queries["texts"], queries["count"]) == ("queries", len(QUERIES))
    assert (passages["texts"], passages["count"]) == ("passages", 3)
    assert passages["gmac_no_padding"] <= passages["gmac_buckets"] <= passages["gmac_one_length"]
    table = ok("padding", "c", "--lengths", "16,32")
    assert "GMAC" in table
    assert "corpus.jsonl and queries.jsonl" in " ".join(ok("padding", "--help").split())
    (tmp_path / "c" / "queries.jsonl").unlink()
    assert "queries.jsonl cannot be read" in refused("padding", "c")
    assert "qrels/test.tsv" in refused("eval", "c")


@pytest.mark.slow
def test_the_language_of_a_store(notes: Path) -> None:
    (notes / "haus.txt").write_text("Die H\u00e4user haben Katzen.")
    ok("index", notes, "--store", "s", "--language", "German")

    def found(question: str) -> list[str]:
        arguments = ["query", question, "--store", "s", "--strategy", "lexical", "--json"]
        return [Path(p["id"]).name for p in json.loads(ok(*arguments))["passages"]]

    assert found("Haus Katze") == ["haus.txt#0"]
    code, shown = in_a_terminal("query", "Haus", "--store", "s")
    assert (code, "\x1b[1;33mH\u00e4user\x1b[0m" in shown) == (0, True)
    ok("index", notes, "--store", "s")  # of an existing store it need not be said again
    line = refused("index", notes, "--store", "s", "--language", "en")
    assert line.strip().endswith("/s --language en")
    assert "tars-rag store relex" in line
    told = json.loads(ok("store", "relex", "s", "--language", "en", "--json"))
    assert told == {"path": "s", "language": "en", "passages": 5}
    assert found("Haus") == []
    assert found("sleeping") != []
    assert "read as multi" in ok("store", "relex", "s", "--language", "multi")
    assert found("Haus") == ["haus.txt#0"]
    assert "s: sound" in ok("store", "check", "s")


def test_an_unknown_language_makes_no_store(notes: Path, tmp_path: Path) -> None:
    line = refused("index", notes, "--store", "s", "--language", "klingon")
    assert "de, " in line
    assert "multi" in line
    assert not (tmp_path / "s").exists()
    ok("index", notes, "--store", "s")
    assert "s: " in ok("store", "compact", "s")
    assert json.loads(ok("store", "compact", "s", "--json"))["freed_bytes"] < 100_000
    assert "There is no store at t" in refused("store", "compact", "t")
    assert "klingon" in refused("store", "relex", "s", "--language", "klingon")
    assert "There is no store at t" in refused("store", "relex", "t", "--language", "de")


# --- convert asks before it installs the vendor's toolkit ---


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip has nothing to fetch the toolkit from, so that saying yes ends in that error."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")


def test_convert_says_what_to_pass_where_nobody_can_be_asked(
    embedder_dir: str, tmp_path: Path, no_index: None
) -> None:
    line = refused("convert", embedder_dir, "--lengths", "16,32", "--out", "my bundle")
    assert "200 MB to fetch, 367 MB in " in line
    assert line.strip().endswith(
        f"tars-rag convert {embedder_dir} --lengths 16,32 --out 'my bundle' --yes"
    )
    assert not list(tmp_path.glob("cache/tars-rag/toolkit-*/*"))


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "says"), [("n\n", "Nothing was installed"), ("y\n", "failed")])
def test_convert_asks_a_person(
    embedder_dir: str, tmp_path: Path, no_index: None, answer: str, says: str
) -> None:
    code, shown = in_a_terminal("convert", embedder_dir, "--lengths", "16", answer=answer)
    assert code == 1
    assert "Make it? [y/N]" in shown
    assert says in shown
    assert not list(tmp_path.glob("*-rk3588-*"))


@pytest.mark.slow
def test_convert_with_yes_does_not_ask(embedder_dir: str, no_index: None) -> None:
    line = refused("convert", embedder_dir, "--lengths", "16", "--yes")
    assert "installing the toolkit failed" in line
    assert "Make it?" not in line


# --- store ---


def test_another_embedder_takes_over_a_store(notes: Path, other_embedder_dir: str) -> None:
    ok("index", notes, "--store", "s")
    assert "4 passages embedded" in ok("store", "reembed", "s", "--model", other_embedder_dir)
    assert "0 passages embedded" in ok("store", "reembed", "s", "--model", other_embedder_dir)
    found = ok("query", "cat", "--store", "s", "--model", other_embedder_dir, "--json")
    assert len(json.loads(found)["passages"]) == 4
    assert "store reembed" in refused("query", "cat", "--store", "s")
    # the files are as they were, so they need not be indexed again
    again = ok("index", notes, "--store", "s", "--model", other_embedder_dir, "--json")
    assert json.loads(again)["unchanged"] == 3


def test_other_prompts_are_refused_until_the_store_is_embedded_with_them(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok("index", notes, "--store", "s")
    monkeypatch.setenv("EMBED_QUERY_PROMPT", "find: ")
    line = refused("query", "cat", "--store", "s")
    assert "Their prompts differ" in line
    assert "EMBED_QUERY_PROMPT" in line
    assert "4 passages embedded" in ok("store", "reembed", "s")
    assert len(json.loads(ok("query", "cat", "--store", "s", "--json"))["passages"]) == 4
    monkeypatch.delenv("EMBED_QUERY_PROMPT")
    assert "Their prompts differ" in refused("query", "cat", "--store", "s")


@pytest.mark.parametrize("command", ["reembed", "check"])
def test_reembed_and_check_need_a_store(tmp_path: Path, command: str) -> None:
    assert "There is no store at s" in refused("store", command, "s")
    assert not (tmp_path / "s").exists()


def test_check_finds_and_mends_a_lost_word_index(notes: Path) -> None:
    ok("index", notes, "--store", "s")
    assert "s: sound" in ok("store", "check", "s")
    shutil.rmtree(Path("s") / "lexical")
    broken = run("store", "check", "s")
    assert broken.exit_code == 1
    assert "not sound" in broken.stdout
    assert "wrong: The lexical index is damaged" in broken.stdout
    assert "passages: 4 with vectors, unreadable in the word index" in broken.stdout
    assert "store check" in refused("query", "cat", "--store", "s")
    mended = ok("store", "check", "s", "--repair")
    assert "mended: The lexical index" in mended
    assert "4 in the word index" in mended
    report = json.loads(ok("store", "check", "s", "--json"))
    assert (report["ok"], report["problems"], report["passages"]) == (True, [], 4)
    ok("query", "cat", "--store", "s")


def pasted(message: str) -> list[str]:
    """The command that an error ends in, as a shell would split it, without the program."""
    program, *arguments = shlex.split(message[message.rindex("tars-rag ") :].strip())
    assert program == "tars-rag"
    return arguments


@pytest.mark.slow
def test_the_command_at_the_end_of_an_error_can_be_pasted(
    notes: Path, other_embedder_dir: str, tmp_path: Path
) -> None:
    """Whatever is in the path: each error here is mended by the command that it ends in."""
    store = tmp_path / "my 'own' store"
    ok("index", notes, "--store", store)
    shutil.rmtree(store / "lexical")
    ok(*pasted(refused("query", "cat", "--store", store)))
    ok("query", "cat", "--store", store)
    line = refused("query", "cat", "--store", store, "--model", other_embedder_dir)
    ok(*pasted(line))
    ok("query", "cat", "--store", store, "--model", other_embedder_dir)
    command = pasted(refused("query", "cat", "--store", tmp_path / "no store"))
    assert command == ["index", "FILES", "--store", str(tmp_path / "no store")]


def test_another_precision_is_advised_where_only_that_differs(
    notes: Path, embedder_dir: str
) -> None:
    ok("index", notes, "--store", "s")
    described = Path("s") / "store.json"
    stored = json.loads(described.read_text())
    stored["fingerprint"] = stored["fingerprint"].replace(":exact", ":int8")
    described.write_text(json.dumps(stored))
    line = refused("query", "cat", "--store", "s")
    assert "use the store's, --precision int8" in line
    assert line.count(embedder_dir) >= 2
    ok(*pasted(line))
    ok("query", "cat", "--store", "s")


@pytest.mark.weights
def test_either_precision_is_mended_by_what_its_error_says(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EMBED_MODEL", "XDG_CACHE_HOME", "MODEL_CACHE_DIR"):
        monkeypatch.delenv(name)
    int8 = ["--precision", "int8"]
    for made, other, named in (([], int8, "fp32"), (int8, [], "int8")):
        ok("index", notes, "--store", f"of {named}", *made)
        line = refused("query", "cat", "--store", f"of {named}", *other)
        assert f"--precision {named}" in line
        assert line.count("all-MiniLM-L6-v2") >= 2
        ok(*pasted(line))
        ok("query", "cat", "--store", f"of {named}", *other)


def test_no_message_names_a_placeholder_for_what_is_known() -> None:
    placeholder = re.compile(r"tars-rag [a-z][^`]*\b(DIR|STORE|MODEL_DIR)\b")
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found += [f"{path}: {m[0]}" for m in placeholder.finditer(node.value)]
    assert found == []


def test_a_memory_of_py_tars_is_imported(tmp_path: Path) -> None:
    memory = {"vectors": None, "documents": ["a cat", {"user_input": "dog?", "bot_response": "no"}]}
    (tmp_path / "memory.pickle.gz").write_bytes(gzip.compress(pickle.dumps(memory)))
    page = ok("store", "import-hyperdb", "memory.pickle.gz", "--store", "s")
    assert "2 documents imported: 0 vectors kept, 2 computed anew" in page
    again = ok("store", "import-hyperdb", "memory.pickle.gz", "--store", "s", "--json")
    assert json.loads(again)["total"] == 2
    found = json.loads(ok("query", "dog", "--store", "s", "--strategy", "lexical", "--json"))
    assert found["passages"][0]["metadata"]["bot_response"] == "no"


def test_an_empty_memory_makes_no_store(tmp_path: Path) -> None:
    (tmp_path / "m.pickle").write_bytes(pickle.dumps({"vectors": None, "documents": []}))
    line = refused("store", "import-hyperdb", "m.pickle", "--store", "s")
    assert "m.pickle holds no documents" in line
    assert not (tmp_path / "s").exists()


def test_a_hostile_memory_is_refused_and_no_store_is_made(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/marker",)

    (tmp_path / "m.pickle").write_bytes(pickle.dumps({"vectors": None, "documents": [Runs()]}))
    line = refused("store", "import-hyperdb", "m.pickle", "--store", "s")
    assert "posix.system" in line
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "s").exists()


# --- as a process ---


def process(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    code = "from tars_rag.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.slow
def test_a_store_that_is_not_shared_is_refused_with_the_pid(notes: Path) -> None:
    ok("index", notes, "--store", "s")
    with Embedder.from_env() as embedder:
        with HybridStore("s", embedder), process("query", "x", "--store", "s") as guest:
            assert "ms in all" in guest.communicate(timeout=60)[0]
        store = HybridStore("s", embedder, share=False)
        with store, process("query", "x", "--store", "s") as other:
            out, error = other.communicate(timeout=60)
    assert other.returncode == 1
    assert out == ""
    assert str(os.getpid()) in error


@pytest.mark.slow
def test_a_killed_index_is_taken_up_again(notes: Path) -> None:
    rows = [{"id": f"r{n}", "text": f"board {n} cat {n * 7} river"} for n in range(700)]
    (notes / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with process("index", notes, "--store", "s") as child:
        deadline = time.monotonic() + 60
        while not claimed(Path("s")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        child.send_signal(signal.SIGKILL)
    assert claimed(Path("s"))
    summary = json.loads(ok("index", notes, "--store", "s", "--json"))
    assert (summary["total"], summary["failures"]) == (704, [])
    again = json.loads(ok("index", notes, "--store", "s", "--json"))
    assert again["unchanged"] == 4


def claimed(store: Path) -> bool:
    """Whether the first batch is on its way into the store."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{store / NAME}?mode=ro", uri=True)) as db:
            return bool(db.execute("SELECT count(*) FROM passages").fetchone()[0])
    except sqlite3.OperationalError:
        return False
