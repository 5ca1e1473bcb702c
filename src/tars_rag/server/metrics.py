"""What /metrics tells, in Prometheus' words."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tars_rag_requests",
            "Requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "tars_rag_request_seconds", "Time to the answer", ["route"], registry=self.registry
        )
        self.at_work = Gauge(
            "tars_rag_requests_at_work", "Requests not answered yet", registry=self.registry
        )
        self.waiting = Gauge(
            "tars_rag_texts_waiting", "Texts waiting to be embedded", registry=self.registry
        )
        self.batch = Histogram(
            "tars_rag_batch_texts",
            "Texts in one run of the embedder",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)
