"""A whole question, answered by a process that has the store and its models open.

This is what makes a command warm beside a server: nothing of the models or indexes is imported
here. Whoever does not get an answer opens everything itself, which says what is wrong, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tars_rag.retrieval.passage import Passage, ScoredPassage
from tars_rag.retrieval.sharing.wire import (
    HELLO,
    PROTOCOL,
    VERSION,
    LineError,
    Wire,
    error_of,
    hit_of,
    hit_row,
    passage_of,
    passage_row,
)
from tars_rag.retrieval.storage.listener import connect
from tars_rag.retrieval.timing import Step

if TYPE_CHECKING:
    from tars_rag.settings import Placement

OPERATION: Final = "answer"
_STOPPED_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Told:
    """What a query shows.

    Attributes:
        passages: Best first.
        steps: How long each took.
        around: Of each passage that and its neighbours, by its id.
        language: How the store's words are read.
        count: Passages of the store.
        reranked: Whether there was a reranker.
    """

    passages: Sequence[ScoredPassage]
    steps: Sequence[Step]
    around: Mapping[str, Sequence[Passage]]
    language: str
    count: int
    reranked: bool

    def row(self) -> dict[str, Any]:
        """For a header."""
        return {
            "passages": [hit_row(hit) for hit in self.passages],
            "steps": [[s.name, s.milliseconds, s.device, s.note] for s in self.steps],
            "around": {key: [passage_row(p) for p in row] for key, row in self.around.items()},
            "language": self.language,
            "count": self.count,
            "reranked": self.reranked,
        }

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Told:
        """The inverse of `row`."""
        return cls(
            passages=[hit_of(hit) for hit in row["passages"]],
            steps=[Step(*step) for step in row["steps"]],
            around={key: [passage_of(p) for p in some] for key, some in row["around"].items()},
            language=row["language"],
            count=row["count"],
            reranked=row["reranked"],
        )


def opened_as(model: str | Path, placement: Placement, more: Any) -> list[Any]:
    """What a model was opened as, for a header: equal for what would be opened alike.

    Args:
        model: Its name or directory.
        placement: Where and how it runs.
        more: What else it was given, as JSON has it.
    """
    directory = Path(model).expanduser()
    named = str(directory.resolve()) if directory.is_dir() else str(model)
    placed = [getattr(placement, field.name) for field in fields(placement)]
    return [named, [str(p.resolve()) if isinstance(p, Path) else p for p in placed], more]


def ask_holder(path: Path, asked: Mapping[str, Any]) -> Told | None:
    """Ask the holder of the store in `path`.

    Args:
        path: The store's directory.
        asked: What `lending` takes: the models it is to be answered with, and the search.

    Returns:
        Its answer; None: nobody holds it, or not with these models, or it does not lend them.

    Raises:
        TarsRagError: What the search raised.
    """
    try:
        wire = Wire(connect(path), lambda seconds: _waiting(path, seconds))
    except OSError:
        return None
    try:
        wire.send({HELLO: PROTOCOL, "version": VERSION})
        said, _ = wire.receive()
        if not isinstance(said, dict) or said.get(HELLO) != PROTOCOL:
            return None
        if said.get("version") != VERSION:
            return None  # it may rank in another way
        wire.send({"op": OPERATION, **asked})
        said, _ = wire.receive()
    except LineError:
        return None
    finally:
        wire.close()
    match said:
        case {"last": None}:
            return None
        case {"last": row}:
            return Told.of(row)
        case {"error": row}:
            raise error_of(row)
    return None


def _waiting(path: Path, seconds: float) -> None:
    if seconds < _STOPPED_SECONDS:
        return
    from tars_rag.retrieval.storage.holder import Holder
    from tars_rag.retrieval.storage.layout import LOCK

    holder = Holder.of(path / LOCK)
    if holder is not None and holder.is_stopped:
        msg = "the holder is stopped"
        raise LineError(msg)
