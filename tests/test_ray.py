"""A real Ray cluster of two nodes on this machine: each passage once, whoever dies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from tars_rag import Embedder
from tars_rag.cli import app
from tars_rag.errors import ConfigError, DeviceError, InvalidInputError
from tars_rag.models.cache import ModelCache, default_cache_dir
from tars_rag.settings import Placement
from tiny_models import *  # noqa: F403  (fixtures)

ray = pytest.importorskip("ray")
pq = pytest.importorskip("pyarrow.parquet")
cluster_utils = pytest.importorskip("ray.cluster_utils")

from tars_rag.ray import Cluster, EmbedPassages, share_model  # noqa: E402

OWN_MODELS = default_cache_dir()  # before a fixture says otherwise
pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
SHARDS = [(n, [f"the cat runs to board {n} and {m}" for m in range(20)]) for n in range(30)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes with a CPU each, whose models are elsewhere than the driver's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL_CACHE_DIR", str(tmp_path_factory.mktemp("nodes")))
        made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        made.add_node(num_cpus=1)
        yield made
        made.shutdown()


@pytest.fixture
def cluster(nodes: Any) -> Iterator[Cluster]:
    with Cluster(nodes.address) as joined:
        yield joined


@pytest.fixture
def expected(embedder_dir: str) -> list[Any]:
    with Embedder(embedder_dir, device="cpu", threads=1) as embedder:
        return [embedder.embed(texts) for _, texts in SHARDS]


def check(got: dict[int, Any], expected: list[Any]) -> None:
    assert sorted(got) == list(range(len(SHARDS)))
    for number, rows in got.items():
        np.testing.assert_allclose(rows, expected[number], atol=1e-6)


def workers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["name"]) if p.info["name"].startswith("ray::_Worker")]


def test_two_nodes_share_the_work(cluster: Cluster, embedder_dir: str, expected: list[Any]) -> None:
    at_once = 0
    until = time.monotonic() + 60

    def shards() -> Iterator[tuple[int, list[str]]]:
        """All of them, and again, until the second node has begun: so little is done at once."""
        for number in count():
            if number >= len(SHARDS) and (at_once > 1 or time.monotonic() > until):
                return
            yield number, SHARDS[number % len(SHARDS)][1]

    got: set[int] = set()
    for number, rows in cluster.vectors(share_model(embedder_dir), shards()):
        assert number not in got
        got.add(number)
        np.testing.assert_allclose(rows, expected[number % len(SHARDS)], atol=1e-6)
        at_once = max(at_once, len(workers()))
    assert got == set(range(len(got)))
    assert at_once > 1


def test_a_worker_that_is_killed_loses_nothing(
    cluster: Cluster, embedder_dir: str, expected: list[Any]
) -> None:
    got: dict[int, Any] = {}
    for number, rows in cluster.vectors(share_model(embedder_dir), iter(SHARDS)):
        assert number not in got
        got[number] = rows
        if len(got) == 3:
            workers()[0].kill()
    check(got, expected)


def test_a_node_that_is_killed_loses_nothing(
    nodes: Any, cluster: Cluster, embedder_dir: str, expected: list[Any]
) -> None:
    third = nodes.add_node(num_cpus=1)
    got: dict[int, Any] = {}
    for number, rows in cluster.vectors(share_model(embedder_dir), iter(SHARDS)):
        assert number not in got
        got[number] = rows
        if len(got) == 5:
            nodes.remove_node(third, allow_graceful=False)
    check(got, expected)


def test_the_command_writes_what_it_writes_without_a_cluster(
    nodes: Any, embedder_dir: str, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"id": f"d{n}", "text": f"the fan of board {n}"}) for n in range(1500)]
    rows.write_text("\n".join(lines))
    model = ["--model", embedder_dir, "--device", "cpu"]
    for name, more in (("one", []), ("two", ["--ray", nodes.address])):
        done = CliRunner().invoke(app, ["embed", str(rows), str(tmp_path / name), *model, *more])
        assert done.exit_code == 0, done.output
    one, two = pq.read_table(tmp_path / "one"), pq.read_table(tmp_path / "two")
    assert one.drop(["vector"]).equals(two.drop(["vector"]))
    assert one.schema.metadata == two.schema.metadata
    a, b = (np.array(table.column("vector").to_pylist()) for table in (one, two))
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert not ray.is_initialized()


def test_nodes_of_another_kind_are_refused(cluster: Cluster, embedder_dir: str) -> None:
    other = replace(share_model(embedder_dir), fingerprint="other")
    with pytest.raises(ConfigError, match="cannot be mixed"):
        list(cluster.vectors(other, iter(SHARDS)))


def test_what_embedding_raises_comes_out_as_it_is(cluster: Cluster, embedder_dir: str) -> None:
    wrong: Any = [(0, ["fine", 3])]
    with pytest.raises(InvalidInputError):
        list(cluster.vectors(share_model(embedder_dir), iter(wrong)))


def test_a_node_without_the_model_says_so(cluster: Cluster, embedder_dir: str) -> None:
    gone = replace(share_model(embedder_dir), model="/no/such/model")
    with pytest.raises(DeviceError, match=r"No node .* can embed .*/no/such/model"):
        list(cluster.vectors(gone, iter(SHARDS)))


def test_a_dataset_gets_its_vectors(
    cluster: Cluster, embedder_dir: str, expected: list[Any]
) -> None:
    texts = [text for _, shard in SHARDS for text in shard]
    data = ray.data.from_items([{"id": str(n), "text": text} for n, text in enumerate(texts)])
    model = share_model(embedder_dir)
    done = data.map_batches(
        EmbedPassages, fn_constructor_args=(model,), concurrency=1, num_cpus=1, batch_size=64
    ).take_all()
    rows = np.stack([row["vector"] for row in sorted(done, key=lambda row: int(row["id"]))])
    np.testing.assert_allclose(rows, np.concatenate(expected), atol=1e-6)
    assert {row["fingerprint"] for row in done} == {model.fingerprint}


def test_a_model_is_brought_to_nodes_that_have_it_not(cluster: Cluster) -> None:
    name = "all-MiniLM-L6-v2"
    if ModelCache(OWN_MODELS).find(name) is None:
        pytest.skip("the model's weights are not on this machine")
    assert ModelCache().find(name) is None  # where the nodes look
    shards = [(0, ["The kettle is in the kitchen."])]
    model = share_model(name, Placement(device="cpu", cache_dir=OWN_MODELS))
    [(_, rows)] = cluster.vectors(model, iter(shards))
    assert ModelCache().find(name) is not None
    with Embedder(name, device="cpu") as own:
        np.testing.assert_allclose(rows, own.embed(shards[0][1]), atol=1e-6)


def test_where_there_is_no_cluster_one_is_told_how_to_start_it() -> None:
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(DeviceError, match="ray start --head"):
            Cluster(address)
