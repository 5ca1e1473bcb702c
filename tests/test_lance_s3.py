"""A store in LanceDB in a bucket: moto's S3 server, on this machine."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import HashEmbedder
from tars_rag import HybridStore, Passage, index
from tars_rag.errors import StoreError
from tars_rag.splitting.splitter import Splitter
from test_lance_processes import kill_writers, two_write_and_two_read
from test_lance_store import FILTERS, QUERIES, passage, same
from tiny_models import write_model
from trees import prose

pytestmark = pytest.mark.lance
pytest.importorskip("lancedb")
moto = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket, which the usual variables lead to; children have them, too."""
    import boto3

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "one",
        "AWS_SECRET_ACCESS_KEY": "two",
        "AWS_REGION": "eu-central-1",
    }.items():
        monkeypatch.setenv(name, value)
    place = {"LocationConstraint": "eu-central-1"}
    client = boto3.client("s3", endpoint_url=url, region_name="eu-central-1")
    name = f"notes-{uuid.uuid4().hex[:8]}"  # what moto holds outlives its server
    client.create_bucket(Bucket=name, CreateBucketConfiguration=place)
    yield f"lance+s3://{name}"
    server.stop()


def test_a_bucket_holds_what_a_directory_holds(bucket: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    made = [passage(number, rng) for number in range(60)]
    with (
        HybridStore(f"{bucket}/deep/notes", HashEmbedder()) as ours,
        HybridStore(f"{tmp_path}/own", HashEmbedder()) as theirs,
    ):
        for store in (ours, theirs):
            store.upsert(made)
        ours.compact()
        for where in (None, *FILTERS[:8]):
            same(ours, theirs, QUERIES[0], 7, "hybrid", where)
        assert ours.delete(["id 1'\"é\n"]) == 1
    with HybridStore(f"{bucket}/deep/notes/", HashEmbedder(), read_only=True) as again:
        assert again.count() == 59
        assert again.path == f"{bucket}/deep/notes"


def test_two_write_to_a_bucket_and_two_read(bucket: str, tmp_path: Path) -> None:
    two_write_and_two_read(f"{bucket}/notes", tmp_path)


def test_a_writer_to_a_bucket_that_is_killed_loses_nothing_acknowledged(bucket: str) -> None:
    kill_writers(f"{bucket}/notes")


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    with pytest.raises(StoreError, match="Check bucket, network and the variables AWS_ACCESS"):
        HybridStore(f"{bucket}-not/notes", HashEmbedder()).upsert([Passage("a", "x")])


def test_files_are_indexed_into_a_bucket(bucket: str, tmp_path: Path) -> None:
    splitter = Splitter(write_model(tmp_path / "m", head=False, seed=5) / "tokenizer.json", 66)
    folder = tmp_path / "notes"
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.txt").write_text(prose(n))
    address = f"{bucket}/notes"
    with HybridStore(address, HashEmbedder()) as store:
        report = index(folder, store, splitter=splitter)
    assert (report.indexed, report.written) == (3, 3)
    (folder / "0.txt").write_text(prose(4))
    (folder / "1.txt").rename(folder / "3.txt")
    (folder / "2.txt").rename(tmp_path / "elsewhere.txt")
    with HybridStore(address, HashEmbedder()) as store:
        report = index(folder, store, splitter=splitter, prune=True)
        assert (report.indexed, report.reused, report.deleted) == (2, 1, 2)
        assert index(folder, store, splitter=splitter).unchanged == 2
        assert {one.text for one in store.get()} == {prose(4), prose(1)}
