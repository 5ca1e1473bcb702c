"""``tars-rag ask``: a language model answers from the passages of a store, and cites them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tars_rag.cli import resources
from tars_rag.cli.console import say, show
from tars_rag.cli.passages import place_of
from tars_rag.cli.place import PlaceOption, require_place, token_counter, told_by
from tars_rag.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tars_rag.retrieval.passage import ScoredPassage

_SYSTEM = (
    "Answer the question from the numbered passages alone. Put the numbers of the passages that "
    "you use behind each statement, like [1] or [2][3]. If they do not answer it, say so."
)


def ask(
    words: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="What to answer.")],
    store: PlaceOption,
    llm: Annotated[
        str,
        typer.Option(metavar="URL", help="An OpenAI-compatible server, http://host:port/v1."),
    ],
    llm_model: Annotated[
        str | None, typer.Option(help="Its model (default: the first that it lists).")
    ] = None,
    llm_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Its key.", show_envvar=True)
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=50, help="How many passages at most.")] = 5,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="The least relevance of a passage that is used.")
    ] = 0.3,
    context_tokens: Annotated[
        int, typer.Option(min=64, help="Most tokens of all passages (the embedder's count).")
    ] = 2048,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for the next word.")
    ] = 120,
    rerank: resources.RerankOption = None,
    model: resources.ModelOption = None,
    device: resources.DeviceOption = None,
    engine: resources.EngineOption = None,
    precision: resources.PrecisionOption = "fp32",
) -> None:
    """Answer a question from a store: streamed, with numbered citations."""
    if not llm.startswith(("http://", "https://")):
        msg = f"--llm {llm}: give the server's address, such as http://127.0.0.1:8080/v1"
        raise ConfigError(msg)
    text = " ".join(words)
    here = {"model": model, "device": device, "engine": engine, "precision": precision}
    store = require_place(store, **here)
    settings = resources.read_settings_for(store, embed_model=model, cpu_engine=engine)
    from tars_rag.cli.llm import Llm

    search: dict[str, Any] = {
        "query": text,
        "k": k,
        "strategy": settings.rag_strategy,
        "where": None,
        "min_score": min_score,
        "budget_ms": None,
        "window": 0,
    }
    answer = told_by(store, settings, rerank, search, device=device, precision=precision)
    count = token_counter(store, settings)
    used = fitting(answer.passages, context_tokens, count)
    if not used:
        show(f"Nothing in {store} fits the question (min-score {min_score:g}).")
        return
    server = Llm(llm, llm_key, timeout)
    chosen = llm_model or server.first_model()
    for piece in server.stream(chosen, _SYSTEM, prompt(text, used)):
        typer.echo(piece, nl=False)
    typer.echo()
    show("")
    for number, hit in enumerate(used, 1):
        show(f"[{number}] {hit.id}  {place_of(hit)}".rstrip(), style="dim")
    if len(used) < len(answer.passages):
        say(f"{len(answer.passages) - len(used)} passages did not fit in --context-tokens.")


def prompt(question: str, passages: Sequence[ScoredPassage]) -> str:
    """Passages with their numbers, then the question."""
    numbered = [f"[{n}] {place_of(p)}\n{p.text}" for n, p in enumerate(passages, 1)]
    return "\n\n".join([*numbered, f"Question: {question}"])


def fitting(
    passages: Sequence[ScoredPassage], tokens: int, count: Callable[[str], int]
) -> list[ScoredPassage]:
    """The best passages that have at most `tokens` tokens together; at least the first."""
    used: list[ScoredPassage] = []
    left = tokens
    for passage in passages:
        left -= count(passage.text)
        if left < 0 and used:
            break
        used.append(passage)
    return used
