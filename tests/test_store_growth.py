"""A store that is used for years: what is replaced and deleted costs nothing for ever."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import HashEmbedder
from tars_rag.errors import InvalidInputError
from tars_rag.files import size_of
from tars_rag.retrieval.passage import Passage
from tars_rag.retrieval.storage import index_set
from tars_rag.retrieval.storage.check import check_store
from tars_rag.retrieval.store import HybridStore

_VALUES: list[Any] = ["a", "b", 1, 2, 1.5, True, False, None]
_VALUES += [["a", "b"], ["b", "c"], [1, 2], [0.5, 1.5], [True], [], {"deep": 1}]
_OPERANDS: list[Any] = ["a", "b", 1, 2, 1.5, 0.5, True, False]


def found(store: HybridStore, where: dict[str, Any]) -> set[str] | str:
    """The ids that pass a filter, or why it is refused."""
    try:
        return {passage.id for passage in store.get(where=where)}
    except InvalidInputError as error:
        return str(error)[:100]


@pytest.mark.slow
def test_what_was_replaced_answers_as_if_it_had_never_been_otherwise(tmp_path: Path) -> None:
    pairs = list(itertools.product(range(len(_VALUES)), range(len(_VALUES) + 1)))

    def passages(values: list[dict[str, Any]]) -> list[Passage]:
        return [Passage(f"p{n}", f"text {n}", value) for n, value in enumerate(values)]

    before = passages([{"k": _VALUES[old], "gone": old} for old, _ in pairs])
    after = passages([{"k": _VALUES[n]} if n < len(_VALUES) else {"new": 1} for _, n in pairs])
    with (
        HybridStore(tmp_path / "replaced", HashEmbedder()) as replaced,
        HybridStore(tmp_path / "fresh", HashEmbedder()) as fresh,
    ):
        replaced.upsert(before)
        replaced.upsert(after)
        fresh.upsert(after)
        assert {p.id: p for p in replaced.get()} == {p.id: p for p in after}
        for operator, value in itertools.product(("$eq", "$ne", "$contains"), _OPERANDS):
            where = {"k": {operator: value}}
            assert found(replaced, where) == found(fresh, where), where
        assert not replaced.get(where={"gone": {"$gte": 0}})


@pytest.mark.slow
def test_replacing_makes_no_file_larger(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "store"
    chroma = path / "chroma"
    sizes = []
    with HybridStore(path, HashEmbedder()) as store:
        for number in range(14):
            rows = rng.standard_normal((250, store.embedder.dimension)).astype(np.float32)
            store.upsert(
                [Passage(f"p{n}", f"text {n} of {number}", {"n": number}) for n in range(250)],
                vectors=rows,
            )
            sizes.append((size_of(chroma), size_of(path / "exact"), size_of(path / "lexical")))
        assert store.count() == 250
        held = store.vectors([f"p{n}" for n in range(250)])
        assert all(np.allclose(held[f"p{n}"], rows[n]) for n in range(250))
    assert max(size for size, _, _ in sizes[7:]) <= 1.2 * max(size for size, _, _ in sizes[:7])
    for last, first in zip(sizes[-1], sizes[1], strict=True):
        assert last <= 4 * first


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_chroma_survives_what_is_deleted_and_added(tmp_path: Path, seed: int) -> None:
    """With two neighbours a node its process died after 600 such writes."""
    rng = np.random.default_rng(seed)
    with HybridStore(tmp_path / "store", HashEmbedder()) as store:
        for start in range(0, 3000, 250):
            added = [Passage(f"p{start + n}", f"text {start + n}") for n in range(250)]
            rows = rng.standard_normal((250, store.embedder.dimension)).astype(np.float32)
            store.upsert(added, vectors=rows)
            if start >= 500:
                store.delete([f"p{start - 500 + n}" for n in range(250)])
        assert store.count() == 500


def roll(store: HybridStore, rounds: int, rng: np.random.Generator, window: int = 500) -> None:
    """Add passages and delete the oldest, so that a window of them stays."""
    for start in range(0, 250 * rounds, 250):
        rows = rng.standard_normal((250, store.embedder.dimension)).astype(np.float32)
        added = [Passage(f"p{start + n}", f"text {start + n}", {"n": n}) for n in range(250)]
        store.upsert(added, vectors=rows)
        if start >= window:
            store.delete([f"p{start - window + n}" for n in range(250)])


@pytest.mark.slow
def test_what_was_deleted_leaves_the_files_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_set, "LEAST_WASTE", 500)
    path = tmp_path / "store"
    with HybridStore(path, HashEmbedder()) as store:
        roll(store, 20, np.random.default_rng(0))
        last = {f"p{n}" for n in range(4500, 5000)}
        assert {passage.id for passage in store.get()} == last
        assert store.vectors(last).keys() == last
        assert {hit.id for hit in store.search("text 4990", 5)} <= last
    vectors = list((path / "chroma").rglob("data_level0.bin"))
    assert len(vectors) == 1  # the directory of the old ones is gone, too
    assert vectors[0].stat().st_size < 3000 * (4 * 32 + 200)
    assert check_store(path).ok


@pytest.mark.slow
def test_compacting_keeps_everything_and_reads_go_on(tmp_path: Path) -> None:
    path = tmp_path / "store"
    rng = np.random.default_rng(1)
    with HybridStore(path, HashEmbedder()) as store:
        roll(store, 8, rng)
        store.upsert([Passage("small", "a small write", {"n": [1, 2]})])  # in the log
        before = {passage.id: passage for passage in store.get()}
        vectors = store.vectors(before)
        size = size_of(path / "chroma")
        seen: list[int] = []

        def progress(done: int, total: int | None) -> None:
            seen.append(len(store.search("text", 3)))
            store.upsert([Passage("meanwhile", f"written at {done}")])
            assert total == len(before)

        store.compact(progress)
        assert seen
        assert min(seen) == 3
        before["meanwhile"] = Passage("meanwhile", f"written at {len(before)}")
        assert {passage.id: passage for passage in store.get()} == before
        after = store.vectors(vectors)
        assert all(np.array_equal(after[key], row) for key, row in vectors.items())
    assert size_of(path / "chroma") <= size
    assert check_store(path).ok
    with HybridStore(path, HashEmbedder()) as store:
        assert {passage.id: passage for passage in store.get()} == before


@pytest.mark.slow
def test_compacting_is_taken_up_where_it_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "store"

    class StopError(Exception):
        pass

    def stop(done: int, _: int | None) -> None:
        if done >= 512:
            raise StopError

    with HybridStore(path, HashEmbedder()) as store:
        roll(store, 5, np.random.default_rng(2), window=1000)
        before = {passage.id for passage in store.get()}
        with pytest.raises(StopError):
            store.compact(stop)
        assert {passage.id for passage in store.get()} == before
        store.upsert([Passage("new", "added in between")])
    with HybridStore(path, HashEmbedder()) as store:
        store.compact()
        assert {passage.id for passage in store.get()} == before | {"new"}
    assert check_store(path).ok
