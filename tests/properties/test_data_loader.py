"""Tests that the loader is exact from any step, reports what it skipped, and leaves signals to the main process."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.dataset import PairDataset
from diptych.data.loader import Loaded, PairLoader, evaluation_items
from diptych.data.order import epoch_order
from diptych.data.pool import PoolError, receive, send
from diptych.data.record import BadRecord, Entailment, Record
from diptych.data.skips import SkipLedger
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import TrainTransform
from diptych.data.workers import each_in_parallel, small_shared_memory
from diptych.schema import DataConfig
from tests.disk import full_disk

SIZE = 16
CONFIG = DataConfig(workers=0, bad_share=0.5)
TOKENIZER = Tokenizer.train(["a red fox", "the blue car left of a tree", "number one two three"], 200)


@dataclass(frozen=True)
class MadeSource:
    """Serves pictures of noise with two captions each. Pictures in `broken` cannot be read."""

    count: int
    broken: frozenset[int] = frozenset()
    skipped: tuple[BadRecord, ...] = ()
    captions: tuple[str, ...] = ("a red fox", "the blue car")

    def __len__(self) -> int:
        return self.count

    def record(self, index: int) -> Record:
        return Record(f"r{index}", index, self.captions, f"picture {index // 2}")

    def picture(self, record: Record) -> Image.Image:
        if record.image in self.broken:
            raise BadRecord(record.id, "picture truncated", f"{record.image}.jpg")
        values = np.random.default_rng(record.image).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        return Image.fromarray(values)


def loader(source: MadeSource, config: DataConfig = CONFIG, batch: int = 4, seed: int = 3) -> PairLoader:
    return PairLoader(source, TOKENIZER, config, SIZE, batch, seed)


def take(pairs: PairLoader, count: int, start: int = 0) -> list[Loaded]:
    batches = pairs.batches(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()  # type: ignore[attr-defined]


def same(first: Loaded, second: Loaded) -> bool:
    tensors = [
        (first.batch.pixels, second.batch.pixels),
        (first.batch.texts.input_ids, second.batch.texts.input_ids),
        (first.batch.texts.attention_mask, second.batch.texts.attention_mask),
        (first.batch.image_ids, second.batch.image_ids),
    ]
    return (
        all(torch.equal(a, b) for a, b in tensors) and first.records == second.records and first.epoch == second.epoch
    )


@dataclass(frozen=True)
class ToldSource(MadeSource):
    """Serves hypotheses about pictures of noise, of which picture 0 has seven and every other three."""

    def record(self, index: int) -> Any:
        image = max(0, index - 4) // 3
        side = " to the left" if index % 2 else ""
        return Entailment(f"r{index}", image, f"number {index}{side}", "neutral", f"picture {image}")

    def pictures(self, record: Any) -> tuple[Image.Image, ...]:
        return (self.picture(record),)


# --------------------------------------------------------------------------- order and exactness


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_from_any_step_on_are_those_of_the_whole_run(workers: int) -> None:
    source = MadeSource(18, broken=frozenset({5}))
    whole = take(loader(source), 12)
    config = DataConfig(workers=workers, bad_share=0.5)
    for start in (0, 3, 4, 7):  # an epoch has 4 steps
        for late, early in zip(take(loader(source, config), 5, start), whole[start:], strict=False):
            assert same(late, early)


@pytest.mark.parametrize("size", [2, 4])
def test_processes_share_the_batches_of_one(size: int) -> None:
    source = MadeSource(18, broken=frozenset({5}))
    whole = take(loader(source, batch=8), 5)
    parts = [take(PairLoader(source, TOKENIZER, CONFIG, SIZE, 8, 3, rank=rank, size=size), 5) for rank in range(size)]
    for step, loaded in enumerate(whole):
        assert loaded.records == tuple(record for part in parts for record in part[step].records)
        assert torch.equal(loaded.batch.pixels, torch.cat([part[step].batch.pixels for part in parts]))
    with pytest.raises(ValueError, match=r"run\.batch_size is 8: it must be a multiple of the number of processes"):
        PairLoader(source, TOKENIZER, CONFIG, SIZE, 8, 3, rank=0, size=3)


def test_a_ledger_counts_each_process_own_records_and_a_lost_file_by_what_it_held() -> None:
    source = MadeSource(16, broken=frozenset({5}))
    parts = [PairLoader(source, TOKENIZER, CONFIG, SIZE, 4, 3, rank=rank, size=2) for rank in (0, 1)]
    for part in parts:
        take(part, 4)
    assert [part.ledger.seen for part in parts] == [8, 8]
    assert sorted(part.ledger.count for part in parts) == [0, 1]
    ledger = SkipLedger(0.5, 100, [BadRecord("00000.tar", "shard missing", count=40)])
    ledger.check()
    ledger.note(20, [BadRecord(f"r{number}", "picture broken") for number in range(11)])
    with pytest.raises(ValueError, match="51 of 100 records could not be used, more than the 50"):
        ledger.check()
    assert "51 of 100 records skipped: 40 × shard missing, 11 × picture broken" in ledger.summary()


@pytest.mark.parametrize("together", [2, 3, 5])
def test_texts_about_an_image_stand_together_and_share_one_view(together: int) -> None:
    source = ToldSource(31)
    config = DataConfig(workers=0, texts_per_image=together)
    epochs = [[record for loaded in take(loader(source, config, 31), 3, epoch) for record in loaded.records][:31]
              for epoch in range(2)]  # fmt: skip
    for records in epochs:
        assert sorted(record.id for record in records) == sorted(f"r{index}" for index in range(31))
        runs = [len(list(run)) for _, run in itertools.groupby(record.image_id for record in records)]
        expected = 8 * -(-3 // together) + -(-7 // together)  # groups, of which two of one image may touch
        assert expected - 8 <= len(runs) <= expected
    assert epochs[0] != epochs[1]

    (loaded,) = take(loader(source, config, 31), 1)
    assert loaded.batch.repeats is not None
    rows, image_of = loaded.batch.repeats.rows, loaded.batch.repeats.image_of
    assert torch.equal(loaded.batch.pixels[rows][image_of], loaded.batch.pixels)
    # A picture has at most two views in an epoch: one for the texts that tell of sides, which is never flipped.
    views = {(record.image_id, "left" in record.hypothesis) for record in loaded.records}
    assert len(rows) == len(views)
    dataset = PairDataset(source, TrainTransform(config, SIZE), TOKENIZER, config, 3)
    for row, (epoch, index) in enumerate(next(loader(source, config, 31).keys())):
        assert torch.equal(dataset[epoch, index].pixels, loaded.batch.pixels[row])  # type: ignore[arg-type]


def test_without_flips_all_texts_about_an_image_share_its_view() -> None:
    (loaded,) = take(loader(ToldSource(31), DataConfig(workers=0, texts_per_image=31, flip=0.0), 31), 1)
    assert len(loaded.batch.repeats.rows) == 9


def test_grouped_texts_are_the_same_from_any_step_on_and_in_any_number_of_processes() -> None:
    source, config = ToldSource(31), DataConfig(workers=0, texts_per_image=3)
    whole = take(loader(source, config, 6), 12)
    for late, early in zip(take(loader(source, config, 6), 5, 7), whole[7:], strict=True):
        assert same(late, early)
    parts = [take(PairLoader(source, TOKENIZER, config, SIZE, 6, 3, rank=rank, size=2), 12) for rank in range(2)]
    for step, loaded in enumerate(whole):
        assert torch.equal(loaded.batch.pixels, torch.cat([part[step].batch.pixels for part in parts]))


def test_only_questions_and_hypotheses_in_any_order_are_grouped() -> None:
    with pytest.raises(ValueError, match=r"data\.texts_per_image=2 groups questions or hypotheses, and these are"):
        loader(MadeSource(18), DataConfig(workers=0, texts_per_image=2))
    with pytest.raises(ValueError, match=r"data\.texts_per_image is 0: it must be at least 1"):
        loader(ToldSource(18), DataConfig(workers=0, texts_per_image=0))


def test_an_epoch_shows_every_record_once_and_drops_what_fills_no_batch() -> None:
    pairs = loader(MadeSource(18))
    assert pairs.steps_per_epoch == 4
    for epoch in (0, 1):
        batches = take(pairs, 4, start=4 * epoch)
        assert {loaded.epoch for loaded in batches} == {epoch}
        seen = [record.id for loaded in batches for record in loaded.records]
        assert len(seen) == len(set(seen)) == 16


def test_orders_differ_between_epochs_and_between_seeds() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_an_item_is_a_function_of_seed_epoch_and_index() -> None:
    def dataset(seed: int) -> PairDataset:
        return PairDataset(MadeSource(9), TrainTransform(CONFIG, SIZE), TOKENIZER, CONFIG, seed)

    item = dataset(1)[0, 5]
    again = dataset(1)[0, 5]
    assert torch.equal(item.pixels, again.pixels)
    assert item.input_ids == again.input_ids
    for other in (dataset(1)[1, 5], dataset(1)[0, 6], dataset(2)[0, 5]):
        assert not torch.equal(item.pixels, other.pixels)


def test_every_caption_of_a_record_is_shown_in_time_as_clean_text() -> None:
    source = MadeSource(4, captions=("A red fox!", "The blue CAR."))
    dataset = PairDataset(source, TrainTransform(CONFIG, SIZE), TOKENIZER, CONFIG, 0)
    counts = Counter(TOKENIZER.decode(dataset[epoch, 0].input_ids) for epoch in range(60))
    assert set(counts) == {"a red fox", "the blue car"}
    assert min(counts.values()) > 15


def test_the_direction_is_sought_in_the_caption_shown() -> None:
    """A record may have a caption that says left and one that does not. The picture is flipped only with the latter."""
    source = MadeSource(1, captions=("the fox left of a tree", "a red fox"))
    config = DataConfig(workers=0, crop=(1.0, 1.0), randaugment=(0, 0))
    dataset = PairDataset(source, TrainTransform(config, SIZE), TOKENIZER, config, 0)
    views: dict[str, set[bytes]] = {}
    for epoch in range(60):
        item = dataset[epoch, 0]
        views.setdefault(TOKENIZER.decode(item.input_ids), set()).add(item.pixels.sum(1).numpy().tobytes())
    assert len(views["the fox left of a tree"]) < len(views["a red fox"])


def test_texts_are_cut_to_the_configured_tokens() -> None:
    config = DataConfig(workers=0, max_tokens=3)
    batch = take(loader(MadeSource(4, captions=("a red fox the blue car",)), config), 1)[0].batch
    assert batch.texts.input_ids.shape == (4, 3)
    assert batch.texts.attention_mask.all()


def test_loading_leaves_the_global_random_numbers_alone() -> None:
    for workers in (0, 1):
        before = torch.get_rng_state()
        take(loader(MadeSource(8), DataConfig(workers=workers)), 2)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_split_smaller_than_a_batch_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"3 records, fewer than one batch of 4: lower run\.batch_size"):
        loader(MadeSource(3))


# --------------------------------------------------------------------------- bad records


def test_a_bad_record_shrinks_its_batch_and_is_named() -> None:
    pairs = loader(MadeSource(16, broken=frozenset({5})))
    batches = take(pairs, 4)
    assert sorted(len(loaded.batch) for loaded in batches) == [3, 4, 4, 4]
    (short,) = [loaded for loaded in batches if loaded.skipped]
    assert [(error.record, error.reason) for error in short.skipped] == [("r5", "picture truncated")]
    assert "r5" not in short.batch.records
    assert short.batch.records == tuple(record.id for record in short.records)
    assert pairs.ledger.summary() == "1 of 16 records skipped: 1 × picture truncated\n  r5: picture truncated (5.jpg)"
    assert pairs.ledger.seen == 16


def test_a_caption_of_punctuation_only_is_a_bad_record() -> None:
    dataset = PairDataset(MadeSource(1, captions=("!?",)), TrainTransform(CONFIG, SIZE), TOKENIZER, CONFIG, 0)
    with pytest.raises(BadRecord, match="r0: caption empty"):
        dataset[0, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_stops_when_more_is_bad_than_tolerated_and_names_the_records(workers: int) -> None:
    source = MadeSource(200, broken=frozenset(range(0, 24, 2)))
    pairs = loader(source, DataConfig(workers=workers, bad_share=0.02), batch=8)
    with pytest.raises(ValueError, match=r"11 of 200 records .* 10 that data\.bad_share=0\.02 allows") as stopped:
        take(pairs, 100)
    message = str(stopped.value)
    assert message.count("picture truncated") == 10
    assert "and 1 more" in message
    assert "raise data.bad_share" in message


def test_a_record_met_in_every_epoch_counts_once() -> None:
    pairs = loader(MadeSource(20, broken=frozenset({1, 2})), DataConfig(workers=0, bad_share=0.1))
    take(pairs, 30)
    assert len(pairs.ledger.bad) == 2


def test_a_batch_without_any_readable_record_stops_with_its_names() -> None:
    source = MadeSource(8, broken=frozenset(range(8)))
    with pytest.raises(ValueError, match="no record of a batch could be read") as stopped:
        take(loader(source, DataConfig(workers=0, bad_share=1.0)), 1)
    assert str(stopped.value).count("picture truncated") == 4


def test_what_was_skipped_at_opening_counts_too() -> None:
    lost = tuple(BadRecord(f"list:{line}", "line is not JSON") for line in range(15))
    pairs = loader(MadeSource(85, skipped=lost), DataConfig(workers=0, bad_share=0.1))
    with pytest.raises(ValueError, match="15 of 100 records"):
        take(pairs, 1)


@pytest.mark.parametrize(
    ("share", "total", "allowed"),
    [(0.01, 100_000, 1000), (0.01, 2000, 20), (0.01, 100, 10), (0.01, 20, 5), (0.01, 3, 0), (0.0, 100, 0)],
)
def test_a_small_source_is_allowed_a_few_and_a_share_of_zero_none(share: float, total: int, allowed: int) -> None:
    ledger = SkipLedger(share, total)
    assert ledger.allowed == allowed
    errors = [BadRecord(f"r{n}", "picture missing") for n in range(allowed + 1)]
    ledger.note(allowed, errors[:allowed])
    ledger.check()
    ledger.note(1, errors[allowed:])
    with pytest.raises(ValueError, match=f"{allowed + 1} of {total} records"):
        ledger.check()


# --------------------------------------------------------------------------- workers


def _workers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def test_workers_outlive_the_signals_that_the_training_process_answers() -> None:
    """Ctrl-C and a first SIGTERM reach the whole process group, but the batch under way must still arrive."""
    before = set(_workers())
    pairs = loader(MadeSource(16), DataConfig(workers=1))
    batches = pairs.batches()
    received = [next(batches)]
    (worker,) = set(_workers()) - before
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        os.kill(worker, number)
        received += itertools.islice(batches, 8)
    assert all(same(ours, theirs) for ours, theirs in zip(received, take(loader(MadeSource(16)), 25), strict=True))
    batches.close()  # type: ignore[attr-defined]


def test_a_dataset_sent_to_another_process_makes_the_same_samples() -> None:
    """Workers get the dataset pickled where processes cannot be forked."""
    dataset = loader(MadeSource(6)).dataset
    again = pickle.loads(pickle.dumps(dataset))
    for key in ((0, 1), (4, 5)):
        assert torch.equal(again[key].pixels, dataset[key].pixels)
        assert again[key].input_ids == dataset[key].input_ids


@pytest.mark.parametrize("moment", ["while they wait for jobs", "while they hand over"])
def test_workers_end_with_a_training_process_that_is_killed(moment: str) -> None:
    """Each worker holds the trainer's ends of its siblings' pipes, so that a closed pipe alone would not tell them."""
    size = 16 if moment == "while they wait for jobs" else 700  # pixels of 6 MB, which no pipe holds
    script = f"""
from tests.properties.test_data_loader import *
pairs = PairLoader(MadeSource(16), TOKENIZER, DataConfig(workers=2, randaugment=(0, 0)), {size}, 1, 3)
batches = pairs.batches()
next(batches)
print(*(one.pid for one in multiprocessing.active_children()), flush=True)
time.sleep(0.2)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=os.environ | {"PYTHONPATH": root}, timeout=60,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL
    workers = [Path(f"/proc/{number}") for number in ended.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(place.exists() for place in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(place.exists() for place in workers)


def test_workers_hand_batches_over_where_there_is_no_shared_memory() -> None:
    source, config = MadeSource(16), DataConfig(workers=2)
    with full_disk(at=4096):  # a batch has 12 kB; workers inherit the limit
        batches = take(loader(source, config), 3)
    assert all(same(ours, theirs) for ours, theirs in zip(batches, take(loader(source), 3), strict=True))


def test_a_message_keeps_the_types_and_bits_of_its_tensors() -> None:
    reading, writing = get_context("fork").Pipe(duplex=False)
    values = [
        torch.randn(3, 5), torch.randn(4, 6).t(), torch.tensor(7), torch.empty(0, 3), torch.randn(2, 3) > 0,
        torch.arange(5)[::2],
    ]  # fmt: skip
    send(writing, {"batch": values, "records": ("a", 1)})
    writing.close()
    received = receive(reading)
    assert received["records"] == ("a", 1)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(received["batch"], values, strict=True))
    assert [value.dtype for value in received["batch"]] == [value.dtype for value in values]
    received["batch"][0] += 1  # it is memory of its own, which may be written to
    with pytest.raises(EOFError):
        receive(reading)


def _waiting(**options: Any) -> tuple[Any, int]:
    """Returns batches of which one has come and no further is under way, and the worker that makes them."""
    before = set(_workers())
    pairs = PairLoader(MadeSource(16), TOKENIZER, DataConfig(workers=1), SIZE, 4, 3, **options)
    batches = pairs.batches()
    next(batches)
    (worker,) = set(_workers()) - before
    return batches, worker


def test_a_worker_that_hands_nothing_over_is_named_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, worker = _waiting(timeout=1.0)
    os.kill(worker, signal.SIGSTOP)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=64 << 10))
    with pytest.raises(PoolError) as error:
        list(itertools.islice(batches, 8))  # two may have been on their way
    message = str(error.value)
    assert message.startswith(f"no batch for 1 s (run.timeout): worker 0 of the loader (process {worker}) is stopped")
    assert "data.workers=0" in message
    assert "/dev/shm has 64 kB free; a container gets more by --shm-size=1g" in message


def test_jobs_are_done_where_shared_memory_has_no_room_for_locks(capsys: pytest.CaptureFixture[str]) -> None:
    with full_disk():
        assert list(each_in_parallel(abs, [-1, -2, -3], 2)) == [1, 2, 3]
    assert "one process works instead of 2" in capsys.readouterr().err


def test_where_shared_memory_is_plenty_messages_do_not_mention_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1 << 30))
    assert small_shared_memory() == ""


def test_a_worker_that_is_killed_is_told_at_once() -> None:
    batches, worker = _waiting()
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(PoolError, match=r"worker 0 .* was ended by SIGKILL, perhaps for want of memory: lower data\.w"):
        list(itertools.islice(batches, 8))


class Unreadable(Exception):
    """Cannot be pickled, because its arguments are not those of its message."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


@dataclass(frozen=True)
class FailingSource(MadeSource):
    """Serves pictures whose file system is gone."""

    error: Exception | None = None

    def picture(self, record: Record) -> Image.Image:
        assert self.error
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(5, "Input/output error", "r0.jpg"), OSError, r"Input/output error: 'r0.jpg'"),
        (Unreadable(1, 2), RuntimeError, "Unreadable: 1 and 2"),
    ],
)
def test_the_error_of_a_worker_is_raised_in_the_training_process(
    error: Exception, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as raised:
        take(loader(FailingSource(16, error=error), DataConfig(workers=1)), 1)
    if kind is OSError:
        assert "in picture" in raised.value.__notes__[0]


def test_closing_the_batches_ends_the_workers() -> None:
    before = set(_workers())
    batches = loader(MadeSource(16), DataConfig(workers=2)).batches()
    next(batches)
    assert len(set(_workers()) - before) == 2
    batches.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while set(_workers()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(_workers()) - before


# --------------------------------------------------------------------------- evaluation


def test_evaluation_goes_through_the_split_in_order_up_to_its_limit() -> None:
    source = MadeSource(7)
    assert [item.record.id for item in evaluation_items(source, CONFIG, SIZE)] == [f"r{n}" for n in range(7)]
    items = list(evaluation_items(source, CONFIG, SIZE, limit=3))
    assert len(items) == 3
    assert [view.shape for view in items[0].views] == [(3, SIZE, SIZE)]
    assert len(list(evaluation_items(source, CONFIG, SIZE, limit=99))) == 7


def test_evaluation_tolerates_no_bad_record_and_names_them_all() -> None:
    items = evaluation_items(MadeSource(9, broken=frozenset({2, 5, 8})), CONFIG, SIZE)
    with pytest.raises(ValueError, match="3 of 9 evaluation records cannot be read") as stopped:
        list(items)
    assert all(name in str(stopped.value) for name in ("r2", "r5", "r8"))


def test_a_script_ends_though_its_workers_live() -> None:
    """They leave the first SIGTERM to the training process, and Python sends them no second one."""
    script = "from tests.properties.test_data_loader import *\n"
    script += "batches = loader(MadeSource(16), DataConfig(workers=1)).batches()\nprint(len(next(batches).records))"
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=os.environ | {"PYTHONPATH": root}, timeout=60,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "4\n", "")


def _fail_while_workers_live() -> None:
    batches = loader(MadeSource(16), DataConfig(workers=1)).batches()
    next(batches)
    raise ValueError(batches)  # the traceback keeps them


def test_a_process_that_multiprocessing_started_ends_though_its_workers_live() -> None:
    """An ablation runs in such processes, and would otherwise wait for ever for a run that had failed."""
    process = get_context("spawn").Process(target=_fail_while_workers_live)
    process.start()
    process.join(60)
    ended = process.exitcode
    process.kill()
    assert ended == 1
