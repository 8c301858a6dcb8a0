"""Counts and times requests for Prometheus. Label values come from fixed sets, whatever clients send."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
OTHER = "other"
"""The endpoint label of every path that does not exist."""


class Metrics:
    """The metrics of one server. Each server has a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "diptych_requests",
            "Requests by endpoint and status; 499: the client left before the answer",
            ("endpoint", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "diptych_request_seconds",
            "Seconds from the first line of a request to its answer",
            ("endpoint",),
            buckets=SECONDS,
            registry=registry,
        )
        self.open = Gauge("diptych_requests_open", "Unanswered requests to models", registry=registry)
        self.held_bytes = Gauge("diptych_held_bytes", "Bytes of bodies and answers that are held", registry=registry)
        self.waiting = Gauge("diptych_waiting", "Requests that wait for a model", registry=registry)
        self.waited = Histogram(
            "diptych_waited_seconds", "Seconds that prepared requests waited", buckets=SECONDS, registry=registry
        )
        self.batches = Histogram(
            "diptych_batch_requests", "Requests in a batch", ("ability",), buckets=ROWS, registry=registry
        )
        self.rows = Histogram("diptych_batch_rows", "Rows in a batch", ("ability",), buckets=ROWS, registry=registry)
        self.batch_seconds = Histogram(
            "diptych_batch_seconds", "A model's seconds for a batch", ("ability",), buckets=SECONDS, registry=registry
        )
        self.dropped = Counter("diptych_dropped", "Requests dropped before a model began them", registry=registry)

    def text(self) -> bytes:
        """Formats the metrics in Prometheus' text format, 0.0.4."""
        return generate_latest(self.registry)
