"""``tars-rag serve`` and ``tars-rag mcp``: one process that owns models and stores."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tars_rag import advice
from tars_rag.cli import resources
from tars_rag.cli.console import say
from tars_rag.cli.place import require_place, served_reranker
from tars_rag.errors import ConfigError, TarsRagError
from tars_rag.retrieval.address import is_url, lance_of, split_store, unfolded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tars_rag.ingest.root import Root
    from tars_rag.server.service import Service

StoresOption = Annotated[
    list[str] | None,
    typer.Option(
        "--store",
        metavar="NAME=DIR",
        help="A store and the name it is served by; repeatable (default: TARS_STORE).",
    ),
]
ReadOnlyOption = Annotated[
    bool, typer.Option("--read-only", help="Refuse to write; others may read the stores, too.")
]


def serve(
    store: StoresOption = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen.")] = 7588,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file with a key on each line; clients send one.")
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Let other machines in without a key.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name of this server; repeatable."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, a PEM file.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, a PEM file.")] = None,
    watch: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="Keep a store current with files; repeatable."),
    ] = None,
    root: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR", help="With --watch: name files as seen from here; repeatable."
        ),
    ] = None,
    read_only: ReadOnlyOption = False,
    rerank: resources.RerankOption = None,
    model: resources.ModelOption = None,
    device: resources.DeviceOption = None,
    engine: resources.EngineOption = None,
    precision: resources.PrecisionOption = "fp32",
    language: resources.LanguageOption = None,
) -> None:
    """Answer over HTTP: OpenAI, Jina, Cohere, TEI and Ollama clients, stores, MCP, a search page.

    Only this machine can ask unless --host says otherwise.
    """
    _require_extra()
    from tars_rag.server.app import application
    from tars_rag.server.process import run
    from tars_rag.server.security import Hosts, Keys, check_exposure

    keys = Keys() if api_key_file is None else Keys.read(api_key_file)
    check_exposure(host, keys, no_auth)
    if (tls_cert is None) != (tls_key is None):
        msg = "--tls-cert and --tls-key go together."
        raise ConfigError(msg)
    if watch and read_only:
        msg = "--watch writes, so it does not go with --read-only. Leave one of them out."
        raise ConfigError(msg)
    if root and not watch:
        msg = "--root is for the files that --watch follows. Give --watch, too, or leave it out."
        raise ConfigError(msg)
    with _service(store, read_only, rerank, model, device, engine, precision, language) as service:
        hosts = Hosts([host, *(allow_host or [])])
        app = application(service, keys, hosts)
        scheme = "https" if tls_cert else "http"
        say(f"{', '.join(service.stores) or 'no store'} at {scheme}://{host}:{port}")
        with _watching(service, watch or [], root or []), _standing_by(service):
            run(app, host, port, tls_cert=tls_cert, tls_key=tls_key)


def mcp(
    store: StoresOption = None,
    rerank: resources.RerankOption = None,
    model: resources.ModelOption = None,
    device: resources.DeviceOption = None,
    engine: resources.EngineOption = None,
    precision: resources.PrecisionOption = "fp32",
) -> None:
    """Answer an agent by MCP on stdin and stdout. Nothing is written to the stores.

    A store may also be one that a server has: --store http://host:port/NAME, its key in
    TARS_API_KEY.
    """
    _require_extra()
    from tars_rag.server.mcp import mcp_server

    places = _places(store)
    if any(map(is_url, places.values())):
        here = {"model": model, "device": device, "engine": engine, "precision": precision}
        opened = _elsewhere(places, rerank, here)
    else:
        opened = _service(store, True, rerank, model, device, engine, precision, None)
    with opened as service:
        mcp_server(service).run("stdio")


def _places(stores: list[str] | None) -> dict[str, str]:
    """Directories, or addresses at a server, by name: those given, or TARS_STORE."""
    usual = None if stores else resources.read_settings().tars_store
    given = stores or ([] if usual is None else [unfolded(usual)])
    return {name: unfolded(path) for name, path in stores_by_name(given).items()}


@contextlib.contextmanager
def _elsewhere(
    places: dict[str, str], rerank: bool | None, here: dict[str, str | None]
) -> Iterator[Service]:
    """Stores and models of one server, for an agent on this machine."""
    from tars_rag.retrieval.remote.models import RemoteEmbedder
    from tars_rag.retrieval.store import HybridStore
    from tars_rag.server.service import Service

    servers = {split_store(url)[0] if is_url(url) else url for url in places.values()}
    if len(servers) > 1:
        msg = f"Give stores of one server, or directories, not both: {', '.join(sorted(servers))}"
        raise ConfigError(msg)
    for url in places.values():
        require_place(url, **here)
    [server] = servers
    service = Service(RemoteEmbedder(server), served_reranker(server, rerank), read_only=True)
    try:
        for name, url in places.items():
            service.add_store(name, HybridStore(url, read_only=True))
        yield service
    finally:
        service.close()


def _require_extra() -> None:
    missing = [n for n in ("fastapi", "uvicorn", "prometheus_client", "mcp") if not find_spec(n)]
    if missing:
        msg = f"This needs {', '.join(missing)}, an extra: {advice.install('server')}"
        raise ConfigError(msg)


@contextlib.contextmanager
def _service(
    stores: list[str] | None,
    read_only: bool,
    rerank: bool | None,
    model: str | None,
    device: str | None,
    engine: str | None,
    precision: Literal["fp32", "int8"],
    language: str | None,
) -> Iterator[Service]:
    """Models and stores, opened for a server and closed after it."""
    from tars_rag.retrieval.lance import told
    from tars_rag.retrieval.lending import lend
    from tars_rag.retrieval.opening import language_for
    from tars_rag.retrieval.storage import layout
    from tars_rag.retrieval.store import HybridStore
    from tars_rag.server.service import Service

    settings = resources.read_settings(embed_model=model, cpu_engine=engine)
    places = _places(stores)
    for place in filter(is_url, places.values()):
        msg = f"{place} is served already. Give the directories of stores: --store NAME=DIR"
        raise ConfigError(msg)
    named = {name: lance_of(place) or Path(place) for name, place in places.items()}
    for path in named.values():
        if isinstance(path, str):
            settings = told.settings_for(path, settings)
        else:
            settings = layout.settings_for(path, settings)
    with resources.open_embedder(settings, device=device, precision=precision) as embedder:
        reranker = resources.open_reranker(settings, rerank)
        service = Service(embedder, reranker, read_only=read_only)
        try:
            for name, path in named.items():
                if read_only and isinstance(path, Path):
                    resources.require_store(path)
                chosen = language or language_for(path, settings)
                opened = HybridStore(path, service.embedder, read_only=read_only, language=chosen)
                service.add_store(name, opened)
                lend(opened, reranker)
            yield service
        finally:
            service.close()
            if reranker is not None:
                reranker.close()


def stores_by_name(given: list[str]) -> dict[str, Path]:
    """``NAME=DIR``, or ``DIR``, whose last part is the name then.

    Raises:
        ConfigError: Two have one name, or a name is not of letters, digits, ``-``, ``_``, ``.``.
    """
    named: dict[str, Path] = {}
    for one in given:
        name, mark, path = one.partition("=")
        if not mark:
            path, name = one, Path(os.path.abspath(Path(one).expanduser())).name  # noqa: PTH100
        plain = name.replace("-", "").replace("_", "").replace(".", "")
        if not plain.isalnum() or name in named or not path:
            msg = f"--store {one}: give NAME=DIR, with another name for each (letters and digits)."
            raise ConfigError(msg)
        named[name] = Path(path).expanduser()
    return named


@contextlib.contextmanager
def _standing_by(service: Service) -> Iterator[None]:
    """A process that runs short commands beside this one without importing anything first."""
    stores = [] if service.read_only else service.stores.values()
    places = [str(one.path) for one in stores if one.shared_table is None]
    if not places:
        yield
        return
    command = [sys.executable, "-m", "tars_rag.standby", *places]
    # NumPy's threads would not come along when it forks; a search is not its work.
    few = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=few):
        yield  # at the end its standard input is closed, and it leaves


@contextlib.contextmanager
def _watching(service: Service, given: list[str], roots: list[str]) -> Iterator[None]:
    """Keep stores current with files meanwhile, each in a thread."""
    stop, threads = threading.Event(), []
    settled = _settle(service, roots)
    for name, paths in _by_store(service, "--watch", given).items():
        from tars_rag.ingest.watch import check_watching

        check_watching()
        work = (service, name, paths, settled.get(name), stop)
        threads.append(threading.Thread(target=_follow, args=work, name=f"watch-{name}"))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _settle(service: Service, given: list[str]) -> dict[str, Root]:
    """Record the roots of stores, which every run over their files goes by; by store."""
    from tars_rag.ingest.record import record_of
    from tars_rag.ingest.root import Root

    settled: dict[str, Root] = {}
    for name, directories in _by_store(service, "--root", given).items():
        if len(directories) > 1:
            msg = f"--root: the store {name} has one root, not {len(directories)}."
            raise ConfigError(msg)
        settled[name] = Root.at(directories[0])
        with record_of(service.stores[name]) as ledger:
            ledger.settle(settled[name])
    return settled


def _by_store(service: Service, option: str, given: list[str]) -> dict[str, list[Path]]:
    """Take apart ``[NAME=]PATH``; without a name it is that of the only store."""
    found: dict[str, list[Path]] = {}
    for one in given:
        name, mark, path = one.partition("=")
        if not mark and len(service.stores) == 1:
            name, path = next(iter(service.stores)), one
        if name not in service.stores or not path:
            msg = f"{option} {one}: give NAME=PATH, NAME being that of a --store."
            raise ConfigError(msg)
        found.setdefault(name, []).append(Path(path))
    return found


def _follow(
    service: Service, name: str, paths: list[Path], root: Root | None, stop: threading.Event
) -> None:
    from tars_rag.ingest.run import ingest
    from tars_rag.ingest.watch import Mounts, changes
    from tars_rag.splitting.splitter import Splitter

    embedder = service.embedder
    splitter = Splitter(embedder.tokenizer_path, embedder.passage_length)
    mounts = Mounts(paths)
    for _ in changes(paths, stop):
        if stop.is_set():
            return
        try:
            prune = mounts.are_as_before()
            # Given each time: of a store in LanceDB another machine may have settled its own.
            report = ingest(service.stores[name], paths, splitter, root=root, prune=prune)
        except TarsRagError as error:
            say(f"{name} not indexed this time: {error}", style="red")
            continue
        if report.indexed or report.deleted or report.failures:
            say(f"{name}: {report.indexed} files indexed, {len(report.failures)} problems")
