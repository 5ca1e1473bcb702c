"""The rows of the three tables, as plain values: what is printed, kept as JSON and compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RerankerRow:
    """One reranker in one place, at one length and batch.

    Attributes:
        model: Name.
        device: ``cpu`` or ``npu``.
        engine: Of the CPU.
        precision: Of the weights.
        cores: Threads of the CPU, or cores of the NPU.
        earned: Class of its fidelity.
        sample: What was ranked: ``122 tokens``, ``own p50``.
        tokens: Query and passage together, of the longest, without padding.
        length: Tokens that each row was padded to; equal to `tokens` where there is no padding.
        batch: Passages in one run of the graph.
        planned: It is what `Reranker` would send.
        megabytes: Of its files, 10^6 bytes.
        passage_ms: One passage ranked alone, median.
        spread_ms: Standard deviation of it.
        five_ms: Five passages ranked in one call, median.
        runs: Of each of the five passages.
        vs_cpu: `passage_ms` of the model's default on the CPU without padding over this one's;
            above 1: this one is faster.
        vs_fp16: `passage_ms` of FP16 on the same device at the same length over this one's.
        cpu_seconds_100: Processor time for 100 passages, with that of the NPU's processes.
        ndcg_10: Of the judged queries, with this model reranking at this length.
        random: Random weights: a time, not a quality.
        note: What a reader should know.
        absent: Why there is no figure.
    """

    model: str
    device: str
    engine: str = ""
    precision: str = ""
    cores: int | None = None
    earned: str = ""
    sample: str = ""
    tokens: int | None = None
    length: int | None = None
    batch: int | None = None
    planned: bool = False
    megabytes: float | None = None
    passage_ms: float | None = None
    spread_ms: float | None = None
    five_ms: float | None = None
    runs: int | None = None
    vs_cpu: float | None = None
    vs_fp16: float | None = None
    cpu_seconds_100: float | None = None
    ndcg_10: float | None = None
    random: bool = False
    note: str = ""
    absent: str = ""


@dataclass(frozen=True, slots=True)
class EmbedderRow:
    """One embedder in one place, at one length and number of texts.

    Attributes:
        model: Name.
        device: ``cpu`` or ``npu``.
        engine: Of the CPU.
        precision: Of the weights.
        cores: Threads of the CPU, or cores of the NPU.
        earned: Class of its fingerprint: vectors of different classes do not mix.
        sample: What was embedded.
        tokens: Of the longest text, without padding.
        length: Tokens that the device worked through for each.
        texts: In one call.
        megabytes: Of its files, 10^6 bytes.
        tokenise_ms: Text to token ids, for all texts of the call, median.
        infer_ms: The runtime: what the device did, and the way there and back.
        pooled: Where pooling and normalising happen, as they are not steps of their own.
        total_ms: The whole call, measured by itself; median.
        spread_ms: Standard deviation of it.
        per_second: Texts a second: `texts` over `total_ms`.
        runs: Counted calls.
        cpu_seconds_100: Processor time for 100 texts, with that of the NPU's processes.
        random: Random weights: a time, not a quality.
        note: What a reader should know.
        absent: Why there is no figure.
    """

    model: str
    device: str
    engine: str = ""
    precision: str = ""
    cores: int | None = None
    earned: str = ""
    sample: str = ""
    tokens: int | None = None
    length: int | None = None
    texts: int | None = None
    megabytes: float | None = None
    tokenise_ms: float | None = None
    infer_ms: float | None = None
    pooled: str = ""
    total_ms: float | None = None
    spread_ms: float | None = None
    per_second: float | None = None
    runs: int | None = None
    cpu_seconds_100: float | None = None
    random: bool = False
    note: str = ""
    absent: str = ""


@dataclass(frozen=True, slots=True)
class QueryRow:
    """A whole query with one embedder and one reranker.

    Attributes:
        embedder: Model and place.
        reranker: Model and place; ``none``.
        passages: In the store.
        candidates: Passages that were reranked.
        embed, vectors, lexical, fuse, rerank: Medians of the pipeline's own steps, milliseconds.
            Vectors are asked while the words are; their figure is what was waited for them.
        total_ms: All steps, median.
        spread_ms: Standard deviation of it.
        runs: Counted queries.
        random: One of the models has random weights.
        note: What a reader should know.
        absent: Why there is no figure.
    """

    embedder: str
    reranker: str
    passages: int | None = None
    candidates: int | None = None
    embed: float | None = None
    vectors: float | None = None
    lexical: float | None = None
    fuse: float | None = None
    rerank: float | None = None
    total_ms: float | None = None
    spread_ms: float | None = None
    runs: int | None = None
    random: bool = False
    note: str = ""
    absent: str = ""


@dataclass(frozen=True, slots=True)
class QualityRow:
    """What reranking does to the order, with judged queries.

    Attributes:
        reranker: Model and place; ``none``.
        max_length: Tokens that it reads.
        queries: Judged ones that were asked.
        ndcg_10: Mean over them.
        gain: Over ``none``.
        random: Random weights: the figure means nothing.
        absent: Why there is no figure.
    """

    reranker: str
    max_length: int | None = None
    queries: int | None = None
    ndcg_10: float | None = None
    gain: float | None = None
    random: bool = False
    absent: str = ""
