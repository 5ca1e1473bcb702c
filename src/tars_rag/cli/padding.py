"""``tars-rag padding``: how much arithmetic padding adds on the NPU, for given texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tars_rag.cli.console import out, print_json
from tars_rag.cli.resources import JsonOption, ModelOption, read_settings
from tars_rag.errors import ConfigError


def padding(
    collection: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Holds corpus.jsonl and queries.jsonl, in BEIR's layout."
        ),
    ],
    lengths: Annotated[
        str, typer.Option(help="Sequence lengths in tokens, separated by commas.")
    ] = "32,64,96,128,192,256",
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute how much arithmetic a collection is for an NPU; nothing is timed.

    Each text is padded to the shortest of several sequence lengths (buckets) that fits it. For
    comparison, all texts are also padded to the longest one, and not at all.
    """
    from tars_rag.bench.evaluate import load_texts
    from tars_rag.bench.work import Encoder, work
    from tars_rag.models.cache import ModelCache
    from tars_rag.models.tokenizer import Tokenizer
    from tars_rag.models.weights import CONFIG_NAME, BertConfig

    settings = read_settings(embed_model=model)
    try:
        buckets = sorted({int(n) for n in lengths.split(",")})
    except ValueError:
        msg = f"--lengths {lengths} is not a list of numbers. Example: --lengths 64,128,256"
        raise ConfigError(msg) from None
    local = ModelCache(settings.model_cache_dir).get(settings.embed_model)
    config = BertConfig.from_json(local.directory / CONFIG_NAME)
    encoder = Encoder(config.layers, config.hidden, config.intermediate)
    tokenizer = Tokenizer(local.directory, buckets[-1])
    passages, queries = load_texts(collection)
    rows = []
    for name, texts in (
        ("queries", list(queries.values())),
        ("passages", [passage.text for passage in passages]),
    ):
        tokens = [len(encoding) for encoding in tokenizer.encode(texts)]
        sent = [work(tokens, b, encoder) for b in (None, buckets, buckets[-1:])]
        rows.append(
            {
                "texts": name,
                "count": len(texts),
                "gmac_no_padding": sent[0] / 1e9,
                "gmac_buckets": sent[1] / 1e9,
                "gmac_one_length": sent[2] / 1e9,
                "times_less": sent[2] / sent[1],
            }
        )
    if as_json:
        print_json({"buckets": buckets, "work": rows})
        return
    titles = ("texts", "count", "no padding", "buckets", f"all {buckets[-1]}", "times less")
    table = Table(*titles, title="Multiply-accumulates in GMAC (10^9)")
    for row in rows:
        table.add_row(*(f"{v:,.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    out.print(table)
