"""What batching across clients gains: throughput and latency over HTTP at 1, 8 and 64 clients.

    python -m benchmarks.serve

Two servers of one process, alike but for their largest batch (32, or 1 for one by one), on loopback, with a model of
the demonstration's size and random weights. Rounds alternate between them, so that both see the same machine. Clients
are threads of another process with a connection each; each asks again as soon as it is answered.
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
"""Of one measurement; and how often each is made."""
TEXT = "a whale to the left of a crab"
MODES = {"batched": Limits(), "one by one": Limits(batch=1)}


def requests() -> dict[str, dict[str, object]]:
    one = encoded(picture(0, (64, 64)))
    return {
        "/v1/embed": {"pictures": [one], "texts": [TEXT]},
        "/v1/match": {"pictures": [one], "texts": [TEXT]},
    }


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
    rates: dict[str, list[float]] = {name: [] for name in servers}
    times: dict[str, list[float]] = {name: [] for name in servers}
    sizes = {}
    for name, server in servers.items():
        load(pool, server.port, path, clients, SECONDS / 4)  # what runs for the first time does not count
        sizes[name] = batches(server)
    for _ in range(ROUNDS):
        for name, server in servers.items():
            taken = load(pool, server.port, path, clients, SECONDS)
            rates[name].append(len(taken) / SECONDS)
            times[name] += taken
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
    """How many there were, and how many requests they held."""
    samples = [sample for metric in server.state.metrics.batches.collect() for sample in metric.samples]
    count, total = (sum(one.value for one in samples if one.name.endswith(end)) for end in ("_count", "_sum"))
    return count, total


def load(pool: Pool, port: int, path: str, clients: int, seconds: float) -> list[float]:
    """The seconds of each request that clients of another process made in so many seconds."""
    taken: list[float] = pool.apply(ask_all, (port, path, json.dumps(requests()[path]).encode(), clients, seconds))
    return taken


def ask_all(port: int, path: str, body: bytes, clients: int, seconds: float) -> list[float]:
    taken: list[list[float]] = [[] for _ in range(clients)]
    ready = threading.Barrier(clients)
    threads = [threading.Thread(target=ask, args=(port, path, body, ready, seconds, own)) for own in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one for own in taken for one in own]


def ask(port: int, path: str, body: bytes, ready: threading.Barrier, seconds: float, taken: list[float]) -> None:
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
        taken.append(time.perf_counter() - begun)
    connection.close()


def save(place: Path) -> Path:
    """A run of albef_tiny as it begins."""
    recipe = find_recipe("albef_tiny")
    words = Tokenizer.train([TEXT], size=200)
    weights = build_task(recipe, words).state_dict()
    save_checkpoint(place / "checkpoints", 1, CheckpointState(weights, {}, {"step": 1}, to_dict(recipe), words.save))
    return place


if __name__ == "__main__":
    main()
