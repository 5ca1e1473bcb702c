"""One of the processes that share a store: its holder, or a guest of it until that one is gone.

Whoever finds nobody in the store holds it. A guest whose holder ends does with its next call what
it did at first, opens the store or finds the next holder, and asks again. So does one that only
reads, when another comes that also writes: it gives the store back. What is asked may be done
twice then: writes are of whole passages by id, so that changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tars_rag.errors import StoreError, StoreLockedError
from tars_rag.retrieval.indexes.chroma.filters import Where
from tars_rag.retrieval.passage import Passage, Progress, ScoredPassage, TextEmbedder
from tars_rag.retrieval.searching import Request
from tars_rag.retrieval.sharing.access import Local, StoreAccess
from tars_rag.retrieval.sharing.guest import Guest, HolderGoneError
from tars_rag.retrieval.sharing.host import Host, Lent
from tars_rag.retrieval.storage.backup import Backup
from tars_rag.retrieval.storage.directory import StoreDirectory
from tars_rag.retrieval.storage.holder import Holder
from tars_rag.retrieval.storage.layout import LOCK, open_store_json
from tars_rag.retrieval.storage.listener import Listener, left_behind
from tars_rag.retrieval.storage.lock import BeingReadError, HeldError, HeldHereError, closed, forked
from tars_rag.retrieval.storage.rebuild import model_of
from tars_rag.retrieval.storage.store_json import StoreJson
from tars_rag.retrieval.timing import Stopwatch

_UNREACHED_SECONDS = 30.0  # how long a holder may take from its lock to its socket, and back
_READERS_SECONDS = 4.0  # how long readers may take to give the store back
_LOOK_SECONDS = 0.2  # until a reader sees that it is wanted
_T = TypeVar("_T")


def opened(
    path: Path,
    embedder: TextEmbedder,
    *,
    read_only: bool,
    chroma_url: str | None,
    language: str | None,
    progress: Progress | None,
    share: bool,
) -> StoreAccess:
    """A store, open in this process or another's; see `HybridStore`, which checked the arguments.

    With a Chroma server every process has it open at once, so nobody is a guest.
    """
    if share and chroma_url is None:
        return Peer(path, embedder, read_only=read_only, language=language, progress=progress)
    return Local(
        StoreDirectory(
            path,
            embedder,
            read_only=read_only,
            chroma_url=chroma_url,
            language=language,
            progress=progress,
        )
    )


class Peer:
    """A store, held here or by another process of this user (see `StoreAccess`).

    Args:
        path: The store's directory.
        embedder: As `StoreDirectory`'s.
        read_only: As `StoreDirectory`'s.
        language: As `StoreDirectory`'s.
        progress: As `StoreDirectory`'s.

    Raises:
        StoreLockedError: It is held by a process that does not share it, or by this one.
        TarsRagError: What `StoreDirectory` raises.
    """

    def __init__(
        self,
        path: Path,
        embedder: TextEmbedder,
        *,
        read_only: bool,
        language: str | None,
        progress: Progress | None,
    ) -> None:
        self.path = path
        self._embedder, self._read_only = embedder, read_only
        self._language, self._progress = language, progress
        self._pid = os.getpid()
        self._closed = False
        self._mutex = threading.Lock()
        self._host: Host | None = None
        self.lent: Lent = {}
        self._was_guest = False
        self._given_up: Local | None = None
        self._access: Local | Guest | None = None
        self._access = self._join()
        self._known = self._access.store_json

    @property
    def directory(self) -> StoreDirectory | None:
        """See `StoreAccess`."""
        return None if self._access is None else self._access.directory

    @property
    def store_json(self) -> StoreJson:
        """See `StoreAccess`; what was known last, once it is closed."""
        if not self._closed and os.getpid() == self._pid:
            self._known = self._do(lambda access: access.store_json)
        return self._known

    def probe(self) -> NDArray[np.float32] | None:
        """See `StoreAccess`."""
        return self._do(lambda access: access.probe())

    def record_probe(self, probe: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `StoreAccess`."""
        self.check_writable()
        return self._do(lambda access: access.record_probe(probe))

    def check_writable(self) -> None:
        """See `StoreAccess`."""
        self._do(lambda access: access.check_writable())
        if self._read_only:
            msg = f"The store {self.path} is open read-only. Open it without read_only=True."
            raise StoreError(msg)

    def changed(self, batch: Sequence[Passage]) -> list[Passage]:
        """See `StoreAccess`."""
        return self._do(lambda access: access.changed(batch))

    def upsert(self, batch: Sequence[Passage], vectors: NDArray[np.float32]) -> None:
        """See `StoreAccess`."""
        self._do(lambda access: access.upsert(batch, vectors))

    def matching(self, ids: Sequence[str] | None, where: Where | None) -> list[str]:
        """See `StoreAccess`."""
        return self._do(lambda access: access.matching(ids, where))

    def delete(self, batch: Sequence[str], where: Where | None) -> int:
        """See `StoreAccess`. Of a batch that was asked twice, what is gone counts as deleted."""
        asked = False

        def ask(access: StoreAccess) -> int:
            nonlocal asked
            left = access.matching(batch, None) if asked else batch
            asked = True
            return len(batch) - len(left) + access.delete(left, where)

        return self._do(ask)

    def get(
        self, ids: Sequence[str] | None, where: Where | None, limit: int | None
    ) -> dict[str, Passage]:
        """See `StoreAccess`."""
        return self._do(lambda access: access.get(ids, where, limit))

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """See `StoreAccess`."""
        return self._do(lambda access: access.vectors(ids))

    def search(
        self, request: Request, vector: NDArray[np.float32] | None, watch: Stopwatch
    ) -> list[ScoredPassage]:
        """See `StoreAccess`."""
        return self._do(lambda access: access.search(request, vector, watch))

    def count(self) -> int:
        """See `StoreAccess`."""
        return self._do(lambda access: access.count())

    def flush(self) -> None:
        """See `StoreAccess`."""
        self._do(lambda access: access.flush())

    def compact(self, progress: Progress | None) -> None:
        """See `StoreAccess`."""
        self.check_writable()
        self._do(lambda access: access.compact(progress))

    def backup(self, path: Path, progress: Progress | None) -> Backup:
        """See `StoreAccess`."""
        return self._do(lambda access: access.backup(path, progress))

    def close(self, *, flush: bool = True) -> None:
        """See `StoreAccess`. Guests of this process go on: one of them takes the store over."""
        if os.getpid() != self._pid:
            return
        host = self._host
        if host is not None and host.is_this_thread:
            # The garbage collector may close a store in any thread, also while that answers a
            # guest and has locks of the store, which closing needs.
            threading.Thread(target=self.close, kwargs={"flush": flush}).start()
            return
        with self._mutex:
            self._closed = True
            access, self._host = self._access, None
            self.lent.clear()  # it may lead back to the store
        if host is not None:
            host.leave()
        if access is not None:
            access.close(flush=flush)

    def _do(self, ask: Callable[[Local | Guest], _T]) -> _T:
        while True:
            access = self._present()
            try:
                return ask(access)
            except HolderGoneError:
                with self._mutex:
                    if self._access is access:
                        self._access = None
                access.close()
            except StoreError:
                if access is not self._given_up:
                    raise  # else it was closed under the call, which only read

    def _present(self) -> Local | Guest:
        access = self._access
        if access is not None and not self._closed and os.getpid() == self._pid:
            return access
        self._check_usable()
        with self._mutex:
            self._check_usable()
            if self._access is None:
                self._access = self._join()
            return self._access

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise forked(self.path, self._pid)
        if self._closed:
            raise closed(self.path)

    def _join(self) -> Local | Guest:
        """Hold the store, or become a guest of who does."""
        read: float | None = None
        unreached: tuple[Holder | None, float] | None = None
        while True:
            try:
                return self._hold()
            except BeingReadError:  # most likely by a command, which takes a moment
                read = read or time.monotonic()
                if time.monotonic() - read > _READERS_SECONDS:
                    raise
            except (HeldError, HeldHereError) as held:
                if isinstance(held, HeldHereError) and not (self._was_guest or held.made_way):
                    raise  # else another of our own was quicker to take the store over
                read = None
                try:
                    return self._visit(held)
                except HolderGoneError:  # just now: there may be room, or another holder
                    unreached = None
                except OSError as error:  # not yet there, or no more
                    holder = Holder.of(self.path / LOCK)
                    if unreached is None or unreached[0] != holder:  # each has its time
                        unreached = holder, time.monotonic()
                    if time.monotonic() - unreached[1] > _UNREACHED_SECONDS:
                        msg = f"{held} (It shares the store, but cannot be reached: {error}.)"
                        raise StoreLockedError(msg) from error
            time.sleep(random.uniform(0.002, 0.02))

    def _hold(self) -> Local:
        # Who may only read takes a shared store over in earnest: others have writes under way, and
        # what a killed holder was at is to be mended.
        shared = self._was_guest or left_behind(self.path)
        read_only = self._read_only and not shared
        listener = None if read_only else Listener(self.path)
        local = Local(
            StoreDirectory(
                self.path,
                self._embedder,
                read_only=read_only,
                language=self._language,
                progress=self._progress,
                listener=listener,
            )
        )
        if listener is not None and not listener.closed:
            self._host = Host(local, listener, self.lent)
        if read_only and os.access(self.path, os.W_OK):
            made_way = partial(_make_way, weakref.ref(self), local)
            threading.Thread(target=made_way, name="tars-reader", daemon=True).start()
        return local

    def _give_up(self, local: Local) -> bool:
        """Give the store back, if it is open here; from the next call on we are a guest."""
        with self._mutex:
            if self._access is not local or self._closed:
                return False
            self._access, self._given_up, self._was_guest = None, local, True
        local.close(flush=False)
        return True

    def _visit(self, held: StoreLockedError) -> Guest:
        """Become a guest of the holder.

        Raises:
            StoreLockedError: `held`: it does not share the store.
            OSError: It cannot be reached, as yet or any more.
            HolderGoneError: It ended.
        """
        holder = Holder.of(self.path / LOCK)
        if holder is not None and not holder.shares and (holder.is_alive or not holder.is_near):
            raise held
        try:
            guest = Guest(self.path)
        except PermissionError:
            raise held from None
        try:
            # As opening it would: another embedder or language is refused.
            open_store_json(
                self.path,
                self._embedder.fingerprint,
                None,
                model=model_of(self._embedder),
                language=self._language,
            )
        except BaseException:
            guest.close()
            raise
        self._was_guest = True
        return guest


def _make_way(reader: weakref.ref[Peer], local: Local) -> None:
    """Wait until another process wants the store that a peer only reads, and have it given up."""
    with contextlib.suppress(OSError):  # it was closed
        while (peer := reader()) is not None:
            if local.directory.is_wanted and peer._give_up(local):
                return
            del peer
            time.sleep(_LOOK_SECONDS)
