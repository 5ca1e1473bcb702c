"""Runs inside the emulated board: the real wheel over the stand-in library.

Started by tests/test_device_emulated.py, once per version of the wheel; not collected elsewhere.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from standin import FLOATS, FLOATS_OF_PAIRS, HOST, THREE, TWO, Bench, expected, feed, words

from tars_rag.errors import DeviceError, InvalidInputError
from tars_rag.runtimes.base import Feeds, FloatArray
from tars_rag.runtimes.npu.core import Recovery
from tars_rag.runtimes.npu.gate import CoreGate
from tars_rag.runtimes.npu.isolate import IsolatedSession
from tars_rag.runtimes.npu.pool import NpuPool
from tars_rag.runtimes.npu.rknn import RknnContext, import_wheel
from tars_rag.runtimes.npu.session import NpuSession
from tars_rag.runtimes.npu.spec import NpuSpec, RknnFile

BOARD = os.environ["DEVICE_BOARD"]
# An emulated process cannot start another one of its architecture by itself.
multiprocessing.set_executable(os.environ["DEVICE_PYTHON"])
on_board = pytest.mark.skipif(BOARD != "rk3588", reason="needs the stand-in library")
elsewhere = pytest.mark.skipif(BOARD == "rk3588", reason="for boards without a usable library")
CORES = (1, 2, 4)
PILL = 666  # a token that the script can wait for; never in a self-test


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def arrays(text: dict[str, np.ndarray], names: Sequence[str] = TWO) -> list[np.ndarray]:
    return [text[name] for name in names]


# --- facts about the wheel that the code relies on ----------------------------------------------


@on_board
def test_wheel_a_failed_run_still_returns_arrays(bench: Bench) -> None:
    lite = import_wheel()()
    assert lite.load_rknn(str(bench.model())) == 0
    assert lite.init_runtime(core_mask=1) == 0
    right = lite.inference(inputs=arrays(feed(2, 5, 3)))[0]
    bench.script("* always run")
    np.testing.assert_array_equal(lite.inference(inputs=arrays(feed(2, 9, 3)))[0], right)
    lite.release()
    lite.release()


@on_board
def test_wheel_loads_garbage_and_refuses_it_later(bench: Bench) -> None:
    lite = import_wheel()()
    (bench.folder / "junk.rknn").write_bytes(b"junk")
    assert lite.load_rknn(str(bench.folder / "junk.rknn")) == 0
    assert lite.init_runtime() == -1
    assert lite.load_rknn(str(bench.folder / "absent.rknn")) == -1
    lite.release()


@on_board
def test_wheel_does_not_check_lengths(bench: Bench) -> None:
    lite = import_wheel()()
    lite.load_rknn(str(bench.model(lengths=(32,))))
    lite.init_runtime()
    assert lite.inference(inputs=arrays(feed(2, 5, 3, length=64))) is not None
    assert lite.inference(inputs=arrays(feed(2, 5, 3))[:1]) is None
    lite.release()


def test_wheel_leaves_logging_as_it_was() -> None:
    import_wheel()
    logging.getLogger("anything").setLevel("INFO")
    assert logging.getLevelName(40) == "ERROR"


# --- one context --------------------------------------------------------------------------------


@on_board
@pytest.mark.parametrize("kind", ["pooled", "tokens", "logit"])
@pytest.mark.parametrize("inputs", [TWO, THREE])
def test_right_rows(bench: Bench, kind: str, inputs: tuple[str, ...]) -> None:
    dim = 1 if kind == "logit" else 8
    path = bench.model(kind, dim, inputs, (32,))
    session = NpuSession(NpuSpec((RknnFile(str(path)),)), 1)
    assert session.info.input_names == inputs
    assert session.info.lengths == (32,)
    assert "0.9.8" in session.info.versions
    for ids in [(2, 5, 9, 3), (2, 40000, 77, 8, 3)]:
        text = feed(*ids, types=2)
        want = expected(text, kind, dim, inputs)
        np.testing.assert_allclose(session.run(text), want, rtol=1e-5, atol=1e-6)
    session.close()
    assert bench.calls("init") == bench.calls("destroy") == 1


@on_board
def test_several_lengths_in_one_file(bench: Bench) -> None:
    path = bench.model(lengths=(32, 64, 128))
    session = NpuSession(NpuSpec((RknnFile(str(path), (32, 64, 128)),), TWO, "pooled"), 1)
    for length in (128, 32, 64, 32):
        text = feed(2, length, 3, length=length)
        want = expected(text, "pooled", 8, TWO)
        np.testing.assert_allclose(session.run(text), want, rtol=1e-5, atol=1e-6)
    session.close()


@on_board
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_word_table_on_the_host(bench: Bench, dtype: type) -> None:
    np.save(bench.folder / "words.npy", words(np.arange(100), 8).astype(dtype))
    path = bench.model("pooled", 8, HOST)
    spec = NpuSpec(
        (RknnFile(str(path), (32,)),), HOST, "pooled", word_table=str(bench.folder / "words.npy")
    )
    session = NpuSession(spec, 1)
    assert session.info.input_names == TWO
    text = feed(2, 5, 99, 3)
    want = expected(text, "pooled", 8, TWO)
    np.testing.assert_allclose(session.run(text), want, atol=1e-6 if dtype is np.float32 else 2e-3)
    with pytest.raises(InvalidInputError, match=r"0\.\.99"):
        session.run(feed(2, 100, 3))
    session.close()


@on_board
@pytest.mark.parametrize("fault", ["no-init", "mask"])
def test_a_context_that_does_not_start_is_released(bench: Bench, fault: str) -> None:
    path = bench.model()
    bench.script(f"* always {fault}")
    with pytest.raises(DeviceError, match=r"did not start.*tars-rag doctor"):
        RknnContext(path, 2)
    assert bench.calls("init") == bench.calls("destroy")


@on_board
def test_what_is_not_a_model_is_an_error(bench: Bench) -> None:
    (bench.folder / "junk.rknn").write_bytes(b"junk")
    for name, message in [("junk.rknn", "did not start"), ("absent", "read"), (".", "read")]:
        with pytest.raises(DeviceError, match=message):
            RknnContext(bench.folder / name, 1)


@on_board
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("run", "rknn_run returned -1"),
        ("inputs", "rknn_inputs_set returned -8"),
        ("outputs", "rknn_outputs_get returned -9"),
        ("nan", "NaN"),
        ("zero", "norm 0"),
        ("scale", "norm 3"),
        ("stale", "the answer to the text before|the same answer"),
    ],
)
@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_faults_are_errors(bench: Bench, fault: str, message: str, kind: str) -> None:
    if (fault, kind) == ("scale", "tokens"):
        pytest.skip("a scaled hidden state has the same unit vector")
    path = bench.model(kind)
    session = NpuSession(NpuSpec((RknnFile(str(path), (32,)),)), 1)
    session.run(feed(2, 5, 3))
    bench.script("* always " + fault)
    with pytest.raises(DeviceError, match=message):
        session.run(feed(2, 6, 3))
    session.close()


@on_board
def test_one_stale_answer_is_found_even_if_the_next_is_right(bench: Bench) -> None:
    session = NpuSession(NpuSpec((RknnFile(str(bench.model()), (32,)),)), 1)
    session.run(feed(2, 5, 3))
    bench.script(f"* id={PILL} stale")
    with pytest.raises(DeviceError, match="text before"):
        session.run(feed(2, PILL, 3))
    session.close()


@on_board
def test_equal_answers_to_equal_texts_are_fine(bench: Bench) -> None:
    session = NpuSession(NpuSpec((RknnFile(str(bench.model()), (32,)),)), 1)
    first = session.run(feed(2, 5, 3))
    runs = bench.calls("run")
    padded = feed(2, 5, 3)
    padded["input_ids"][0, 10:] = 77  # masked: the same text
    np.testing.assert_array_equal(session.run(feed(2, 5, 3)), first)
    assert bench.calls("run") == runs + 1
    session.close()


@on_board
def test_a_logit_may_coincide_by_chance(bench: Bench) -> None:
    session = NpuSession(NpuSpec((RknnFile(str(bench.model("logit", 1, THREE)), (32,)),)), 1)
    # Weight 1 at positions 0, 5, 10: these two texts have the same sum, to the bit.
    one, other = feed(2, 7, 7, 7, 7, 5), feed(5, 7, 7, 7, 7, 2)
    assert session.run(one) == session.run(other)
    session.close()


@on_board
@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_a_short_output_never_becomes_a_vector(bench: Bench, kind: str) -> None:
    session = NpuSession(NpuSpec((RknnFile(str(bench.model(kind)), (32,)),)), 1)
    bench.script("* always size")
    # 2.3.2 fails on it; 2.5.0 would fill up with what was in its buffer.
    with pytest.raises(DeviceError, match=r"smaller|instead of"):
        session.run(feed(2, 5, 3))
    session.close()


@on_board
def test_the_self_test_finds_a_device_that_computes_something_else(bench: Bench) -> None:
    bench.script("* always wrong")
    with pytest.raises(DeviceError, match="self-test at length 32, off by 2"):
        NpuSession(bench.spec(), 1)
    assert bench.calls("init") == bench.calls("destroy") == 2


@on_board
def test_the_self_test_finds_a_device_that_does_not_compute(bench: Bench) -> None:
    bench.script("* after=1 stale")
    with pytest.raises(DeviceError, match="same answer to different texts"):
        NpuSession(bench.spec(known=False), 1)


# --- a process per core -------------------------------------------------------------------------


class Cpu:
    """The CPU runtime that takes over: the stand-in's model in NumPy."""

    device, input_names, lengths, max_rows = "cpu", TWO, None, None

    def run(self, feeds: Sequence[Feeds], *, urgent: bool = False) -> list[FloatArray]:
        return [expected(dict(f), "pooled", 8, TWO).astype(np.float32) for f in feeds]

    def close(self) -> None:
        pass


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def open_pool(
    bench: Bench, cores: Sequence[int] = (1, 2), isolated: bool = True, **options: object
) -> NpuPool:
    """Starting a process takes seconds here: most tests make do with two cores, or with none."""
    spec = bench.spec()
    opener = IsolatedSession if isolated else NpuSession
    options = {"timeout": 4, "recovery": Recovery(pause=0.1, limit=60), **options}
    return NpuPool(lambda mask: opener(spec, mask), cores, **options)  # type: ignore[arg-type]


def texts(pill: int | None = None) -> list[dict[str, np.ndarray]]:
    found = [feed(2, 100 + i, 7, 3, length=(32, 64)[i % 2]) for i in range(24)]
    if pill is not None:
        found[5] = feed(2, pill, 8, 3)
    return found


def check(rows: Sequence[FloatArray], asked: Sequence[dict[str, np.ndarray]]) -> None:
    assert len(rows) == len(asked)
    for row, text in zip(rows, asked, strict=True):
        np.testing.assert_allclose(row, expected(text, "pooled", 8, TWO), rtol=1e-5, atol=1e-6)


@on_board
def test_a_fault_of_one_core_is_made_good_by_another(bench: Bench) -> None:
    pool = open_pool(bench, CORES)
    check(pool.run(texts()), texts())
    bench.script("2 always crash", "4 always run-late")
    check(pool.run(texts()), texts())
    end = time.monotonic() + 90
    while sum(1 for core in pool.status().cores if core.reason) < 2 and time.monotonic() < end:
        check(pool.run(texts()[:3]), texts()[:3])
        time.sleep(0.2)
    reasons = [core.reason for core in pool.status().cores]
    assert reasons[0] == ""
    assert "SIGSEGV" in reasons[1]
    assert "longer than 4 s" in reasons[2]
    assert pool.device == "npu"
    pool.close()


@on_board
@pytest.mark.parametrize("isolated", [False, True])
def test_a_reset_of_the_driver_costs_no_core(bench: Bench, isolated: bool) -> None:
    """One job of another program times out: whatever runs on any core fails, once."""
    cores = CORES[: 2 if isolated else 3]
    pool = open_pool(bench, cores, isolated)
    check(pool.run(texts()), texts())
    bench.script("* once run")
    check(pool.run(texts()), texts())
    end = time.monotonic() + 60
    while time.monotonic() < end and any(c.recoveries < 1 for c in pool.status().cores):
        check(pool.run(texts()), texts())
    check(pool.run(texts()), texts())
    assert pool.device == "npu"
    assert {(core.reason, core.recoveries) for core in pool.status().cores} == {("", 1)}
    pool.close()


@on_board
def test_cores_1_and_2_that_fail_each_job_leave_core_0(bench: Bench) -> None:
    bench.script("2 always run", "4 always run")
    pool = open_pool(bench, CORES, isolated=False)
    check(pool.run(texts()), texts())
    assert [bool(core.reason) for core in pool.status().cores] == [False, True, True]
    pool.close()


@on_board
def test_an_old_driver_is_asked_of_the_library(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_DRIVER", "0.9.3")
    gate = CoreGate("rk3588", "2.3.2", chosen=False, folder=tmp_path / "notes")
    pool = open_pool(bench, CORES, isolated=False, gate=gate)
    check(pool.run(texts()), texts())
    reasons = [core.reason for core in pool.status().cores]
    assert reasons[0] == ""
    assert all("0.9.3" in reason for reason in reasons[1:])
    pool.close()
    assert bench.calls("init") == 2, "one core, two lengths"


@on_board
def test_a_text_that_overflows_costs_no_core(bench: Bench) -> None:
    pool = open_pool(bench, CORES, isolated=False, fallback=Cpu)
    bench.script(f"* id={PILL} nan")
    check(pool.run(texts(PILL)), texts(PILL))
    status = pool.status()
    assert status.cpu_feeds == 1
    assert {(core.reason, core.recoveries) for core in status.cores} == {("", 0)}
    assert bench.calls("nan") == 2
    pool.close()


@on_board
def test_int64_that_is_refused_is_one_clear_error(bench: Bench) -> None:
    bench.script("* always int64")
    with pytest.raises(DeviceError, match="rknn_inputs_set returned -5"):
        open_pool(bench, (1,), isolated=False)


@on_board
@pytest.mark.parametrize(
    ("kind", "inputs", "as_pairs"), [("pooled", FLOATS, TWO), ("logit", FLOATS_OF_PAIRS, THREE)]
)
def test_a_graph_of_floats_runs_where_int64_is_refused(
    bench: Bench, kind: str, inputs: tuple[str, ...], as_pairs: tuple[str, ...]
) -> None:
    bench.script("* always int64")
    dim = 1 if kind == "logit" else 8
    np.save(bench.folder / "words.npy", words(np.arange(100), dim).astype(np.float32))
    graph = RknnFile(str(bench.model(kind, dim, inputs)), (32,))
    spec = NpuSpec((graph,), inputs, kind, word_table=str(bench.folder / "words.npy"))  # type: ignore[arg-type]
    session = NpuSession(spec, 1)
    assert session.info.input_names == as_pairs
    for ids in [(2, 5, 99, 3), (2, 40, 77, 8, 3)]:
        text = feed(*ids, types=2)
        want = expected(text, kind, dim, as_pairs)
        np.testing.assert_allclose(session.run(text), want, rtol=1e-5, atol=1e-6)
    session.close()


@on_board
def test_answers_that_are_a_little_wrong_do_not_pass(bench: Bench) -> None:
    bench.script("* always drift")
    with pytest.raises(DeviceError, match=r"off by 0\.000[89]"):
        open_pool(bench, (1,), isolated=False)


@on_board
def test_a_short_text_opens_one_context_a_core(bench: Bench) -> None:
    """Where the bundle was measured before; the others follow when a text needs them."""
    spec = dataclasses.replace(bench.spec(lengths=(32, 64, 128)), lazy=True)
    pool = NpuPool(lambda mask: NpuSession(spec, mask), CORES, timeout=20)
    query = [feed(2, 999, 3)]
    check(pool.run(query, urgent=True), query)
    assert bench.calls("init") == 3
    check(pool.run(texts()), texts())
    pool.close()
    assert 3 < bench.calls("init") == bench.calls("destroy") <= 6


@on_board
def test_what_there_is_memory_for_is_used(bench: Bench) -> None:
    bench.script("* from=2 no-init")
    pool = open_pool(bench, (1,), fallback=Cpu)
    assert pool.lengths == (32, 64)
    check(pool.run(texts()), texts())
    assert pool.status().cpu_feeds == 12
    assert pool.device == "npu"
    pool.close()


@on_board
def test_three_cores_share_the_work_when_there_is_no_memory_for_a_seventh_context(
    bench: Bench,
) -> None:
    bench.script("* from=7 no-init")
    spec = bench.spec(lengths=(32, 64, 128))
    pool = NpuPool(lambda mask: NpuSession(spec, mask), CORES, timeout=20, fallback=Cpu)
    check(pool.run(texts()), texts())
    longest = [feed(2, 300 + i, 7, 3, length=128) for i in range(4)]
    check(pool.run(longest), longest)
    assert pool.device == "npu"
    pool.close()
    assert bench.calls("init") == 6


@on_board
@pytest.mark.parametrize(
    ("fault", "isolated"),
    [(fault, False) for fault in ("run", "inputs", "outputs", "stale", "zero", "scale")]
    + [(fault, True) for fault in ("hang", "crash", "abort")],
)
def test_a_fault_of_every_core_ends_on_the_cpu(bench: Bench, fault: str, isolated: bool) -> None:
    cores = CORES[: 2 if isolated else 3]
    pool = open_pool(bench, cores, isolated, fallback=Cpu)
    bench.script(f"* id={PILL} {fault}")
    asked = texts(PILL)
    check(pool.run(asked), asked)
    assert bench.calls(fault) >= len(cores), "the fault did not happen on every core"
    assert pool.device == "cpu"
    check(pool.run(asked), asked)
    pool.close()


@on_board
def test_a_fault_of_every_core_without_fall_back_is_an_error(bench: Bench) -> None:
    pool = open_pool(bench)
    bench.script(f"* id={PILL} crash")
    with pytest.raises(DeviceError, match=r"SIGSEGV.*Segmentation fault.*NPU_FALLBACK_CPU=1"):
        pool.run(texts(PILL))
    pool.close()


@on_board
def test_a_core_whose_mask_is_refused_is_left_out(bench: Bench) -> None:
    bench.script("2 always mask")
    pool = open_pool(bench, isolated=False)
    check(pool.run(texts()), texts())
    assert "core mask 2" in pool.status().cores[1].reason
    pool.close()
    assert bench.calls("init") == bench.calls("destroy")


@on_board
@pytest.mark.parametrize("fault", ["no-init", "init-crash", "wrong"])
def test_a_library_that_never_works_is_one_clear_error(bench: Bench, fault: str) -> None:
    bench.script(f"* always {fault}")
    said = {"no-init": "did not start", "init-crash": "SIGSEGV", "wrong": "self-test"}[fault]
    with pytest.raises(DeviceError, match=said):
        open_pool(bench, (1,))


@on_board
def test_many_threads_and_a_query_in_between(bench: Bench, threads: ThreadPoolExecutor) -> None:
    pool = open_pool(bench)
    bulk = [threads.submit(pool.run, texts(i)) for i in range(200, 206)]
    query = [feed(2, 999, 3)]
    check(pool.run(query, urgent=True), query)
    for number, done in zip(range(200, 206), bulk, strict=True):
        check(done.result(60), texts(number))
    pool.close()
    assert bench.calls("init") == bench.calls("destroy") == 4


@on_board
def test_a_killed_worker_is_noticed(bench: Bench) -> None:
    session = IsolatedSession(bench.spec(), 1)
    os.kill(session.pid, signal.SIGKILL)
    with pytest.raises(DeviceError, match="SIGKILL"):
        session.run(feed(2, 5, 3))
    session.close()


@on_board
def test_the_chatter_of_the_library_stays_away(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    session = IsolatedSession(bench.spec(), 1)
    session.run(feed(2, 5, 3))
    session.close()
    assert capfd.readouterr() == ("", "")


@on_board
def test_a_hang_does_not_outlive_the_caller(bench: Bench) -> None:
    session = IsolatedSession(bench.spec(), 1)
    bench.script("* always hang")
    with ThreadPoolExecutor(1) as executor:
        stuck = executor.submit(session.run, feed(2, 5, 3))
        while not bench.calls("hang"):
            time.sleep(0.05)
        session.abort()
        with pytest.raises(DeviceError, match="SIGKILL"):
            stuck.result(5)
    session.close()


# --- boards on which it cannot work -------------------------------------------------------------


@elsewhere
def test_an_unusable_board_is_one_clear_error(bench: Bench) -> None:
    spec = bench.spec()
    said = {
        "nolib": "Can not find dynamic library",
        "junk": "librknnrt.so",
        "laptop": "did not start",
        "docker": "_check_container",
    }[BOARD]
    with pytest.raises(DeviceError, match=said):
        NpuPool(lambda mask: IsolatedSession(spec, mask), (1,))
