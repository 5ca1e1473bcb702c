"""One model on one NPU core: feeds in, checked rows out.

What the device leaves undone (word table, pooling) is done here; what it may get wrong (an old
answer, a short one, one that is not unit length) is caught here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import DeviceError, InvalidInputError, MissingLengthError, NonFiniteError
from tars_rag.runtimes.base import Feeds, FloatArray, OutputKind
from tars_rag.runtimes.npu.host_inputs import NEEDS, device_inputs
from tars_rag.runtimes.npu.rknn import RknnContext, TensorInfo
from tars_rag.runtimes.npu.spec import (
    FEED_NAMES,
    KnownAnswer,
    NpuSpec,
    RknnFile,
    SessionInfo,
)

# The norm of a pooled vector after FP16 arithmetic; anything else is not a unit vector.
_NORM_TOLERANCE = 0.05
# Two runs of the same input on the same core.
_REPEAT_TOLERANCE = 1e-3
_CONVERT = "To convert it again: tars-rag convert --help"
# A text that fills so much of a length is run there.
_FULL = 0.9
# Valid ids in any vocabulary of ten or more; used where the bundle has no self-test of its own.
_ANY_TEXTS = ((2, 5, 9, 3), (2, 7, 4, 6, 8, 3))


class NpuSession:
    """A model on one core, in this process.

    Args:
        spec: The model.
        core_mask: See `RknnContext`.
        open_context: The device boundary.

    Raises:
        DeviceError: The core cannot open the model, or fails its self-test.
    """

    def __init__(
        self,
        spec: NpuSpec,
        core_mask: int,
        open_context: Callable[[Path, int], RknnContext] = RknnContext,
    ) -> None:
        self._spec = spec
        self._core_mask = core_mask
        self._open_context = open_context
        self._waiting: list[RknnFile] = []
        self._contexts: dict[int, RknnContext] = {}
        self._opened: list[RknnContext] = []
        # By context, not by length: one context may run several lengths into one buffer.
        self._last: dict[RknnContext, tuple[bytes, FloatArray]] = {}
        self._table: NDArray[Any] | None = None
        self._gaps: dict[tuple[int, KnownAnswer], float] = {}
        self._missing: tuple[int, ...] = ()
        self._why_missing = ""
        self._dim = len(spec.answers[0].expected) if spec.answers else 0
        try:
            if spec.word_table:
                # Mapped, so that all cores and all lengths share the same pages.
                self._table = np.load(spec.word_table, mmap_mode="r", allow_pickle=False)
            self._open_graphs()
            first = self._opened[0]
            self._inputs = spec.inputs or _input_order(first.inputs)
            self._output: OutputKind = spec.output or _output_kind(first.outputs)
            for length in sorted(self._contexts):
                self._self_test(length)
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> SessionInfo:
        """Input names of a feed, lengths, and versions of library and driver."""
        names = {NEEDS.get(name, name) for name in self._inputs}
        return SessionInfo(
            tuple(n for n in FEED_NAMES if n in names),
            tuple(sorted({*self._contexts, *(n for file in self._waiting for n in file.lengths)})),
            self._opened[0].versions() if self._opened else "",
            tuple(self._gaps.values()) if self._output != "logit" else (),
            self._missing,
            self._why_missing,
        )

    def run(self, feed: Feeds) -> FloatArray:
        """Rows [1, dim] for one text, proven not to be the answer to the text before."""
        length = feed["input_ids"].shape[-1]
        if length not in self._contexts:
            self._open_length(length)
        # Set by the self-test already, so that the first text is compared with something too.
        asked, answer = self._last[self._contexts[length]]
        try:
            raw = self._infer(feed)
            if asked != _meaning(feed) and np.array_equal(answer, raw):
                self._prove_not_stale(feed, raw)
            return self._rows(raw, feed)
        except NonFiniteError:
            self._prove_sound(length)
            raise

    def abort(self) -> None:
        """Nothing can be done: a thread inside the vendor's library cannot be stopped."""

    def close(self) -> None:
        """Release every context."""
        for context in self._opened:
            context.close()
        self._opened, self._contexts = [], {}

    def _open_graphs(self) -> None:
        """Open the shortest first, and as many as there is memory for; one at least."""
        files = sorted(self._spec.graphs, key=lambda file: file.lengths)
        at_once = 1 if self._spec.lazy and files[0].lengths else len(files)
        self._waiting = files[at_once:]
        number = 0
        try:
            for number, file in enumerate(files[:at_once]):  # noqa: B007
                self._open_file(file)
        except DeviceError as error:
            if not self._contexts:
                raise
            self._missing = tuple(n for other in files[number:] for n in other.lengths)
            self._why_missing = str(error)

    def _open_file(self, file: RknnFile) -> None:
        context = self._open_context(Path(file.path), self._core_mask)
        self._opened.append(context)
        for length in file.lengths or (_length(context),):
            self._contexts[length] = context

    def _open_length(self, length: int) -> None:
        """Open what a text needs for the first time, and test it."""
        file = next((file for file in self._waiting if length in file.lengths), None)
        if file is None:
            msg = f"No graph of length {length}; there are {sorted(self._contexts)}."
            raise InvalidInputError(msg)
        self._waiting.remove(file)
        try:
            self._open_file(file)
        except DeviceError as error:
            raise MissingLengthError(str(error)) from error
        for each in file.lengths:
            self._prove_sound(each)

    def _infer(self, feed: Feeds) -> FloatArray:
        mask = feed["attention_mask"]
        arrays = device_inputs(self._inputs, feed, self._table)
        context = self._contexts[mask.shape[-1]]
        raw = context.run(arrays)
        self._last[context] = (_meaning(feed), raw)
        return raw

    def _rows(self, raw: FloatArray, feed: Feeds) -> FloatArray:
        mask = feed["attention_mask"]
        if self._output == "logit":
            if raw.size != 1:
                self._refuse(f"shape {raw.shape} instead of one logit")
            return raw.reshape(1, 1)
        if self._output == "tokens":
            if raw.size % mask.size or raw.size == mask.size or raw.ndim < 3:
                self._refuse(f"shape {raw.shape} for {mask.size} tokens")
            hidden = raw.reshape(1, mask.size, -1)
            rows = _pooled(hidden, mask.astype(bool), self._spec.pooling)
        else:
            rows = raw.reshape(1, -1)
        norm = float(np.linalg.norm(rows))
        if not np.isfinite(norm):
            self._refuse(f"a vector of norm {norm:.4g}", NonFiniteError)
        unit = self._output != "pooled" or abs(norm - 1) <= _NORM_TOLERANCE
        if not (norm > 0 and unit):
            self._refuse(f"a vector of norm {norm:.4g} instead of 1")
        self._dim = self._dim or rows.shape[1]
        if rows.shape[1] != self._dim:
            self._refuse(f"{rows.shape[1]} values instead of {self._dim}")
        unit_rows: FloatArray = rows / np.float32(norm)
        return unit_rows

    def _probes(self, length: int) -> list[KnownAnswer]:
        """Two texts or more that fit, with their answers where the bundle has them.

        Long ones are run at the length that they fill; the short ones at every length.
        """
        shortest = min(self._contexts)
        known = [
            answer
            for answer in self._spec.answers
            if (n := len(answer.input_ids)) <= shortest or _FULL * length <= n <= length
        ]
        return known if len(known) > 1 else [*known, *(KnownAnswer(ids) for ids in _ANY_TEXTS)]

    def _self_test(self, length: int) -> None:
        """Run texts whose answers are known, or at least must differ and repeat."""
        answers = self._probes(length)
        feeds = [_feed(a, length) for a in answers]
        raws = [self._infer(f) for f in feeds]
        rows = [self._rows(raw, f) for raw, f in zip(raws, feeds, strict=True)]
        for answer, row in zip(answers, rows, strict=True):
            if answer.expected:
                gap = _gap(row[0], np.asarray(answer.expected, np.float32), self._output)
                self._gaps[length, answer] = gap
                if not gap <= answer.tolerance:
                    self._refuse(
                        f"a wrong answer in the self-test at length {length}, off by {gap:.4g} "
                        f"where {answer.tolerance:.4g} is allowed"
                    )
        for i in range(1, len(raws)):
            if np.array_equal(raws[i], raws[0]):
                self._refuse(f"the same answer to different texts at length {length}")
        again = self._rows(self._infer(feeds[0]), feeds[0])
        if np.abs(again - rows[0]).max() > _REPEAT_TOLERANCE * max(1.0, np.abs(rows[0]).max()):
            self._refuse(f"two answers to the same text at length {length}")

    def _prove_not_stale(self, feed: Feeds, raw: FloatArray) -> None:
        """Two texts gave the same bytes: run something else in between and ask again.

        A logit in FP16 may coincide by chance; a context that no longer computes cannot give the
        known text another answer and this one the same answer again.
        """
        length = feed["input_ids"].shape[-1]
        self._self_test(length)
        for probe in self._probes(length):
            # What is left in the buffer now must not be what is suspected.
            if not np.array_equal(self._infer(_feed(probe, length)), raw):
                break
        if not np.array_equal(self._infer(feed), raw):
            self._refuse("the answer to the text before")

    def _prove_sound(self, length: int) -> None:
        """Run the self-test; NaN or infinity in it is the core's fault, not a text's."""
        try:
            self._self_test(length)
        except NonFiniteError as error:
            raise DeviceError(str(error)) from error

    def _refuse(self, what: str, kind: type[DeviceError] = DeviceError) -> None:
        name = Path(self._spec.graphs[0].path).name
        msg = f"{name} on the NPU gave {what}. Run: tars-rag doctor."
        raise kind(msg)


def _length(context: RknnContext) -> int:
    for tensor in context.inputs:
        if len(tensor.shape) >= 2:
            return tensor.shape[1]
    msg = f"{context.path.name} does not say how long its input is. {_CONVERT}"
    raise DeviceError(msg)


def _input_order(inputs: tuple[TensorInfo, ...]) -> tuple[str, ...]:
    """The names the file gives its inputs, or the usual order where it gives others."""
    names = tuple(t.name for t in inputs)
    if set(names) <= {*FEED_NAMES, *NEEDS}:
        return names
    if not 2 <= len(names) <= len(FEED_NAMES):
        msg = f"The model takes inputs {names}; 2 or 3 of {FEED_NAMES} were expected. {_CONVERT}"
        raise DeviceError(msg)
    return FEED_NAMES[: len(names)]


def _pooled(hidden: FloatArray, seen: NDArray[np.bool_], pooling: str) -> FloatArray:
    """The vectors of a text's tokens, [1, tokens, hidden], as one, [1, hidden]."""
    tokens = hidden[0, seen[0]]
    of = {"mean": tokens.mean, "max": tokens.max}
    row = of[pooling](axis=0) if pooling in of else tokens[-1 if pooling == "lasttoken" else 0]
    return np.asarray(row[None], np.float32)


def _output_kind(outputs: tuple[TensorInfo, ...]) -> OutputKind:
    shape = outputs[0].shape
    if len(shape) >= 3:
        return "tokens"
    return "logit" if np.prod(shape) == 1 else "pooled"


def _feed(answer: KnownAnswer, length: int) -> dict[str, NDArray[np.int64]]:
    arrays = {name: np.zeros((1, length), np.int64) for name in FEED_NAMES}
    n = len(answer.input_ids)
    arrays["input_ids"][0, :n] = answer.input_ids
    arrays["attention_mask"][0, :n] = 1
    if answer.token_type_ids:
        arrays["token_type_ids"][0, :n] = answer.token_type_ids
    return arrays


def _meaning(feed: Feeds) -> bytes:
    """What the answer may depend on: padding is not part of it."""
    mask = feed["attention_mask"]
    types = feed.get("token_type_ids")
    parts = (feed["input_ids"], *(() if types is None else (types,)))
    return mask.tobytes() + b"".join((part * mask).tobytes() for part in parts)


def _gap(row: FloatArray, expected: FloatArray, output: OutputKind) -> float:
    if row.shape != expected.shape:
        return float("inf")
    if output == "logit":
        return float(np.abs(row - expected).max())
    return float(1.0 - row @ expected / np.linalg.norm(expected))
