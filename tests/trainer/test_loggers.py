"""Logs as their programs read them: pandas, and TensorBoard's own reader."""

import itertools
import math
import sys
from pathlib import Path

import pandas
import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import checkpoint, csv_table, loggers, metrics
from support.cli import QUICK, call

pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

B = 32


class Steps(noprop.Callback):
    """Keeps the losses of all blocks and of the head, by the number of the step."""

    def __init__(self) -> None:
        self.blocks, self.head = {}, {}

    def on_step(self, steps: noprop.Steps) -> None:
        for told, losses in ((self.blocks, steps.loss), (self.head, steps.head_loss)):
            if losses is not None:
                told.update(zip(steps.numbers, losses.tolist(), strict=True))


@pytest.fixture
def seconds_pass(monkeypatch):
    """TensorBoard orders its files by the second in their names: here each has another."""
    clock = itertools.count(1_000_000_000)
    monkeypatch.setattr(event_file_writer.time, "time", lambda: float(next(clock)))
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)  # calls of one step


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each tag of a run of TensorBoard's."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_csv_has_every_step_and_epoch(tmp_path, toy, new_model):
    told, epochs = Steps(), []
    with loggers.CsvLogger(tmp_path / "logs") as logger:
        options = {"callbacks": [told, logger], "on_epoch": epochs.append}
        noprop.fit(new_model(), *toy, epochs=2, batch_size=B, lr_schedule="cosine", **options)
    blocks = pandas.read_csv(tmp_path / "logs" / "blocks.csv")
    assert [*blocks.columns] == ["step", "epoch", "replica", "lr", "loss_1", "loss_2", "loss_3"]
    assert blocks.step.tolist() == [*range(5), *range(20, 25)] == [*told.blocks]
    assert blocks.epoch.tolist() == [1] * 5 + [2] * 5
    assert blocks.filter(like="loss").values.tolist() == [row[0] for row in told.blocks.values()]
    assert blocks.lr.iloc[-1] == epochs[-1].lr
    head = pandas.read_csv(tmp_path / "logs" / "head.csv")
    assert head.step.tolist() == [*range(5, 20), *range(25, 40)]
    assert head.loss.tolist() == [row[0] for row in told.head.values()]
    table = pandas.read_csv(tmp_path / "logs" / "epochs.csv")
    assert table.epoch.tolist() == [1, 2] and table.head_loss.tolist() == [
        epoch.head_loss for epoch in epochs
    ]
    assert table[["loss_1", "loss_2", "loss_3"]].values.tolist() == [each.loss for each in epochs]
    assert table[["error_1", "error_2", "error_3"]].values.tolist() == [e.error for e in epochs]
    assert table.skipped_3.tolist() == [0, 0]


def test_tensorboard_reads_steps_and_epochs(tmp_path, toy, new_model, seconds_pass):
    told, epochs = Steps(), []
    with loggers.TensorBoardLogger(tmp_path, every=4) as logger:
        options = {"callbacks": [told, logger], "on_epoch": epochs.append}
        noprop.fit(new_model(), *toy, epochs=2, batch_size=B, **options)
    steps = scalars(tmp_path / "steps")
    for t in range(3):
        expected = [(i, row[0][t]) for i, row in told.blocks.items() if i % 4 == 0]
        assert steps[f"loss/block_{t + 1}"] == expected
    assert steps["loss/head"] == [(i, row[0]) for i, row in told.head.items() if i % 4 == 0]
    assert [step for step, _ in steps["lr/blocks"]] == [0, 4, 20, 24]
    found = scalars(tmp_path / "epochs")
    for t in range(3):
        values = [value for _, value in found[f"epoch_loss/block_{t + 1}"]]
        assert values == pytest.approx([epoch.loss[t] for epoch in epochs], rel=1e-6)
    assert [step for step, _ in found["epoch/head_loss"]] == [1, 2]


def all_of(folder: Path) -> object:
    """What both loggers wrote, but for times."""
    tables = [pandas.read_csv(folder / "csv" / f"{name}.csv") for name in ("blocks", "head")]
    epochs = pandas.read_csv(folder / "csv" / "epochs.csv")
    tables.append(epochs.drop(columns=["seconds", "samples_per_second"]))
    events = {
        f"{path.parent.relative_to(folder)}/{tag}": values
        for path in folder.rglob("events.*")
        for tag, values in scalars(path.parent).items()
        if "second" not in tag
    }
    return [table.to_csv() for table in tables], events


class Crashes(noprop.Callback):
    """Ends the training at a step, when all before it in the list have been told of it."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, steps: noprop.Steps) -> None:
        if self.at in steps.numbers:
            raise KeyboardInterrupt


class SavesAt(noprop.Callback):
    def __init__(self, model: noprop.Model, folder: Path, progress: noprop.Progress, at: int):
        self.model, self.folder, self.progress, self.at = model, folder, progress, at

    def on_step(self, steps: noprop.Steps) -> None:
        if self.at in steps.numbers:
            self.model.save(self.folder, {"progress": self.progress.to_json()})


@pytest.mark.parametrize("saved, crashed", [(2, 4), (12, 38), (19, 27), (19, 20), (24, 39)])
def test_what_came_after_the_last_save_gives_way(
    tmp_path, toy, new_model, seconds_pass, saved, crashed
):
    """Step 19 is the last of an epoch: what is saved then is before the end of the epoch."""

    def both(name):
        return [
            loggers.CsvLogger(tmp_path / name / "csv"),
            loggers.TensorBoardLogger(tmp_path / name / "events", every=1),
        ]

    options = {"epochs": 3, "batch_size": B}
    noprop.fit(new_model(), *toy, **options, callbacks=both("straight"))
    model, progress = new_model(), noprop.Progress()
    saves = SavesAt(model, tmp_path / "saved", progress, saved)
    interrupted = both("logs")
    with pytest.raises(KeyboardInterrupt):
        noprop.fit(
            model,
            *toy,
            **options,
            progress=progress,
            callbacks=[*interrupted, saves, Crashes(crashed)],
        )
    interrupted[1].flush()
    record = checkpoint.load_content(tmp_path / "saved")["training"]["progress"]
    resumed = both("logs")
    noprop.fit(
        noprop.load(tmp_path / "saved"),
        *toy,
        **options,
        progress=noprop.Progress(**record),
        callbacks=resumed,
    )
    for logger in (*interrupted, *resumed):
        logger.close()
    assert all_of(tmp_path / "logs") == all_of(tmp_path / "straight")


def test_a_training_anew_with_the_same_logger_begins_anew(tmp_path, toy, new_model, seconds_pass):
    both = [loggers.CsvLogger(tmp_path / "csv"), loggers.TensorBoardLogger(tmp_path / "events", 1)]
    for epochs in (2, 1):
        noprop.fit(new_model(), *toy, epochs=epochs, batch_size=B, callbacks=both)
    both[1].close()
    assert pandas.read_csv(tmp_path / "csv" / "blocks.csv").step.tolist() == [*range(5)]
    assert pandas.read_csv(tmp_path / "csv" / "epochs.csv").epoch.tolist() == [1]
    losses = scalars(tmp_path / "events" / "steps")["loss/block_1"]
    assert [step for step, _ in losses] == [*range(5)]


def test_each_replica_has_its_rows(tmp_path, toy, seconds_pass):
    blocks = nk.DenoisingBlocks(
        nk.plans.mlp(6, 3, 3, hidden=8), nk.DT(nk.NoiseSchedule.cosine(T=3)), seed=[3, 4]
    )
    told = Steps()
    with loggers.TensorBoardLogger(tmp_path, 1) as events, loggers.CsvLogger(tmp_path) as table:
        callbacks = [told, events, table]
        noprop.fit(noprop.Model(blocks), *toy, epochs=1, batch_size=B, callbacks=callbacks)
    rows = pandas.read_csv(tmp_path / "blocks.csv")
    assert rows.step.tolist() == [step for step in range(5) for _ in range(2)]
    for replica in range(2):
        losses = [row[replica][1] for row in told.blocks.values()]
        assert rows[rows.replica == replica].loss_2.tolist() == losses
        found = scalars(tmp_path / f"replica-{replica}" / "steps")["loss/block_2"]
        assert [value for _, value in found] == losses
    assert pandas.read_csv(tmp_path / "epochs.csv").replica.tolist() == [0, 1]


class Measures(noprop.Callback):
    def on_epoch(self, epoch: noprop.Epoch) -> None:
        if epoch.epoch == 2:
            epoch.figures["mine"] = 7.5


def test_a_figure_that_comes_later_gets_a_column(tmp_path, toy, new_model):
    logger = loggers.CsvLogger(tmp_path)
    noprop.fit(new_model(), *toy, epochs=3, batch_size=B, callbacks=[Measures(), logger])
    table = pandas.read_csv(tmp_path / "epochs.csv")
    assert table.mine.fillna(0).tolist() == [0, 7.5, 0] and table.epoch.tolist() == [1, 2, 3]


def test_a_line_that_a_crash_has_cut_gives_way(tmp_path, toy, new_model):
    (tmp_path / "epochs.csv").write_text("epoch,replica,lr\n0,0,1\n1,0,1\n0")
    noprop.fit(new_model(), *toy, epochs=1, batch_size=B, callbacks=[loggers.CsvLogger(tmp_path)])
    assert pandas.read_csv(tmp_path / "epochs.csv").epoch.tolist() == [0, 1]


def test_what_is_no_number_is_an_empty_cell(tmp_path):
    table = csv_table.Table(tmp_path / "table.csv", "step")
    table.add([{"step": 0, "loss_1": math.nan, "loss_2": 0.5, "head_loss": None}])
    assert (tmp_path / "table.csv").read_text() == "step,loss_1,loss_2,head_loss\n0,,0.5,\n"


def test_a_file_that_is_no_log_is_left_alone(tmp_path, toy, new_model):
    (tmp_path / "blocks.csv").write_text("a,b\n1,2\n")
    with pytest.raises(noprop.InputError, match="has no column 'step' of whole numbers"):
        noprop.fit(new_model(), *toy, epochs=1, callbacks=[loggers.CsvLogger(tmp_path)])
    assert (tmp_path / "blocks.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("kind", loggers.LOGGERS)
def test_every_is_at_least_one(tmp_path, kind):
    with pytest.raises(ValueError, match="Logger: every must be an integer of at least 1, got 0"):
        loggers.LOGGERS[kind](tmp_path, every=0)


# the command


def test_a_run_logs_and_a_resumed_one_goes_on(alone, toy_file, seconds_pass):
    arguments = ("train", "--data", toy_file, *QUICK, "--head", "paper")
    kinds = ("--log", "csv", "--log", "tensorboard")
    call(*arguments, *kinds, "--epochs", 2, "--out", "run")
    call("train", "--resume", "run", "--epochs", 3)
    call(*arguments, *kinds, "--epochs", 3, "--out", "straight")
    logs = all_of(Path("run/logs"))
    assert logs == all_of(Path("straight/logs"))
    table = pandas.read_csv("run/logs/csv/epochs.csv")
    lines = metrics.read(Path("run"))
    assert table.train_accuracy.tolist() == [line["train_accuracy"] for line in lines]
    found = scalars(Path("run/logs/tensorboard/epochs"))["epoch/train_accuracy"]
    assert [step for step, _ in found] == [1, 2, 3]
    assert [*lines[0]][:9] == [
        *("epoch", "loss", "error", "head_loss", "lr", "skipped", "seconds"),
        *("samples_per_second", "train_accuracy"),
    ]


def test_without_log_there_is_none(run):
    assert not (run / "logs").exists()


def test_an_unknown_log_is_refused(alone, toy_file):
    text = call("train", "--data", toy_file, "--log", "excel", "--out", "run", code=2).stderr
    assert "excel" in text and "csv, tensorboard" in text and not Path("run").exists()


def test_a_missing_package_is_told_before_anything_is_written(alone, toy_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    arguments = ("--data", toy_file, "--log", "tensorboard", "--out", "run")
    text = call("train", *arguments, code=1).stderr
    assert "pip install 'noprop-kernels[tensorboard]'" in text and not Path("run").exists()
