"""What a server counts and times, for Prometheus. Labels come from fixed sets, whatever clients send."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
OTHER = "other"
"""The endpoint of a path that does not exist."""


class Measures:
    """Each server has its own: nothing is global."""

    def __init__(self) -> None:
        self.registry = every = CollectorRegistry()
        self.requests = Counter(
            "diptych_requests", "Requests by endpoint and status; 499: gone before the answer", ("endpoint", "status"),
            registry=every,
        )  # fmt: skip
        self.seconds = Histogram(
            "diptych_request_seconds", "From the first line of a request to its answer", ("endpoint",), buckets=SECONDS,
            registry=every,
        )  # fmt: skip
        self.open = Gauge("diptych_requests_open", "Requests that ask a model and are not answered", registry=every)
        self.held = Gauge("diptych_held_bytes", "Bytes of the bodies of open requests", registry=every)
        self.waiting = Gauge("diptych_waiting", "Requests that wait for a model", registry=every)
        self.waited = Histogram(
            "diptych_waited_seconds", "From prepared to begun by a model", buckets=SECONDS, registry=every
        )
        self.batches = Histogram(
            "diptych_batch_requests", "Requests in a batch", ("ability",), buckets=ROWS, registry=every
        )
        self.rows = Histogram("diptych_batch_rows", "Rows in a batch", ("ability",), buckets=ROWS, registry=every)
        self.working = Histogram(
            "diptych_batch_seconds", "A model's time for a batch", ("ability",), buckets=SECONDS, registry=every
        )
        self.dropped = Counter("diptych_dropped", "Requests given up before a model began them", registry=every)

    def text(self) -> bytes:
        """In Prometheus' text format, 0.0.4."""
        return generate_latest(self.registry)
