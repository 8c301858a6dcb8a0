"""The gain from batching requests of several clients: throughput and latency over HTTP with 1, 8 and 64 clients.

    python -m benchmarks.serve

Two servers of one process differ only in their largest batch: 32, or 1 for one by one. They listen on loopback, with a
model of the demonstration's size and random weights. Rounds alternate between them, so that both see the same machine.
Clients are threads of another process with a connection each, and send the next request once they have an answer.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import tempfile
import threading
import time
from contextlib import ExitStack
from multiprocessing.pool import Pool
from pathlib import Path
from statistics import median, quantiles

from diptych.apps.serve.limits import Limits
from diptych.catalog import build_task, find_recipe
from diptych.checkpoints.store import CheckpointState, save_checkpoint
from diptych.data.tokenizer import Tokenizer
from diptych.predict import ModelPool
from diptych.serialize import to_dict
from tests.serve.server_state import Running, encoded, picture, running

CLIENTS = (1, 8, 64)
SECONDS, ROUNDS = 1.2, 3
"""The length of a measurement, and how many times each is made."""
TEXT = "a whale to the left of a crab"
MODES = {"batched": Limits(), "one by one": Limits(batch=1)}


def requests() -> dict[str, dict[str, object]]:
    """Returns the body of the request to each endpoint."""
    body: dict[str, object] = {"pictures": [encoded(picture(0, (64, 64)))], "texts": [TEXT]}
    return {"/v1/embed": body, "/v1/match": body}


def main() -> None:
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        pool = ModelPool.load([save(Path(place) / "run")], device="cpu")
        servers = {name: stack.enter_context(running(pool, limits)) for name, limits in MODES.items()}
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(1))
        print("| endpoint | clients | | requests/s | p50 | p99 | mean batch | against one by one |")
        print("|---|---|---|---|---|---|---|---|")
        for path in requests():
            for clients in CLIENTS:
                report(path, clients, servers, pool)


def report(path: str, clients: int, servers: dict[str, Running], pool: Pool) -> None:
    """Measures an endpoint with so many clients, and prints a row for each server."""
    rates: dict[str, list[float]] = {name: [] for name in servers}
    times: dict[str, list[float]] = {name: [] for name in servers}
    sizes = {}
    for name, server in servers.items():
        load(pool, server.port, path, clients, SECONDS / 4)  # the first requests do not count
        sizes[name] = batches(server)
    for _ in range(ROUNDS):
        for name, server in servers.items():
            latencies = load(pool, server.port, path, clients, SECONDS)
            rates[name].append(len(latencies) / SECONDS)
            times[name] += latencies
    gain = median(a / b for a, b in zip(rates["batched"], rates["one by one"], strict=True))
    for name, server in servers.items():
        cuts = quantiles(times[name], n=100)
        (count, total), (before, sum_before) = batches(server), sizes[name]
        size = (total - sum_before) / max(count - before, 1)
        print(
            f"| {path} | {clients} | {name} | {median(rates[name]):.0f} | {cuts[49] * 1e3:.0f} ms | "
            f"{cuts[98] * 1e3:.0f} ms | {size:.1f} | {f'{gain:.2f} ×' if name == 'batched' else ''} |",
            flush=True,
        )


def batches(server: Running) -> tuple[float, float]:
    """Returns the number of batches so far, and of requests in them."""
    samples = [sample for metric in server.state.metrics.batches.collect() for sample in metric.samples]
    count, total = (sum(sample.value for sample in samples if sample.name.endswith(end)) for end in ("_count", "_sum"))
    return count, total


def load(pool: Pool, port: int, path: str, clients: int, seconds: float) -> list[float]:
    """Lets clients in another process send requests for so many seconds, and returns the latency of each request."""
    body = json.dumps(requests()[path]).encode()
    latencies: list[float] = pool.apply(run_clients, (port, path, body, clients, seconds))
    return latencies


def run_clients(port: int, path: str, body: bytes, clients: int, seconds: float) -> list[float]:
    """Runs a thread for each client and returns the latencies of all requests."""
    latencies: list[list[float]] = [[] for _ in range(clients)]
    ready = threading.Barrier(clients)
    threads = [threading.Thread(target=client, args=(port, path, body, ready, seconds, own)) for own in latencies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [latency for own in latencies for latency in own]


def client(port: int, path: str, body: bytes, ready: threading.Barrier, seconds: float, latencies: list[float]) -> None:
    """Sends one request after the other and notes their latencies."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.connect()
    ready.wait()
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"{path} answered {response.status}")
        latencies.append(time.perf_counter() - begun)
    connection.close()


def save(place: Path) -> Path:
    """Saves an untrained run of albef_tiny."""
    recipe = find_recipe("albef_tiny")
    tokenizer = Tokenizer.train([TEXT], size=200)
    content = CheckpointState(
        build_task(recipe, tokenizer).state_dict(), {}, {"step": 1}, to_dict(recipe), tokenizer.save
    )
    save_checkpoint(place / "checkpoints", 1, content)
    return place


if __name__ == "__main__":
    main()
