"""Migration from py-tars' HyperDB: faithful with honest files, inert with hostile ones."""

from __future__ import annotations

import contextlib
import copyreg
import gzip
import io
import operator
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import HashEmbedder
from tars_rag.errors import InvalidInputError
from tars_rag.ingest import hyperdb, plain_pickle
from tars_rag.ingest.hyperdb import Imported, import_hyperdb, load_hyperdb
from tars_rag.retrieval.store import HybridStore

VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4) + 1
RECONSTRUCT: Any = VECTORS.__reduce__()[0]  # numpy's own function, in numpy 1 and 2
DOCUMENTS = ["a plain note", {"user_input": "hello", "bot_response": "hi"}, "another"]


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


# --- honest files ---


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_pickle_wrote_is_read(tmp_path: Path, protocol: int, dtype: str, order: Any) -> None:
    vectors = np.asarray(VECTORS.astype(dtype), order=order)
    path = write(tmp_path / "m", {"vectors": vectors, "documents": DOCUMENTS}, protocol)
    memory = load_hyperdb(path)
    assert memory.documents == DOCUMENTS
    assert memory.vectors is not None
    assert memory.vectors.dtype == np.float32
    np.testing.assert_array_equal(memory.vectors, VECTORS)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_files_of_numpy_1_and_2(tmp_path: Path, module: str) -> None:
    # Text protocol so that the module's name can be swapped without changing lengths elsewhere.
    data = pickle.dumps({"vectors": VECTORS, "documents": DOCUMENTS}, protocol=3)
    data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    data = data.replace(b"numpy.core.multiarray", module.encode())
    assert module.encode() in data
    (tmp_path / "m").write_bytes(data)
    memory = load_hyperdb(tmp_path / "m")
    np.testing.assert_array_equal(memory.vectors, VECTORS)


def test_gzip_whatever_the_name(tmp_path: Path) -> None:
    path = tmp_path / "memory.pickle"
    path.write_bytes(gzip.compress(pickle.dumps({"vectors": None, "documents": []})))
    assert load_hyperdb(path).documents == []


def test_vectors_that_do_not_fit_the_documents_are_not_used(tmp_path: Path) -> None:
    path = write(tmp_path / "m", {"vectors": VECTORS[:2], "documents": DOCUMENTS})
    assert load_hyperdb(path).vectors is None


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]))
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.none()
            | st.booleans()
            | st.integers()
            | st.text(st.characters(exclude_categories=["Cs"])),
        )
    ),
    st.integers(3, 5),
)
def test_any_documents_survive(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Any], protocol: int
) -> None:
    path = tmp_path_factory.mktemp("h") / "m"
    write(path, {"vectors": None, "documents": documents}, protocol)
    assert load_hyperdb(path).documents == documents


# --- hostile files: each would do something in pickle.load, none does it here ---

MARK = "marker-of-a-command-that-ran"


class Runs:
    """A pickle that calls `function(*args)` when it is loaded."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def touch(path: str) -> str:
    return f"__import__('pathlib').Path({path!r}).touch()"


def system(mark: str) -> bytes:
    return pickle.dumps(Runs(os.system, f"touch {mark}"))


def inside_documents(mark: str) -> bytes:
    documents = ["fine", {"user_input": "x", "bot_response": Runs(os.system, f"touch {mark}")}]
    return pickle.dumps({"vectors": VECTORS, "documents": documents})


def builtin_eval(mark: str) -> bytes:
    return pickle.dumps({"vectors": None, "documents": [Runs(eval, touch(mark))]}, protocol=2)


def builtin_exec_text_protocol(mark: str) -> bytes:
    return pickle.dumps({"vectors": None, "documents": [Runs(exec, touch(mark))]}, protocol=0)


def in_an_object_array(mark: str) -> bytes:
    array = np.array([Runs(os.system, f"touch {mark}"), 1], dtype=object)
    return pickle.dumps({"vectors": array, "documents": []})


def as_the_shape_of_an_array(mark: str) -> bytes:
    # numpy's own, allowed _reconstruct, called with an argument that runs a command
    return pickle.dumps(Runs(RECONSTRUCT, np.ndarray, Runs(os.system, f"touch {mark}"), b"b"))


def through_a_method_caller(mark: str) -> bytes:
    return pickle.dumps(
        {"vectors": None, "documents": [Runs(operator.methodcaller("touch"), Path(mark))]}
    )


def an_old_style_instance(mark: str) -> bytes:
    return b"(S'touch %s'\nios\nsystem\n." % mark.encode()


def through_the_extension_registry(mark: str) -> bytes:
    # EXT1 finds what copyreg registered without asking find_class once it is in the cache
    copyreg.add_extension("os", "system", 77)
    try:
        command = f"touch {mark}"
        data = b"\x80\x02\x82\x4dX" + struct.pack("<I", len(command)) + command.encode() + b"\x85R."
        pickle.loads(data)  # fills the cache
        Path(mark).unlink()
        return data
    finally:
        copyreg.remove_extension("os", "system", 77)
        copyreg._extension_cache[77] = os.system  # type: ignore[attr-defined]


HOSTILE = [
    system,
    inside_documents,
    builtin_eval,
    builtin_exec_text_protocol,
    in_an_object_array,
    as_the_shape_of_an_array,
    through_a_method_caller,
    an_old_style_instance,
    through_the_extension_registry,
]


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_hostile_pickle_is_refused_before_anything_runs(
    tmp_path: Path, make: Callable[[str], bytes], packed: bool
) -> None:
    mark = tmp_path / MARK
    try:
        data = make(str(mark))
        assert not mark.exists()
        try:
            pickle.loads(data)
        except Exception as error:
            print(f"after running, pickle says: {error}")
        assert mark.exists(), "the pickle is not hostile: the test would prove nothing"
        mark.unlink()

        path = tmp_path / "memory.pickle.gz"
        path.write_bytes(gzip.compress(data) if packed else data)
        with pytest.raises(InvalidInputError, match=r"refused and nothing of it was run") as caught:
            load_hyperdb(path)
        assert str(path) in str(caught.value)
        assert not mark.exists()
    finally:
        copyreg._extension_cache.pop(77, None)  # type: ignore[attr-defined]


def test_the_refusal_names_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(system("/nowhere"))
    with pytest.raises(InvalidInputError, match=r"posix\.system"):
        load_hyperdb(path)


def test_persistent_ids_are_refused(tmp_path: Path) -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return "outside" if obj == "secret" else None

    for protocol, name in ((0, "PERSID"), (4, "BINPERSID")):
        stream = io.BytesIO()
        Pickler(stream, protocol).dump({"vectors": None, "documents": ["secret"]})
        (tmp_path / "m").write_bytes(stream.getvalue())
        with pytest.raises(InvalidInputError, match=name):
            load_hyperdb(tmp_path / "m")


def test_a_forged_dtype_never_reaches_numpy(tmp_path: Path) -> None:
    """A dtype whose pickled flags deny that it holds objects would read bytes as pointers."""

    class Forged:
        def __reduce__(self) -> Any:
            state = (3, "|", None, None, None, -1, -1, 0)
            return np.dtype, ("O8", False, True), state

    class Array:
        def __reduce__(self) -> Any:
            state = (1, (1, 1), Forged(), False, b"\x41" * 8)
            return RECONSTRUCT, (np.ndarray, (0,), b"b"), state

    path = write(tmp_path / "m", {"vectors": Array(), "documents": ["x"]})
    with pytest.raises(InvalidInputError, match="not a plain array of floating-point numbers"):
        load_hyperdb(path)


def test_a_stand_in_cannot_be_altered(tmp_path: Path) -> None:
    # BUILD on the global itself, as if to give numpy's function another default
    data = b"\x80\x04cnumpy\ndtype\n}\x8c\x0c__defaults__NsbC\x00\x86."
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(InvalidInputError):
        load_hyperdb(tmp_path / "m")


# --- bombs and damage ---


def test_a_decompression_bomb_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "m.gz"
    path.write_bytes(gzip.compress(b"\0" * 10_000_000))
    with pytest.raises(InvalidInputError, match="more than 1,000,000 bytes"):
        load_hyperdb(path, max_bytes=1_000_000)


def test_a_memo_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"\x80\x04}r\xff\xff\xff\x7f.")
    with pytest.raises(InvalidInputError, match="memo slot 2147483647"):
        load_hyperdb(tmp_path / "m")


def test_a_length_bomb_is_damage_not_memory(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.")
    with pytest.raises(InvalidInputError, match="damaged"):
        load_hyperdb(tmp_path / "m")


def shared(kind: type, levels: int = 60) -> Any:
    """A few hundred bytes in a pickle, 2 ** levels items written out."""
    value: Any = kind()
    for _ in range(levels):
        value = kind([value, value])
    return value


def named_by_what_is_shared() -> bytes:
    """STACK_GLOBAL with nested tuples in the place of the module's name."""
    tuples = pickle.dumps(shared(tuple), protocol=4)[2:-1]  # without PROTO and STOP
    return b"\x80\x04" + tuples + b"\x8c\x01a\x93."


class Array:
    """A pickled array, of which one part is something else."""

    def __init__(self, **parts: Any) -> None:
        dtype = parts.get("order", "<")
        state = (3, dtype, None, None, None, -1, -1, 0)
        kind = Reduced(np.dtype, (parts.get("name", "f4"), False, True), state)
        shape, raw = parts.get("shape", (1, 1)), parts.get("raw", b"\0\0\0\0")
        self.state = (1, shape, parts.get("kind", kind), parts.get("fortran", False), raw)

    def __reduce__(self) -> Any:
        function = RECONSTRUCT
        return function, (np.ndarray, (0,), b"b"), self.state


class Reduced:
    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return self.parts


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "value",
    [
        {"vectors": None, "documents": [{"a": shared(list)}]},
        {"vectors": None, "documents": [{"a": shared(tuple)}]},
        {"vectors": None, "documents": [{"a": {"b": shared(list, 30)}}, {"c": shared(list, 30)}]},
        {"vectors": None, "documents": shared(list)},
        {"vectors": shared(list), "documents": []},
        {"vectors": Array(shape=shared(list)), "documents": ["a"]},
        {"vectors": Array(raw=shared(list)), "documents": ["a"]},
        {"vectors": Array(kind=shared(list)), "documents": ["a"]},
        {"vectors": Array(name=shared(list)), "documents": ["a"]},
        {"vectors": Array(order=shared(list)), "documents": ["a"]},
        shared(list),
        shared(tuple),
    ],
)
def test_what_is_shared_a_billion_times_is_not_written_out(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "m", value)
    assert path.stat().st_size < 2000
    with pytest.raises(InvalidInputError) as caught:
        load_hyperdb(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.timeout(60)
def test_what_is_shared_is_neither_hashed_nor_printed(tmp_path: Path) -> None:
    key = pickle.dumps(shared(tuple), protocol=4)[2:-1]
    for data in (named_by_what_is_shared(), b"\x80\x04}" + key + b"Ns."):
        (tmp_path / "m").write_bytes(data)
        with pytest.raises(InvalidInputError) as caught:
            load_hyperdb(tmp_path / "m")
        assert len(str(caught.value)) < 1000


@pytest.mark.timeout(60)
def test_a_long_text_repeated_is_counted_where_it_stands(tmp_path: Path) -> None:
    text = "x" * 100_000
    path = write(tmp_path / "m", {"vectors": None, "documents": [{"a": [text] * 1000}]})
    assert path.stat().st_size < 110_000
    with pytest.raises(InvalidInputError, match="document 0 has more than 16,777,216 characters"):
        load_hyperdb(path)
    path = write(tmp_path / "m", {"vectors": None, "documents": [text] * 30})
    with pytest.raises(InvalidInputError, match="documents have more than 2,000,000 characters"):
        load_hyperdb(path, max_bytes=2_000_000)
    assert load_hyperdb(path).documents == [text] * 30


def test_a_document_that_was_added_twice_is_read_twice(tmp_path: Path) -> None:
    exchange = {"user_input": "hello", "bot_response": "hi", "tags": ["a", "b"]}
    path = write(tmp_path / "m", {"vectors": None, "documents": [exchange, "x", exchange]})
    assert load_hyperdb(path).documents == [exchange, "x", exchange]


def test_keys_of_several_types_are_read_as_json_has_them(tmp_path: Path) -> None:
    document = {"a": {1: "x", "b": (1, 2), None: {True: []}}, 2: "y"}
    path = write(tmp_path / "m", {"vectors": None, "documents": [document]})
    expected = {"a": {"1": "x", "b": [1, 2], "null": {"true": []}}, "2": "y"}
    memory = load_hyperdb(path)
    assert memory.documents == [expected]
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        assert import_hyperdb(memory, store).documents == 1
        (passage,) = store.get()
        assert passage.metadata == {"source": "hyperdb", **expected}
    path = write(tmp_path / "m", {"vectors": None, "documents": [{1: "x", "1": "y"}]})
    with pytest.raises(InvalidInputError, match="two of its keys are the same text"):
        load_hyperdb(path)


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def test_how_deep_a_document_may_be(tmp_path: Path) -> None:
    fits = {"vectors": None, "documents": [{"a": nested(49)}]}
    assert load_hyperdb(write(tmp_path / "m", fits)).documents == fits["documents"]
    loop: list[Any] = []
    loop.append(loop)
    for value in (nested(50), nested(400), loop):
        path = write(tmp_path / "m", {"vectors": None, "documents": [{"a": value}]})
        with pytest.raises(InvalidInputError, match="document 0 is nested more than 50 deep"):
            load_hyperdb(path)
    depth = b"]" * 100_000 + b"a" * 99_999  # deeper than any pickler writes
    (tmp_path / "m").write_bytes(b"\x80\x04}(\x8c\x07vectorsN\x8c\x09documents" + depth + b"u.")
    with pytest.raises(InvalidInputError, match="document 0 is nested more than 50 deep"):
        load_hyperdb(tmp_path / "m")


@pytest.mark.parametrize("operation", [b"]", b"(", b"N", b"}"])
def test_a_program_of_endless_operations_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: bytes
) -> None:
    """One byte makes an object of 64, and a kilobyte of gzip a million of them."""
    monkeypatch.setattr(plain_pickle, "MOST_OPERATIONS", 10_000)
    (tmp_path / "m").write_bytes(gzip.compress(b"\x80\x04" + operation * 20_000 + b"."))
    with pytest.raises(InvalidInputError, match="refused"):
        load_hyperdb(tmp_path / "m")


def test_too_many_documents_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hyperdb, "MAX_DOCUMENTS", 3)
    path = write(tmp_path / "m", {"vectors": None, "documents": ["a"] * 4})
    with pytest.raises(InvalidInputError, match="has 4 documents, more than 3"):
        load_hyperdb(path)


def test_an_array_wider_than_any_model_is_refused(tmp_path: Path) -> None:
    vectors = np.zeros((1, 20_000), np.float16)
    with pytest.raises(InvalidInputError, match="rows have 20000 numbers"):
        load_hyperdb(write(tmp_path / "m", {"vectors": vectors, "documents": ["a"]}))


def test_a_key_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m", {"vectors": None, "documents": [{10**5000: "a"}]})
    with pytest.raises(InvalidInputError, match="document 0 cannot be stored as JSON"):
        load_hyperdb(path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_file_is_named(tmp_path: Path, packed: bool) -> None:
    data = pickle.dumps({"vectors": VECTORS, "documents": DOCUMENTS})
    data = gzip.compress(data) if packed else data
    for length in range(0, len(data) - 1, 7):
        (tmp_path / "m").write_bytes(data[:length])
        with pytest.raises(InvalidInputError, match="m "):
            load_hyperdb(tmp_path / "m")


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_no_byte_changed_at_random_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = bytearray(pickle.dumps({"vectors": VECTORS, "documents": DOCUMENTS}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("h") / "m"
    path.write_bytes(good)
    with contextlib.suppress(InvalidInputError):  # and no other
        load_hyperdb(path)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1, 2], "not 'vectors' and 'documents'"),
        ({"vectors": None}, "not 'vectors' and 'documents'"),
        ({"vectors": None, "documents": [], "keys": [1]}, "keys"),
        ({"vectors": None, "documents": "text"}, "is a list"),
        ({"vectors": None, "documents": ["a", 7]}, "document 1 is int"),
        ({"vectors": None, "documents": [{"a": b"bytes"}]}, "document 0 cannot be stored as JSON"),
        ({"vectors": None, "documents": [{"a": float("nan")}]}, "document 0 cannot be stored"),
        ({"vectors": "x", "documents": []}, "not a plain array"),
        ({"vectors": np.arange(3), "documents": ["a"]}, "not a plain array"),
    ],
)
def test_other_contents_are_refused_with_the_reason(
    tmp_path: Path, value: Any, reason: str
) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        load_hyperdb(write(tmp_path / "m", value))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"nowhere\.gz"):
        load_hyperdb(tmp_path / "nowhere.gz")


# --- into a store ---

EXCHANGES: list[Any] = [
    "the pump takes oil",
    {"user_input": "where is the pump", "bot_response": "in the cellar", "at": "noon"},
    {"note": "boards", "place": "attic"},
    {"user_input": "only a question"},
    "the pump takes oil",
    "the pump takes oil",
    "",
]
TEXTS = [
    "the pump takes oil",
    "where is the pump in the cellar",
    "boards attic",
    "only a question",
    "the pump takes oil",
    "the pump takes oil",
    "",
]


def move(tmp_path: Path, vectors: Any, documents: list[Any] = EXCHANGES) -> tuple[Imported, Path]:
    file = write(tmp_path / "memory.pickle", {"vectors": vectors, "documents": documents})
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        return import_hyperdb(load_hyperdb(file), store), store.path


def stored(path: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    with HybridStore(path, HashEmbedder()) as store:
        return {p.id: (p.text, dict(p.metadata)) for p in store.get()}


def test_nothing_of_a_memory_is_lost(tmp_path: Path) -> None:
    done, path = move(tmp_path, HashEmbedder().embed(TEXTS))
    assert done == Imported(documents=7, reused=7, recomputed=0, reason="")
    with HybridStore(path, HashEmbedder()) as store:
        passages = store.get()
        assert len({p.id for p in passages}) == 7
        assert sorted(p.text for p in passages) == sorted(TEXTS)
        exchange = next(p for p in passages if "cellar" in p.text)
        assert exchange.metadata == {"source": "hyperdb", **EXCHANGES[1]}
        assert store.search("cellar", 1)[0].text == TEXTS[1]


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    _, path = move(tmp_path, HashEmbedder().embed(TEXTS))
    before = stored(path)
    _, path = move(tmp_path, HashEmbedder().embed(TEXTS))
    assert stored(path) == before


def test_ids_do_not_depend_on_what_was_added_later(tmp_path: Path) -> None:
    move(tmp_path, None, EXCHANGES[:5])
    done, path = move(tmp_path, None, EXCHANGES)
    assert done.documents == 7
    with HybridStore(path, HashEmbedder()) as store:
        assert store.count() == 7


def test_vectors_are_kept_exactly_where_they_agree(tmp_path: Path) -> None:
    """A multiple is the same direction; it is stored at unit length."""
    _, path = move(tmp_path, HashEmbedder().embed(TEXTS) * 3)
    with HybridStore(path, HashEmbedder()) as store:
        for passage in store.get():
            row = store.vectors([passage.id])[passage.id]
            np.testing.assert_allclose(row, store.embedder.embed([passage.text])[0], atol=1e-6)


def test_vectors_of_another_model_are_computed_anew(tmp_path: Path) -> None:
    other = np.random.default_rng(0).standard_normal((7, 32)).astype(np.float32)
    done, path = move(tmp_path, other)
    assert (done.reused, done.recomputed) == (0, 7)
    assert "mean cosine" in done.reason
    with HybridStore(path, HashEmbedder()) as store:
        hit = store.search("where is the pump in the cellar", 1, "naive")[0]
        assert hit.text == TEXTS[1]
        assert hit.vector_score == pytest.approx(1, abs=1e-5)


def test_vectors_of_another_dimension_are_computed_anew(tmp_path: Path) -> None:
    done, _ = move(tmp_path, HashEmbedder(16).embed(TEXTS))
    assert (done.reused, done.recomputed) == (0, 7)
    assert "16 numbers, this model's 32" in done.reason


def test_the_zeros_of_a_failed_npu_are_computed_anew(tmp_path: Path) -> None:
    vectors = HashEmbedder().embed(TEXTS)
    vectors[1] = 0
    vectors[3, 0] = np.nan
    done, path = move(tmp_path, vectors)
    assert (done.reused, done.recomputed) == (5, 2)
    assert "2 of its vectors" in done.reason
    with HybridStore(path, HashEmbedder()) as store:
        assert store.search(TEXTS[1], 1, "naive")[0].vector_score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("vectors", [None, np.zeros((7, 32), np.float32), np.ones((3, 32))])
def test_a_memory_without_usable_vectors(tmp_path: Path, vectors: Any) -> None:
    done, _ = move(tmp_path, vectors)
    assert (done.documents, done.reused, done.recomputed) == (7, 0, 7)
    assert done.reason


def test_an_empty_memory(tmp_path: Path) -> None:
    assert move(tmp_path, None, [])[0] == Imported(0, 0, 0, "")


def test_one_model_change_in_a_long_memory_is_noticed(tmp_path: Path) -> None:
    """The last tenth was embedded by another model of the same dimension."""
    documents = [f"note {n} of a long memory" for n in range(400)]
    vectors = HashEmbedder().embed(documents)
    vectors[360:] = HashEmbedder().embed([f"other {n}" for n in range(40)])
    done, _ = move(tmp_path, vectors, documents)
    assert (done.reused, done.recomputed) == (0, 400)
