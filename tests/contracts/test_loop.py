"""The training loop on a task of six numbers: what it calls, when it stops, what it writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Timer
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.checkpoints import store
from diptych.data.loader import Loaded
from diptych.data.record import BadRecord
from diptych.data.skips import SkipLedger
from diptych.recipes.albef import albef_tiny
from diptych.recipes.override import override
from diptych.schema import Recipe
from diptych.task import Task
from diptych.train.distributed import World
from diptych.train.guard import StoppedWaiting, StopSignals, reproducible
from diptych.train.log import _drop_after
from diptych.train.loop import Validation, train
from diptych.train.optim import learning_rate
from diptych.train.watch import Watch
from diptych.types import Batch, Losses, Progress, Term, Texts

PER_EPOCH = 4


def recipe(**changes: Any) -> Recipe:
    small = {"run": {"steps": 6, "batch_size": 2, "log_every": 1, "validate_every": 0, "seed": 3}, "optim.lr": 0.01}
    return override(
        albef_tiny(), {**small, "schedule.warmup_steps": 2, **{k.replace("__", "."): v for k, v in changes.items()}}
    )


class Loader:
    """Loads batches of two records, whose pixels depend only on the number of the batch."""

    steps_per_epoch = PER_EPOCH

    def __init__(self, skipped: Iterable[int] = ()) -> None:
        self.ledger = SkipLedger(1.0, 100)
        self.skipped = set(skipped)

    def batches(self, start_step: int) -> Iterator[Loaded]:
        number = start_step
        while True:
            bad = (BadRecord(f"bad{number}", "truncated"),) if number in self.skipped else ()
            self.ledger.note(2, bad)
            yield Loaded(batch(number), (), bad, number // PER_EPOCH)
            number += 1


def batch(number: int) -> Batch:
    pixels = torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(number))
    texts = Texts(torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool))
    return Batch(pixels, texts, torch.arange(2), (f"r{number}a", f"r{number}b"))


class Toy(Task):
    """A task with six weights, a noisy squared loss, and a buffer that counts steps."""

    memory: Tensor

    def __init__(self, poison: int | None = None, where: str = "loss") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2, bias=False)
        self.register_buffer("memory", torch.zeros(()))
        self.calls: list[Any] = []
        self.poison, self.where = poison, where
        self.hook: Callable[[Progress], None] = lambda progress: None

    def before_step(self) -> None:
        self.calls.append("before")

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        self.calls.append(progress.step)
        self.hook(progress)
        out = self.model(batch.pixels.flatten(1)) + 0.1 * torch.rand(2, 2)
        if progress.step == self.poison:
            out = out * float("nan") if self.where == "loss" else (out - out).abs().sqrt()
        count = torch.tensor(2.0)
        return Losses.weighted(
            a=(1.0, Term(out.square().sum(), count)),
            b=(0.5, Term(self.model.weight.abs().sum(), torch.tensor(1.0))),
            measures={"accuracy": Term(torch.tensor(1.0), count)},
            carry=batch.records[0],
        )

    def after_step(self, carry: Any) -> None:
        self.calls.append(carry)
        self.memory += 1


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(checkpoint: Path) -> dict[str, Tensor]:
    return store.load(checkpoint).weights()


def test_a_step_calls_the_task_in_order_and_hands_it_what_it_carries(tmp_path: Path) -> None:
    task = Toy()
    train(task, Loader(), recipe(run__steps=2), tmp_path / "run")
    assert task.calls == ["before", 0, "r0a", "before", 1, "r1a"]


def test_freed_memory_is_returned_every_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Toy()
    monkeypatch.setattr("diptych.train.loop.TRIM_EVERY", 2)
    monkeypatch.setattr("diptych.train.loop.trim", lambda: task.calls.append("trimmed"))
    train(task, Loader(), recipe(run__steps=5), tmp_path / "run")
    after = [task.calls[place - 1] for place, call in enumerate(task.calls) if call == "trimmed"]
    assert after == ["r1a", "r3a"], "after the second and the fourth step"


def test_weights_end_where_a_plain_loop_ends(tmp_path: Path) -> None:
    """The plain loop clips before the step, and takes the schedule's learning rate."""
    changes = {"optim.clip": 0.5, "optim.weight_decay": 0.1}
    config = override(recipe(), changes)
    checkpoint = train(Toy(), Loader(), config, tmp_path / "run")
    plain = Toy()
    optimizer = torch.optim.AdamW([plain.model.weight], lr=1.0, weight_decay=0.1, foreach=False)
    noise = recorded_noise(config)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = learning_rate(step, config.optim.lr, config.schedule, 6, PER_EPOCH)
        out = plain.model(batch(step).pixels.flatten(1)) + 0.1 * noise[step]
        loss = out.square().sum() / 2 + 0.5 * plain.model.weight.abs().sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([plain.model.weight], 0.5)
        optimizer.step()
    torch.testing.assert_close(weights(checkpoint)["model.weight"], plain.model.weight.detach(), atol=1e-6, rtol=1e-6)


def test_a_run_has_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(Toy(), Loader(), recipe(run__steps=2), folder)
    hold = "import sys; from pathlib import Path; from diptych.train.guard import sole_user\n"
    hold += "with sole_user(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=r"another process trains in .*run: wait for it, or stop it"):
            train(Toy(), Loader(), recipe(run__steps=2), folder, resume=True)
        other.kill()
    train(Toy(), Loader(), recipe(run__steps=2), folder, resume=True)


def recorded_noise(config: Recipe) -> dict[int, Tensor]:
    """Returns what `torch.rand` draws in the forward of each step."""
    from diptych.seeds import seed_of

    drawn = {}
    for step in range(6):
        torch.manual_seed(seed_of(config.run.seed, "step", step, 0))
        drawn[step] = torch.rand(2, 2)
    return drawn


def test_random_draws_do_not_depend_on_what_was_drawn_before(tmp_path: Path) -> None:
    first = train(Toy(), Loader(), recipe(), tmp_path / "one")
    torch.manual_seed(99)
    other = train(
        Toy(), Loader(), recipe(), tmp_path / "other", validation=Validation(lambda: {"x": torch.rand(1).item()}, "x")
    )
    assert torch.equal(weights(first)["model.weight"], weights(other)["model.weight"])


def test_metrics_hold_the_means_since_the_line_before(tmp_path: Path) -> None:
    train(Toy(), Loader(), recipe(), tmp_path / "each")
    train(Toy(), Loader(), recipe(run__log_every=3), tmp_path / "third")
    each, third = lines(tmp_path / "each"), lines(tmp_path / "third")
    assert [line["step"] for line in each] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in third] == [3, 6]
    assert [line["pairs"] for line in third] == [6, 12]
    assert third[1]["epoch"] == 6 / PER_EPOCH
    assert third[0]["losses"]["a"] == pytest.approx(sum(line["losses"]["a"] for line in each[:3]) / 3, rel=1e-5)
    assert third[1]["loss"] == pytest.approx(sum(line["loss"] for line in each[3:]) / 3, rel=1e-5)
    assert each[0]["loss"] == pytest.approx(each[0]["losses"]["a"] + 0.5 * each[0]["losses"]["b"])
    assert each[0]["measures"] == {"accuracy": 0.5}
    config = recipe()
    rates = [learning_rate(step, config.optim.lr, config.schedule, 6, PER_EPOCH) for step in range(6)]
    assert [line["lr"] for line in each] == pytest.approx(rates)
    assert all(line["pairs_per_second"] > 0 and line["gradient_norm"] > 0 for line in each)
    assert [line["seconds"] for line in each] == sorted(line["seconds"] for line in each)


@pytest.mark.parametrize(("where", "what"), [("loss", "loss"), ("gradient", "gradient's norm")])
def test_what_is_not_finite_stops_before_the_weights_and_names_the_records(
    tmp_path: Path, where: str, what: str
) -> None:
    task = Toy(poison=3, where=where)
    with pytest.raises(ValueError, match=rf"at step 4: the {what} is nan; .* those of step 3\..*Records: r3a, r3b"):
        train(task, Loader(), recipe(), tmp_path / "run")
    three = train(Toy(), Loader(), recipe(run__steps=3, schedule__min_lr=0.01), tmp_path / "three")
    assert not torch.isnan(task.model.weight).any()
    assert store.load(three).state["step"] == 3


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    tmp_path: Path, number: int, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = train(Toy(), Loader(), recipe(), tmp_path / "whole")
    task, folder = Toy(), tmp_path / "run"
    task.hook = lambda progress: os.kill(os.getpid(), number) if progress.step == 2 else None
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        train(task, Loader(), recipe(), folder)
    assert stop.value.code == status
    assert signal.getsignal(number) is before
    said = capfd.readouterr().err
    assert f"{signal.Signals(number).name}: the run stops once this step is done" in said
    assert f"step 3 is saved. Go on with: diptych resume {folder}" in said
    assert store.latest(folder / "checkpoints") == folder / "checkpoints" / "step-00000003"
    resumed = train(Toy(), Loader(), recipe(), folder, resume=True)
    assert all(torch.equal(weights(whole)[name], value) for name, value in weights(resumed).items())
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4, 5, 6]


class Late(Loader):
    """Loads the batches up to `last`, and then hangs, as storage that has gone away makes a loader hang."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def batches(self, start_step: int) -> Iterator[Loaded]:
        for number, loaded in enumerate(super().batches(start_step), start_step):
            if number > self.last:
                Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
                time.sleep(60)
            yield loaded


@pytest.mark.parametrize(("last", "saved"), [(3, "step 4 is saved"), (1, "step 2 is saved"), (-1, "no step was done")])
def test_a_signal_while_data_is_waited_for_saves_the_steps_done(
    tmp_path: Path, last: int, saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(Toy(), Loader(), recipe(), tmp_path / "whole")
    folder, config = tmp_path / "run", recipe(run__checkpoint_every=2)
    with pytest.raises(SystemExit) as stop:
        train(Toy(), Late(last), config, folder)
    assert stop.value.code == 143
    said = capsys.readouterr().err
    assert f"SIGTERM while waiting for the data of step {last + 2}: {saved}" in said
    assert f"Go on with: diptych resume {folder}" in said
    resumed = train(Toy(), Loader(), config, folder, resume=True)
    assert all(torch.equal(weights(whole)[name], value) for name, value in weights(resumed).items())


def test_among_several_processes_a_batch_has_some_time_to_arrive_after_a_signal() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with stop.breaking_off(grace=60.0):
            pass
        began = time.monotonic()
        with pytest.raises(StoppedWaiting), stop.breaking_off(grace=0.3):
            time.sleep(60)
        assert 0.3 <= time.monotonic() - began < 30


def judged(monkeypatch: pytest.MonkeyPatch, watch: Watch, step: int = 3) -> int:
    """Waits for the data of a step for ever, and returns the status with which the watch ends the process."""
    statuses = SimpleQueue[int]()

    def leave(status: int) -> None:
        statuses.put(status)
        watch.ended.set()

    monkeypatch.setattr("diptych.train.watch.os._exit", leave)
    watch.awaits_data(step)
    return statuses.get(timeout=60)


def test_a_process_alone_whose_data_does_not_come_is_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judged(monkeypatch, Watch(World(), 0.4)) == 75
    assert "no batch for 0 s (run.timeout), in step 3: the data does not come. Look at its" in capsys.readouterr().err


def test_a_checkpoint_that_is_never_written_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Watch(World(), 0.3)
    with watch.saving(4):
        assert judged(monkeypatch, watch, step=0) == 75
    assert "no checkpoint for 1 s (twice run.timeout), in step 4: it is still being written" in capsys.readouterr().err


def test_a_signal_that_the_main_thread_cannot_answer_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diptych.train.watch.STOP_SECONDS", 0.1)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert judged(monkeypatch, Watch(World(), 600.0, stop)) == 143
    assert "SIGTERM, and no end of the wait for 0 s, in step 3: the data does not come" in capsys.readouterr().err


def test_a_second_signal_stops_at_once() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.caught is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def measures(values: Iterable[float]) -> Callable[[], Mapping[str, float]]:
    remaining = iter(values)
    return lambda: {"recall": next(remaining)}


def test_the_best_checkpoint_is_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    config = recipe(
        run__steps=40, run__validate_every=2, run__patience=3, run__checkpoint_every=1, run__keep_checkpoints=2
    )
    validation = Validation(measures([0.1, 0.5, 0.4, 0.5, 0.3, 9.0]), "recall")
    last = train(Toy(), Loader(), config, tmp_path / "run", validation=validation)
    assert last.name == "step-00000010"
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000009", "step-00000010"]
    assert store.best(tmp_path / "run" / "checkpoints") == tmp_path / "run" / "checkpoints" / "step-00000004"
    validated = [(line["step"], line["validation"]) for line in lines(tmp_path / "run") if "validation" in line]
    assert validated == [
        (2, {"recall": 0.1}),
        (4, {"recall": 0.5}),
        (6, {"recall": 0.4}),
        (8, {"recall": 0.5}),
        (10, {"recall": 0.3}),
    ]
    again = train(Toy(), Loader(), config, tmp_path / "run", validation=validation, resume=True)
    assert again == last, "a run out of patience stays ended"


def test_a_validation_that_fails_ends_the_run_after_its_training_is_saved(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Mapping[str, float]:
        raise RuntimeError("no memory left")

    config = recipe(run__steps=6, run__validate_every=4, run__checkpoint_every=100)
    with pytest.raises(RuntimeError, match="no memory left"):
        train(Toy(), Loader(), config, tmp_path / "run", validation=Validation(broken, "recall"))
    assert "the validation of step 4 failed; the training up to this step is saved" in capfd.readouterr().err
    (kept,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert kept.name == "step-00000004"
    whole = Validation(lambda: {"recall": 0.5, "chance": 0.25}, "recall")
    assert train(Toy(), Loader(), config, tmp_path / "run", validation=whole, resume=True).name == "step-00000006"
    assert "step 6: recall 0.5 (guessing gets 0.25), the best so far" in capfd.readouterr().err


def test_the_end_is_validated_and_the_task_is_in_evaluation_mode_meanwhile(tmp_path: Path) -> None:
    task, modes = Toy(), []
    task.hook = lambda progress: modes.append(task.training)
    validation = Validation(lambda: {"recall": float(modes.append(task.training) or torch.is_grad_enabled())}, "recall")
    train(task, Loader(), recipe(run__steps=3, run__validate_every=2), tmp_path / "run", validation=validation)
    assert modes == [True, True, False, True, False]
    assert [line["validation"] for line in lines(tmp_path / "run") if "validation" in line] == [{"recall": 0.0}] * 2


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    train(Toy(), Loader(), recipe(), tmp_path / "run")
    with pytest.raises(ValueError, match="already holds a run: go on with `diptych resume"):
        train(Toy(), Loader(), recipe(), tmp_path / "run")
    with pytest.raises(ValueError, match="holds no run to resume"):
        train(Toy(), Loader(), recipe(), tmp_path / "other", resume=True)
    with pytest.raises(ValueError, match=r"another recipe; resuming cannot change data\.flip, optim\.lr"):
        train(Toy(), Loader(), recipe(optim__lr=0.5, data__flip=0.1), tmp_path / "run", resume=True)


def test_a_run_begun_before_a_field_was_there_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(Toy(), Loader(), recipe(), folder)
    stored = json.loads((folder / "recipe.json").read_text())
    del stored["data"]["blank_images"]
    (folder / "recipe.json").write_text(json.dumps(stored))
    assert train(Toy(), Loader(), recipe(), folder, resume=True).parent == folder / "checkpoints"
    with pytest.raises(ValueError, match=r"resuming cannot change data\.blank_images"):
        train(Toy(), Loader(), recipe(data__blank_images=True), folder, resume=True)


def test_lines_after_the_checkpoint_and_a_line_cut_short_are_dropped_on_resuming(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    task = Toy(poison=5)
    with pytest.raises(ValueError, match="is nan"):
        train(task, Loader(), recipe(run__checkpoint_every=3), folder)
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4, 5]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    train(Toy(), Loader(), recipe(run__checkpoint_every=3), folder, resume=True)
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4, 5, 6]


def test_resuming_removes_what_a_killed_pruning_left_even_where_nothing_more_is_saved(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(Toy(), Loader(), recipe(run__checkpoint_every=2, run__keep_checkpoints=1), folder)
    kept = sorted((folder / "checkpoints").iterdir())
    shutil.copytree(kept[-1], folder / "checkpoints" / "step-00000002")
    shutil.copytree(kept[-1], folder / "checkpoints" / ".unfinished-step-00000004")
    train(Toy(), Loader(), recipe(run__checkpoint_every=2, run__keep_checkpoints=1), folder, resume=True)
    assert sorted((folder / "checkpoints").iterdir()) == kept


def test_what_was_skipped_is_remembered_over_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Toy(poison=4)
    with pytest.raises(ValueError, match="is nan"):
        train(task, Loader(skipped=[1]), recipe(run__checkpoint_every=2), tmp_path / "run")
    loader = Loader(skipped=[5])
    train(Toy(), loader, recipe(run__checkpoint_every=2), tmp_path / "run", resume=True)
    assert sorted(loader.ledger.bad) == ["bad1", "bad5"]
    assert loader.ledger.seen == 12
    assert "6 steps, 2 of 100 records skipped: 2 × truncated" in capsys.readouterr().err


def test_a_checkpoint_is_written_while_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one waits until the step after it has begun, and holds the bits of its own step."""
    began, save = Event(), store.save_checkpoint

    def waiting(*arguments: Any) -> Path:
        assert began.wait(60), "training waits for the checkpoint"
        return save(*arguments)

    every = {"run__checkpoint_every": 2, "run__keep_checkpoints": 3}
    train(Toy(), Loader(), recipe(**every), tmp_path / "plain")
    monkeypatch.setattr(store, "save_checkpoint", waiting)
    task = Toy()
    task.hook = lambda progress: began.set() if progress.step == 2 else None
    train(task, Loader(), recipe(run__checkpoint_async=True, **every), tmp_path / "run")
    for name in ("step-00000002", "step-00000004", "step-00000006"):
        ours, plain = (weights(tmp_path / run / "checkpoints" / name) for run in ("run", "plain"))
        assert all(torch.equal(ours[key], value) for key, value in plain.items())


def test_a_checkpoint_says_what_made_it(tmp_path: Path) -> None:
    checkpoint = store.load(train(Toy(), Loader(), recipe(), tmp_path / "run", save_tokenizer=lambda folder: None))
    assert set(checkpoint.state["versions"]) == {"diptych", "torch", "python"}
    assert checkpoint.recipe == json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert checkpoint.weights()["memory"] == 6
    assert checkpoint.tokenizer.is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run__steps": 0}, "run.steps must be at least 1"),
        (
            {"run__log_every": 0, "run__keep_checkpoints": 0},
            "run.log_every and run.keep_checkpoints must be at least 1",
        ),
    ],
)
def test_impossible_plans_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(Toy(), Loader(), recipe(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_epochs_count_where_no_steps_are_given(tmp_path: Path) -> None:
    last = train(Toy(), Loader(), recipe(run__steps=None, run__epochs=2), tmp_path / "run")
    assert store.load(last).state["epoch"] == 2.0
    assert store.load(last).state["step"] == 2 * PER_EPOCH


def test_bf16_multiplies_in_bfloat16_and_keeps_weights_in_fp32(tmp_path: Path) -> None:
    dtypes: list[torch.dtype] = []
    task = Toy()
    task.hook = lambda progress: dtypes.append(task.model(torch.ones(1, 3)).dtype)
    checkpoint = train(task, Loader(), recipe(run__precision="bf16"), tmp_path / "run")
    assert set(dtypes) == {torch.bfloat16}
    stored = store.load(checkpoint)
    assert {value.dtype for value in {**stored.weights(), **stored.optimizer()}.values()} == {torch.float32}


def test_two_threads_give_the_same_gradient_every_time() -> None:
    """Without `reproducible`, this gradient changes from run to run with the order in which threads add it up."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 64, generator=generator, requires_grad=True)
    index = torch.randint(0, 50, (40_000,), generator=generator)
    factor = torch.randn(40_000, 64, generator=generator)

    def gradient() -> Tensor:
        return torch.autograd.grad((table[index] * factor).sum(), table)[0]

    threads = torch.get_num_threads()
    with reproducible(threads=2):
        assert torch.get_num_threads() == 2
        first = gradient()
        assert all(torch.equal(first, gradient()) for _ in range(10))
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_changed_seed_changes_the_run_and_the_same_one_does_not(tmp_path: Path) -> None:
    first = weights(train(Toy(), Loader(), recipe(), tmp_path / "1"))["model.weight"]
    same = weights(train(Toy(), Loader(), recipe(), tmp_path / "2"))["model.weight"]
    config = recipe()
    other = weights(train(Toy(), Loader(), replace(config, run=replace(config.run, seed=4)), tmp_path / "3"))[
        "model.weight"
    ]
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_damaged_line_of_the_log_ends_no_training_that_is_resumed(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    damaged = [b"\xff\xfe", b"[" * 100_000, b"{}", b'{"step": "x"}', b"null", b'{"step": 1' + b"0" * 5000 + b"}"]
    whole = [b'{"step": 1}', *damaged, b'{"step": 2}']
    log.write_bytes(b"\n".join([*whole, b'{"step": 3}', b'{"step": 4}', b'{"st']))
    _drop_after(log, 2)
    assert log.read_bytes() == b"".join(line + b"\n" for line in whole)
