"""What a core must know to run a model, and what it is to the scheduler: plain data and a protocol.

Light to import, because each core's process does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

from tars_rag.runtimes.base import Feeds, FloatArray, OutputKind

FEED_NAMES = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class RknnFile:
    """One compiled .rknn file and the lengths it runs; no lengths: ask the file."""

    path: str
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class KnownAnswer:
    """A text and its FP32 answer; see `manifest.SelfTest`. No answer: only checked for sanity."""

    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...] | None = None
    expected: tuple[float, ...] = ()
    tolerance: float = 0.0


@dataclass(frozen=True)
class NpuSpec:
    """What a core must know to run a model. Plain data: it is sent to another process.

    Attributes:
        graphs: The compiled files, one or several lengths each.
        inputs: Device inputs in order; empty: ask the file.
        output: What the device returns; None: judged by its shape.
        pooling: How token vectors become one, where the device returns those.
        word_table: The .npy file of the word embeddings, where they are looked up on the host.
        answers: Texts to run before the first real one.
        lazy: Open the shortest length only, and others when a text needs them.
    """

    graphs: tuple[RknnFile, ...]
    inputs: tuple[str, ...] = ()
    output: OutputKind | None = None
    pooling: Literal["mean", "cls", "max", "lasttoken"] = "mean"
    word_table: str | None = None
    answers: tuple[KnownAnswer, ...] = ()
    lazy: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON-serialisable data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NpuSpec:
        """The inverse of `to_json`."""
        values = {f.name: data[f.name] for f in fields(cls)}
        values["graphs"] = tuple(RknnFile(g["path"], tuple(g["lengths"])) for g in data["graphs"])
        values["inputs"] = tuple(data["inputs"])
        values["answers"] = tuple(
            KnownAnswer(
                tuple(a["input_ids"]),
                a["token_type_ids"] and tuple(a["token_type_ids"]),
                tuple(a["expected"]),
                a["tolerance"],
            )
            for a in data["answers"]
        )
        return cls(**values)


@dataclass(frozen=True)
class SessionInfo:
    """What an open session turned out to be.

    Attributes:
        input_names: Of a feed.
        lengths: Sequence lengths, ascending.
        versions: Of library and driver, as they say.
        gaps: How far each known answer was from what it should be, at each length: 1 - cosine of an
            embedder; empty where nothing is known, and for logits.
        missing: Lengths that could not be opened besides those that could, for want of memory.
        why_missing: What the library said.
    """

    input_names: tuple[str, ...]
    lengths: tuple[int, ...]
    versions: str = ""
    gaps: tuple[float, ...] = ()
    missing: tuple[int, ...] = ()
    why_missing: str = ""


class Session(Protocol):
    """One core with a model on it. `run` is called by one thread at a time."""

    @property
    def info(self) -> SessionInfo:
        """Input names of a feed, and lengths."""

    def run(self, feed: Feeds) -> FloatArray:
        """Rows [1, dim] for a feed [1, length].

        Raises:
            InvalidInputError: The feed itself is wrong.
            NonFiniteError: This text gives NaN or infinity, though the core passed its self-test.
            DeviceError: The core cannot be trusted any more.
        """

    def abort(self) -> None:
        """Make a `run` that hangs in another thread fail, if possible. Returns at once."""

    def close(self) -> None:
        """Release the core."""
