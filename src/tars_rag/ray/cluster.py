"""A Ray cluster as what makes vectors: one worker a node, the fast ones get more to do.

Ray would restart a worker and repeat its call by itself, but only where resources are free, and it
keeps calls waiting at a worker that never comes up. Here a shard goes only to a worker that has
answered, and goes to another one if that dies; so no shard is lost, and none counts twice.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tars_rag import advice
from tars_rag.errors import ConfigError, DeviceError, TarsRagError
from tars_rag.ray.node import NodeModel

_AHEAD = 2  # shards at a worker: one that it embeds, one that it need not wait for
_TRIES = 3  # of a shard whose workers die, and of a node whose workers do
_LOOK = 2.0  # seconds between looks at who has joined or left
_PATIENCE = 10.0  # seconds for a connection
_NPU = "NPU"

Shard = tuple[int, list[str]]


def require_ray() -> Any:
    """The module.

    Raises:
        ConfigError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # offline means offline
    try:
        import ray
    except ImportError as error:
        msg = f"A cluster needs an extra: {advice.install('ray')}"
        raise ConfigError(msg) from error
    return ray


def _check_reached(address: str) -> None:
    """Ray itself tries for minutes.

    Raises:
        OSError: Nobody listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


class _Worker:
    """Runs on a node, in a process of its own.

    What goes wrong in a constructor comes out as the death of the worker; so nothing is done there.
    """

    def __init__(self, model: NodeModel, cpus: int | None) -> None:
        self._asked_for = (model, cpus)

    def ready(self) -> str:
        model, cpus = self._asked_for
        self._embedder = model.open(cpus)
        return self._embedder.device

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        return self._embedder.embed(texts)


@dataclass
class _Place:
    """A node, and the worker on it."""

    name: str
    worker: Any = None
    ready: Any = None  # what its first answer will be; None: it has answered
    calls: set[Any] = field(default_factory=set)
    deaths: int = 0
    problem: str = ""


class Cluster:
    """A connection to a Ray cluster; a context manager, whose `vectors` `embed_files` takes.

    Every node gets one worker with all its CPUs or, where it declares the resource ``NPU``
    (``ray start --resources '{"NPU": 3}'``), with all of these. tars-rag must be installed on
    every node. Nodes may join and leave meanwhile.

    Args:
        address: Of the cluster, as ``ray.init`` has it: ``auto`` for the one that runs on this
            machine, ``local`` for one that is made for this. Not used where Ray is connected.

    Raises:
        ConfigError: The extra ``ray`` is not installed.
        DeviceError: No cluster can be reached.
    """

    def __init__(self, address: str = "auto") -> None:
        self._ray = require_ray()
        self._own = not self._ray.is_initialized()
        self._places: dict[str, _Place] = {}
        self._looked = 0.0
        if self._own:
            try:
                _check_reached(address)
                self._ray.init(address=address, logging_level="ERROR", log_to_driver=False)
            except (OSError, RuntimeError, ValueError) as error:
                msg = (
                    f"No Ray cluster can be reached at {address!r}: {error}. Start one: ray start "
                    "--head, and give its address; or --ray local for one on this machine alone."
                )
                raise DeviceError(" ".join(msg.split())) from error

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster, if this has joined it."""
        if self._own and self._ray.is_initialized():
            self._ray.shutdown()

    def vectors(
        self, model: NodeModel, shards: Iterable[Shard]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The vectors of each shard once, in the order in which they are done.

        Args:
            model: What each node opens (`share_model`, once the cluster is connected).
            shards: (number, texts); the next is taken when a node has room for it.

        Raises:
            ConfigError: A node makes vectors of another kind.
            DeviceError: No node can embed; or one shard has ended three workers.
            TarsRagError: What embedding raised.
        """
        self._places.clear()
        try:
            yield from self._spread(model, iter(shards))
        finally:
            for place in self._places.values():
                self._end(place)

    def _spread(
        self, model: NodeModel, source: Iterator[Shard]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        again = deque[tuple[Shard, int]]()
        at: dict[Any, tuple[_Place, Shard, int]] = {}  # call -> who, what, tries before
        more = True
        while more or again or at:
            self._look(model)
            for place in self._free():
                shard, tries = again.popleft() if again else (next(source, None), 0)
                if shard is None:
                    more = False
                    break
                call = place.worker.embed.remote(shard[1])
                place.calls.add(call)
                at[call] = (place, shard, tries)
            starting = {p.ready: p for p in self._places.values() if p.ready is not None}
            done, _ = (
                self._ray.wait([*at, *starting], num_returns=1, timeout=_LOOK)
                if (at or starting)
                else ([], [])
            )
            for call in done:
                if call in starting:
                    self._started(starting[call])
                    continue
                place, shard, tries = at.pop(call)
                place.calls.discard(call)
                made = self._result(call, place)
                if made is not None:
                    yield shard[0], made
                    continue
                if tries + 1 >= _TRIES:
                    msg = (
                        f"The shard that begins with {shard[1][0][:60]!r} has ended {_TRIES} "
                        f"workers: {place.problem} Look into Ray's logs on {place.name}."
                    )
                    raise DeviceError(msg)
                again.append((shard, tries + 1))

    def _free(self) -> Iterator[_Place]:
        """Places with room for a shard, those with the least to do first, again and again."""
        while True:
            ready = [p for p in self._places.values() if p.worker is not None and p.ready is None]
            place = min(ready, key=lambda p: len(p.calls), default=None)
            if place is None or len(place.calls) >= _AHEAD:
                return
            yield place

    def _look(self, model: NodeModel) -> None:
        """Start a worker on each node that has none; forget nodes that have left."""
        if time.monotonic() - self._looked < _LOOK and any(
            p.worker is not None for p in self._places.values()
        ):
            return
        self._looked = time.monotonic()
        alive = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        for key, node in alive.items():
            cpus, npus = (int(node["Resources"].get(name, 0)) for name in ("CPU", _NPU))
            wanted = npus if model.placement.device == "npu" else max(cpus, npus)
            place = self._places.setdefault(key, _Place(node["NodeManagerHostname"]))
            if place.worker is None and wanted and place.deaths < _TRIES:
                self._start(place, key, model, cpus, npus)
        usable = [p for p in self._places.values() if p.worker is not None]
        if not usable:
            problems = "; ".join(f"{p.name}: {p.problem}" for p in self._places.values())
            msg = (
                f"No node of the cluster can embed ({problems or 'it has none with a CPU'}). "
                "Is tars-rag installed on every node? See: ray status"
            )
            raise DeviceError(msg)

    def _start(self, place: _Place, key: str, model: NodeModel, cpus: int, npus: int) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        use_npu = bool(npus) and model.placement.device != "cpu"
        options: dict[str, Any] = {"num_cpus": 0 if use_npu else cpus}
        if use_npu:
            options["resources"] = {_NPU: npus}
        placement = replace(model.placement, device="npu" if use_npu else "cpu")
        remote = self._ray.remote(_Worker).options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False),
            max_restarts=0,
            max_task_retries=0,
            **options,
        )
        place.worker = remote.remote(replace(model, placement=placement), cpus or None)
        place.ready = place.worker.ready.remote()

    def _started(self, place: _Place) -> None:
        ready, place.ready = place.ready, None
        try:
            self._ray.get(ready)
        except self._ray.exceptions.RayError as error:
            self._lost(place, error)

    def _result(self, call: Any, place: _Place) -> NDArray[np.float32] | None:
        """What a call returned; None where its worker or its node has died."""
        try:
            made: NDArray[np.float32] = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            raise _cause(error) from error
        except self._ray.exceptions.RayError as error:
            self._lost(place, error)
            return None
        return made

    def _lost(self, place: _Place, error: BaseException) -> None:
        cause = _cause(error)
        if isinstance(cause, ConfigError):
            raise cause from error
        if place.worker is not None:  # its other calls say the same
            place.deaths += 1
            self._end(place)
        place.problem = " ".join(str(cause).split())[-300:]

    def _end(self, place: _Place) -> None:
        worker, place.worker, place.ready = place.worker, None, None
        if worker is not None and self._ray.is_initialized():
            self._ray.kill(worker)


def _cause(error: BaseException) -> BaseException:
    """The error of this package that one of Ray's carries; else that one."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, TarsRagError) else error
