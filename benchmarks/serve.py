"""The gain from batching requests of several clients: throughput and latency over HTTP with 1, 8 and 64 clients.

    python -m benchmarks.serve [embed|match|search|rerank …]

Two servers of one process differ only in their largest batch: 32, or 1 for one by one. They listen on loopback, with a
model of the demonstration's size and random weights, and an index of 1,000 pictures. Rounds alternate between them, so
that both see the same machine. Clients are threads of another process with a connection each, and send the next request
once they have an answer; searches are of different texts. The last lines state the gain with the most clients.
"""

from __future__ import annotations

import http.client
import itertools
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from statistics import median, quantiles

from diptych.apps.index import build_index
from diptych.apps.serve.limits import Limits
from diptych.catalog import build_task, find_recipe
from diptych.checkpoints.store import CheckpointState, save_checkpoint
from diptych.data.tokenizer import Tokenizer
from diptych.predict import ModelPool
from diptych.serialize import to_dict
from tests.serve.server_state import Running, encoded, picture, running

CLIENTS = (1, 8, 64)
SECONDS, ROUNDS = 1.2, 5
"""The length of a measurement, and how many times each is made."""
TEXT = "a whale to the left of a crab"
NOUNS = ("whale", "crab", "fox", "car", "boat", "tree", "dog", "bird", "cat", "house", "star", "cup", "key", "sun")
TEXTS = [f"a {one} to the left of a {other}" for one in NOUNS for other in NOUNS]
PICTURES = 1_000
MODES = {"batched": Limits(), "one by one": Limits(batch=1)}


@dataclass(frozen=True)
class Case:
    """A kind of request."""

    path: str
    bodies: list[dict[str, object]]
    """What clients send in turn, each from another place on."""


def cases() -> dict[str, Case]:
    """Returns the kinds of request by name."""
    body: dict[str, object] = {"pictures": [encoded(picture(0, (64, 64)))], "texts": [TEXT]}
    return {
        "embed": Case("/v1/embed", [body]),
        "match": Case("/v1/match", [body]),
        "search": Case("/v1/search", [{"text": text} for text in TEXTS]),
        "rerank": Case("/v1/search", [{"text": text, "rerank": True} for text in TEXTS]),
    }


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in cases()]:
        print(f"no kind of request {', '.join(unknown)}; there are {', '.join(cases())}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        pool, index = ModelPool.load([save(Path(place) / "run")], device="cpu"), Path(place) / "index"
        build_index(index, pictures(Path(place) / "pictures"), pool.models[0].predictor)
        servers = {name: stack.enter_context(running(pool, limits, str(index))) for name, limits in MODES.items()}
        processes = stack.enter_context(multiprocessing.get_context("spawn").Pool(1))
        print("| request | clients | | requests/s | p50 | p99 | mean batch | against one by one |")
        print("|---|---|---|---|---|---|---|---|")
        gains = [report(name, clients, servers, processes) for name in names or cases() for clients in CLIENTS]
    for name, (gain, slowest) in zip(names or cases(), gains[len(CLIENTS) - 1 :: len(CLIENTS)], strict=True):
        print(f"{name} ratio {gain:.2f} p99 {slowest * 1e3:.0f} ms")
    return 0


def pictures(folder: Path) -> Path:
    """Saves the pictures of the index."""
    folder.mkdir()
    for seed in range(PICTURES):
        picture(seed, (64, 64)).save(folder / f"{seed}.bmp")
    return folder


def report(name: str, clients: int, servers: dict[str, Running], pool: Pool) -> tuple[float, float]:
    """Measures a kind of request with so many clients, and prints a row for each server.

    Returns how many times as many requests a second are answered in batches, and the 99th percentile of their seconds.
    """
    rates: dict[str, list[float]] = {mode: [] for mode in servers}
    times: dict[str, list[float]] = {mode: [] for mode in servers}
    sizes = {}
    for mode, server in servers.items():
        load(pool, server.port, name, clients, SECONDS / 4)  # the first requests do not count
        sizes[mode] = batches(server)
    for _ in range(ROUNDS):
        for mode, server in servers.items():
            begun = time.perf_counter()
            latencies = load(pool, server.port, name, clients, SECONDS)
            rates[mode].append(len(latencies) / (time.perf_counter() - begun))
            times[mode] += latencies
    gain = median(a / b for a, b in zip(rates["batched"], rates["one by one"], strict=True))
    for mode, server in servers.items():
        cuts = quantiles(times[mode], n=100)
        (count, total), (before, sum_before) = batches(server), sizes[mode]
        size = (total - sum_before) / max(count - before, 1)
        print(
            f"| {name} | {clients} | {mode} | {median(rates[mode]):.0f} | {cuts[49] * 1e3:.0f} ms | "
            f"{cuts[98] * 1e3:.0f} ms | {size:.1f} | {f'{gain:.2f} ×' if mode == 'batched' else ''} |",
            flush=True,
        )
    return gain, quantiles(times["batched"], n=100)[98]


def batches(server: Running) -> tuple[float, float]:
    """Returns the number of batches so far, and of requests in them."""
    samples = [sample for metric in server.state.metrics.batches.collect() for sample in metric.samples]
    count, total = (sum(sample.value for sample in samples if sample.name.endswith(end)) for end in ("_count", "_sum"))
    return count, total


def load(pool: Pool, port: int, name: str, clients: int, seconds: float) -> list[float]:
    """Lets clients in another process send requests for so many seconds, and returns the latency of each request."""
    latencies: list[float] = pool.apply(run_clients, (port, cases()[name], clients, seconds))
    return latencies


def run_clients(port: int, case: Case, clients: int, seconds: float) -> list[float]:
    """Runs a thread for each client and returns the latencies of all requests."""
    bodies = [json.dumps(body).encode() for body in case.bodies]
    latencies: list[list[float]] = [[] for _ in range(clients)]
    ready = threading.Barrier(clients)
    starts = [number * len(bodies) // clients for number in range(clients)]
    threads = [
        threading.Thread(target=client, args=(port, case.path, bodies[start:] + bodies[:start], ready, seconds, own))
        for start, own in zip(starts, latencies, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [latency for own in latencies for latency in own]


def client(
    port: int, path: str, bodies: list[bytes], ready: threading.Barrier, seconds: float, latencies: list[float]
) -> None:
    """Sends one request after the other and notes their latencies."""
    waiting = itertools.cycle(bodies)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.connect()
    ready.wait()
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        connection.request("POST", path, next(waiting), {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"{path} answered {response.status}")
        latencies.append(time.perf_counter() - begun)
    connection.close()


def save(place: Path) -> Path:
    """Saves an untrained run of albef_tiny."""
    recipe = find_recipe("albef_tiny")
    tokenizer = Tokenizer.train(TEXTS, size=200)
    content = CheckpointState(
        build_task(recipe, tokenizer).state_dict(), {}, {"step": 1}, to_dict(recipe), tokenizer.save
    )
    save_checkpoint(place / "checkpoints", 1, content)
    return place


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
