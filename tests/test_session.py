"""NpuSession over a double of the context: what the device may get wrong, and the host's part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from npu_double import NAMES, FakeContext, feed
from tars_rag.errors import DeviceError, InvalidInputError, MissingLengthError, NonFiniteError
from tars_rag.runtimes.npu.session import NpuSession
from tars_rag.runtimes.npu.spec import KnownAnswer, NpuSpec, RknnFile

SPEC = NpuSpec((RknnFile("fake.rknn"),))


def open_session(context: FakeContext, spec: NpuSpec = SPEC) -> NpuSession:
    return NpuSession(spec, 1, lambda path, mask: context)  # type: ignore[arg-type, return-value]


def answer(*ids: int) -> np.ndarray:
    words = np.sin(np.array(ids)[:, None] * np.arange(1, 5)).sum(axis=0)
    return words / np.linalg.norm(words)


def test_pooled_output_is_passed_on_with_unit_length() -> None:
    session = open_session(FakeContext(lie=lambda rows: rows * np.float32(1.01)))
    row = session.run(feed(7, 8))
    np.testing.assert_allclose(row, [answer(7, 8)], atol=1e-6)
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)


def test_token_output_is_pooled_by_the_mean_of_what_is_not_masked() -> None:
    session = open_session(FakeContext(shape=(1, 32, 4)))
    asked = feed(7, 8)
    asked["input_ids"][0, 2:] = 99
    np.testing.assert_allclose(session.run(asked), [answer(7, 8)], atol=1e-6)


def test_cls_pooling() -> None:
    spec = NpuSpec((RknnFile("fake.rknn"),), pooling="cls")
    session = open_session(FakeContext(shape=(1, 32, 4)), spec)
    np.testing.assert_allclose(session.run(feed(7, 8)), [answer(7)], atol=1e-6)


def test_other_poolings_do_not_see_the_padding() -> None:
    tokens = np.sin(np.outer([7, 8, 3], np.arange(1, 5)))  # as the double gives them
    for pooling, row in (("lasttoken", tokens[-1]), ("max", tokens.max(axis=0))):
        spec = NpuSpec((RknnFile("fake.rknn"),), pooling=pooling)  # type: ignore[arg-type]
        session = open_session(FakeContext(shape=(1, 32, 4)), spec)
        found = session.run(feed(7, 8, 3))
        np.testing.assert_allclose(found, [row / np.linalg.norm(row)], atol=1e-6)


@pytest.mark.parametrize("names", [NAMES, (*NAMES, "token_type_ids"), ("a", "b"), ("x", "y", "z")])
def test_a_single_file_is_asked_for_inputs_and_length(names: tuple[str, ...]) -> None:
    context = FakeContext(names, (1, 256, 4), length=256)
    session = open_session(context)
    assert session.info.lengths == (256,)
    assert session.info.input_names == (*NAMES, "token_type_ids")[: len(names)]
    session.run(feed(7, length=256))
    assert len(context.got) == len(names)
    assert all(a.dtype == np.int64 and a.shape == (1, 256) for a in context.got)


def test_inputs_may_come_in_another_order() -> None:
    context = FakeContext(("attention_mask", "input_ids"))
    with pytest.raises(DeviceError):
        open_session(context)  # the double reads ids first: its answers make no sense
    np.testing.assert_array_equal(context.got[0][0, :7], [1, 1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c", "d")])
def test_other_graphs_are_refused(names: tuple[str, ...]) -> None:
    context = FakeContext(names)
    with pytest.raises(DeviceError, match="2 or 3 of"):
        open_session(context)
    assert context.closed == 1


def test_the_word_table_stays_on_the_host(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float16)
    np.save(tmp_path / "words.npy", table)
    names = ("word_embeddings", "attention_mask")
    graphs = (RknnFile("fake.rknn", (32,)),)
    spec = NpuSpec(graphs, names, word_table=str(tmp_path / "words.npy"))
    context = FakeContext(names)
    session = open_session(context, spec)
    session.run(feed(7, 49))
    assert context.got[0].dtype == np.float32
    np.testing.assert_array_equal(context.got[0][0, :2], table[[7, 49]].astype(np.float32))
    for bad in (50, -1):
        with pytest.raises(InvalidInputError, match=r"0\.\.49"):
            session.run(feed(7, bad))


def test_a_graph_of_floats_gets_no_integers(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float16)
    np.save(tmp_path / "words.npy", table)
    names = ("word_embeddings", "additive_mask", "token_types", "pooling_weights", "live_one")
    spec = NpuSpec((RknnFile("fake.rknn", (32,)),), names, word_table=str(tmp_path / "words.npy"))
    context = FakeContext(names)
    session = open_session(context, spec)
    assert session.info.input_names == (*NAMES, "token_type_ids")
    asked = feed(7, 49, 8)
    asked["token_type_ids"][0, 2] = 1
    row = session.run(asked)
    assert all(array.dtype == np.float32 for array in context.got)
    assert all(array.flags.c_contiguous for array in context.got)
    assert [array.shape for array in context.got] == [(1, 32, 4), (1, 32), (1, 32), (1, 32), (1, 1)]
    words, mask, types, shares, one = context.got
    np.testing.assert_array_equal(words[0, :3], table[[7, 49, 8]].astype(np.float32))
    np.testing.assert_array_equal(mask[0], [0] * 3 + [-100] * 29)
    np.testing.assert_array_equal(types[0], [0, 0, 1] + [0] * 29)
    np.testing.assert_allclose(shares[0], [1 / 3] * 3 + [0] * 29)
    assert one == [[1]]
    mean = table[[7, 49, 8]].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(row[0], mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (lambda rows: rows * 0, "norm 0"),
        (lambda rows: rows * 1.1, "norm 1.1"),
        (lambda rows: rows[:, :3] / np.linalg.norm(rows[:, :3]), "3 values instead of 4"),
        (lambda rows: rows * np.nan, "norm nan"),
    ],
)
def test_an_answer_that_is_no_unit_vector_is_refused(
    lie: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    context = FakeContext()
    session = open_session(context)
    context.lie = lie
    with pytest.raises(DeviceError, match=message):
        session.run(feed(7))


def test_nan_of_one_text_is_that_text_and_nan_of_any_is_the_core() -> None:
    context = FakeContext()
    session = open_session(context)
    overflow = np.float32(session.run(feed(13))[0, 0])
    context.lie = lambda rows: rows * np.nan if rows[0, 0] == overflow else rows
    with pytest.raises(NonFiniteError):
        session.run(feed(13))
    session.run(feed(7))
    context.lie = lambda rows: rows * np.nan
    with pytest.raises(DeviceError) as caught:
        session.run(feed(7))
    assert not isinstance(caught.value, NonFiniteError)


def test_the_answer_to_the_text_before_is_refused() -> None:
    context = FakeContext()
    session = open_session(context)
    first = session.run(feed(7))
    context.lie = lambda rows: first  # type: ignore[assignment]
    session.run(feed(7))
    with pytest.raises(DeviceError, match="the same answer to different texts"):
        session.run(feed(8))


def test_a_device_that_fails_only_now_and_then_is_found_too() -> None:
    raws: list[np.ndarray] = []
    context = FakeContext(lie=lambda rows: raws.append(rows) or rows)  # type: ignore[func-returns-value]
    session = open_session(context)
    session.run(feed(7))
    stale: Iterator[np.ndarray] = iter([raws[-1]])
    context.lie = lambda rows: next(stale, rows)
    with pytest.raises(DeviceError, match="text before"):
        session.run(feed(8))


def test_the_answer_to_a_text_of_another_length_is_refused() -> None:
    """A context that runs several lengths has one output buffer."""
    raws: list[np.ndarray] = []
    context = FakeContext(lie=lambda rows: raws.append(rows) or rows)  # type: ignore[func-returns-value]
    session = open_session(context, NpuSpec((RknnFile("fake.rknn", (32, 64)),)))
    session.run(feed(9))
    session.run(feed(7, length=64))
    stale: Iterator[np.ndarray] = iter([raws[-1]])
    context.lie = lambda rows: next(stale, rows)
    with pytest.raises(DeviceError, match="text before"):
        session.run(feed(8))


def test_known_answers_that_are_too_long_do_not_weaken_the_self_test() -> None:
    long = KnownAnswer(tuple(range(2, 42)), None, (1.0, 0, 0, 0), 0.1)
    open_session(FakeContext(), NpuSpec((RknnFile("fake.rknn"),), answers=(long, long)))
    with pytest.raises(DeviceError, match="same answer to different texts"):
        open_session(FakeContext(lie=lambda rows: np.eye(1, 4, dtype=np.float32)))


def test_the_first_text_is_compared_with_the_self_test() -> None:
    context = FakeContext()
    last: list[np.ndarray] = []
    context.lie = lambda rows: last.append(rows) or rows  # type: ignore[func-returns-value]
    session = open_session(context)
    context.lie = lambda rows: last[-1]
    with pytest.raises(DeviceError):
        session.run(feed(8))


def test_equal_logits_of_different_texts_are_accepted_once_proven() -> None:
    context = FakeContext(shape=(1, 1), lie=lambda rows: np.round(rows, 0))
    session = open_session(context)
    assert session.run(feed(7, 8)) == session.run(feed(8, 7))


def test_the_self_test_knows_the_answer() -> None:
    right = KnownAnswer((2, 7, 3), None, tuple(answer(2, 7, 3)), 1e-4)
    wrong = KnownAnswer((2, 7, 3), None, tuple(-answer(2, 7, 3)), 1e-4)
    graphs = (RknnFile("fake.rknn"),)
    open_session(FakeContext(), NpuSpec(graphs, answers=(right,)))
    context = FakeContext()
    with pytest.raises(DeviceError, match=r"off by 2 where 0\.0001 is allowed"):
        open_session(context, NpuSpec(graphs, answers=(right, wrong)))
    assert context.closed == 1


def test_long_answers_are_run_at_the_length_they_fill() -> None:
    """A device that is wrong only where a length is full is found when it is opened."""
    spec = NpuSpec(
        (RknnFile("a.rknn", (32,)), RknnFile("b.rknn", (64,))),
        answers=tuple(
            KnownAnswer(ids, None, tuple(answer(*ids)), 1e-4)
            for ids in [(2, 7, 3), (2, 8, 3), tuple(range(2, 33)), tuple(range(2, 64))]
        ),
    )
    full: set[int] = set()

    def open_context(path: Path, mask: int) -> FakeContext:
        context = FakeContext(length=32 if path.name == "a.rknn" else 64)
        run = context.run

        def seen(arrays: list[np.ndarray]) -> np.ndarray:
            full.add(int(arrays[1].sum()))
            rows = run(arrays)
            return -rows if arrays[1].all() and wrong else rows

        context.run = seen  # type: ignore[method-assign]
        return context

    wrong = False
    session = NpuSession(spec, 1, open_context)  # type: ignore[arg-type]
    assert full == {3, 31, 62}
    assert len(session.info.gaps) == 7, "what fits 32 at both lengths, the rest at one"
    assert max(session.info.gaps) < 1e-6
    spec = dataclasses.replace(
        spec,
        answers=(*spec.answers, KnownAnswer((5,) * 64, None, tuple(answer(*(5,) * 64)), 1e-4)),
    )
    wrong = True
    with pytest.raises(DeviceError, match="self-test at length 64"):
        NpuSession(spec, 1, open_context)  # type: ignore[arg-type]


def test_a_device_that_answers_at_random_does_not_pass() -> None:
    rng = np.random.default_rng(0)

    def lie(rows: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal(rows.shape)
        return (noise / np.linalg.norm(noise)).astype(np.float32)

    with pytest.raises(DeviceError, match="two answers to the same text"):
        open_session(FakeContext(lie=lie))


def test_what_opened_stays_when_there_is_no_memory_for_more() -> None:
    opened: list[str] = []

    def open_context(path: Path, mask: int) -> FakeContext:
        if len(opened) == 2:
            raise DeviceError("the runtime did not start")
        opened.append(path.name)
        return FakeContext(length=int(path.stem))

    files = tuple(RknnFile(f"{n}.rknn", (n,)) for n in (256, 32, 128, 64))
    session = NpuSession(NpuSpec(files), 1, open_context)  # type: ignore[arg-type]
    assert opened == ["32.rknn", "64.rknn"], "the shortest first"
    assert session.info.lengths == (32, 64)
    assert session.info.missing == (128, 256)
    assert "did not start" in session.info.why_missing
    session.run(feed(7, length=64))
    with pytest.raises(InvalidInputError, match="No graph of length 128"):
        session.run(feed(7, length=128))


class Shelf:
    """Contexts by the length in the file's name, opened on demand."""

    def __init__(self, refused: int = 0) -> None:
        self.opened: list[int] = []
        self.refused = refused
        self.wrong: set[int] = set()

    def __call__(self, path: Path, mask: int) -> FakeContext:
        length = int(path.stem)
        if length == self.refused:
            raise DeviceError("out of memory")
        self.opened.append(length)
        lie = (lambda rows: -rows) if length in self.wrong else (lambda rows: rows)
        return FakeContext(length=length, lie=lie)


LAZY = NpuSpec(
    tuple(RknnFile(f"{n}.rknn", (n,)) for n in (64, 32, 128)),
    answers=tuple(
        KnownAnswer(ids, None, tuple(answer(*ids)), 1e-4) for ids in [(2, 7, 3), (2, 8, 3)]
    ),
    lazy=True,
)


def test_a_length_is_opened_when_a_text_needs_it() -> None:
    shelf = Shelf()
    session = NpuSession(LAZY, 1, shelf)  # type: ignore[arg-type]
    assert shelf.opened == [32]
    assert session.info.lengths == (32, 64, 128)
    np.testing.assert_allclose(session.run(feed(7, 8, length=128)), [answer(7, 8)], atol=1e-6)
    session.run(feed(7, length=128))
    session.run(feed(7, length=32))
    assert shelf.opened == [32, 128]
    with pytest.raises(InvalidInputError, match="No graph of length 96"):
        session.run(feed(7, length=96))
    session.close()


def test_a_length_that_is_opened_late_is_tested_too() -> None:
    shelf = Shelf()
    session = NpuSession(LAZY, 1, shelf)  # type: ignore[arg-type]
    shelf.wrong = {64}
    with pytest.raises(DeviceError, match="self-test at length 64"):
        session.run(feed(7, length=64))


def test_nan_of_a_length_that_is_opened_late_is_no_texts_fault() -> None:
    class Broken(Shelf):
        def __call__(self, path: Path, mask: int) -> FakeContext:
            context = super().__call__(path, mask)
            if context.inputs[0].shape[1] == 64:
                context.lie = lambda rows: rows * np.nan
            return context

    session = NpuSession(LAZY, 1, Broken())  # type: ignore[arg-type]
    with pytest.raises(DeviceError) as caught:
        session.run(feed(7, length=64))
    assert not isinstance(caught.value, NonFiniteError)


def test_a_length_that_cannot_be_opened_late_costs_nothing_else() -> None:
    shelf = Shelf(refused=64)
    session = NpuSession(LAZY, 1, shelf)  # type: ignore[arg-type]
    with pytest.raises(MissingLengthError, match="out of memory"):
        session.run(feed(7, length=64))
    session.run(feed(7, length=32))
    session.run(feed(7, length=128))


def test_a_length_without_a_graph() -> None:
    with pytest.raises(InvalidInputError, match="No graph of length 33"):
        open_session(FakeContext()).run(feed(7, length=33))


def test_a_spec_survives_the_way_to_the_child() -> None:
    spec = NpuSpec(
        (RknnFile("a.rknn", (32, 64)), RknnFile("b.rknn")),
        NAMES,
        "tokens",
        "cls",
        "words.npy",
        (KnownAnswer((2, 3), (0, 1), (0.5, -0.5), 0.1), KnownAnswer((2,))),
    )
    assert NpuSpec.from_json(spec.to_json()) == spec
