"""The store of checkpoints, and the work of one process on it."""

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from noprop import checkpoint, files, metrics
from noprop.engines import collection, store
from noprop.engines.store import Store, name_of
from noprop.errors import InputError
from noprop.files import InUse
from noprop.units import Units
from support.engines import Problem, same_bits


def after(calls: int) -> Callable[[], bool]:
    """True from the so many-th call on."""
    counted = iter(range(1 << 30))
    return lambda: next(counted) >= calls


@pytest.fixture
def stored(problem: Problem) -> Store:
    """Block 2 after five calls, and no other."""
    problem.work(checkpoint_seconds=1e9).turn([2], after(5))
    return Store(problem.place / "store")


@pytest.mark.parametrize("early_weight_decay", [None, 0.5])
def test_units_that_change_workers_come_to_the_bits_of_one_run(
    problem: Problem, early_weight_decay: float | None
) -> None:
    problem.settings = replace(problem.settings, early_weight_decay=early_weight_decay)
    calls = 0

    def few() -> bool:
        nonlocal calls
        calls += 1
        return calls % 4 == 0

    one, other = problem.work(), problem.work()
    one.turn([1, 2, "head"], few)
    other.turn([3], few)
    other.turn([1, 3], few)  # of which 1 is further than 3
    one.turn([2, "head"], few)
    report = other.turn([1, 2, 3, "head"], lambda: False)
    assert report.finished == {1, 2, 3, "head"} and report.trouble is report.fault is None
    run, undisturbed = problem.run("run"), problem.undisturbed()
    assert collection.collect(run, other.store.folder) and run.whole
    assert same_bits(run, undisturbed)
    assert [line["epoch"] for line in metrics.read(run.folder)] == sorted([1, 2, 3] * 4)


def test_what_a_worker_has_to_know_has_none_of_the_rows(problem: Problem) -> None:
    assert len(pickle.dumps(problem.job())) < 20_000 < problem.content.x.nbytes


def test_blocks_at_the_same_step_are_trained_together_again(problem: Problem) -> None:
    problem.work(1e9).turn([1, 2, 3], after(2))
    work = problem.work()
    work.take([1, 2, 3])
    share = work.next_share()
    assert share is not None and share.units == Units((1, 2, 3)) and work.shares == [share]
    assert share.progress.block_steps > 0 and len(share.progress.loss_sum) == 3
    work.turn([1, 2, 3, "head"], lambda: False)
    assert [len(share.units) for share in work.shares] == [4]


def test_a_checkpoint_replaces_only_one_with_fewer_draws(problem: Problem, stored: Store) -> None:
    before, same = stored.place(2), stored.load(2)
    assert before is not None and same is not None
    assert not stored.put(2, problem.job().new(Units.of([2])), [])
    assert not stored.put(2, same, []) and stored.place(2) == before
    problem.work().turn([2], lambda: False)
    assert not stored.put(2, same, []) and stored.place(2) != before


def test_a_worker_that_was_overtaken_is_told_so(problem: Problem) -> None:
    slow, fast = problem.work(0.0), problem.work(1e9)

    def overtaken() -> bool:
        if slow.report.seen[2] == 6:
            fast.turn([2], lambda: False)
        return slow.report.seen[2] > 8

    report = slow.turn([2], overtaken)
    assert 2 in report.refused and report.steps[2] == 18 and report.finished == {2}
    assert slow.turn([2], lambda: False).finished == {2}
    assert slow.whole is not None and slow.shares[0].finished  # read again


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_disk_without_space_loses_nothing(
    problem: Problem, stored: Store, monkeypatch, number: int
) -> None:
    before, at = stored.place(2), stored.load(2)
    work, full = problem.work(0.0), True
    write = files.os.fsync

    def refused(descriptor: int) -> None:
        if full:
            raise OSError(number, os.strerror(number))
        write(descriptor)

    monkeypatch.setattr(files.os, "fsync", refused)
    report = work.turn([2], after(12))
    assert report.trouble is not None and os.strerror(number) in report.trouble
    assert report.saves == 0 and stored.place(2) == before
    kept = stored.load(2)
    assert at is not None and kept is not None and same_bits(at, kept)
    assert not [path for path in stored.folder_of(2).iterdir() if path.name.startswith(".")]
    full = False
    assert work.turn([2], lambda: False).finished == {2}


def test_a_turn_waits_for_space_at_the_end(problem: Problem, monkeypatch) -> None:
    work, waits = problem.work(1e9), []
    save, fsync = work.save, os.fsync

    def refused(descriptor: int) -> None:
        if len(waits) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", refused)
    monkeypatch.setattr("noprop.engines.work.time.sleep", waits.append)
    assert work.turn([1], lambda: False).finished == {1} and len(waits) == 3
    assert save([1])


def test_another_writer_is_waited_for(problem: Problem, stored: Store, monkeypatch) -> None:
    program = (
        "import sys; from noprop.files import locked; from pathlib import Path\n"
        "with locked(Path(sys.argv[1])):\n print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(stored.folder_of(2))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        monkeypatch.setattr(store, "LOCK_SECONDS", 0.0)
        run = stored.load(2)
        assert run is not None
        run.shares[0].progress.block_steps += 1
        with pytest.raises(InUse, match="is in use"):
            stored.put(2, run, [])
        monkeypatch.setattr(store, "LOCK_SECONDS", 1e9)
        monkeypatch.setattr(store.time, "sleep", lambda seconds: holder.stdin.close())
        assert stored.put(2, run, [])


def test_a_damaged_checkpoint_is_an_error(problem: Problem, stored: Store) -> None:
    (tensors,) = stored.folder_of(2).glob("tensors-*")
    tensors.write_bytes(tensors.read_bytes()[:-1])
    report = problem.work().turn([2], lambda: False)
    assert report.fault is not None and "is corrupt" in report.fault
    (stored.folder_of(2) / checkpoint.RECORD).write_text("{}")
    with pytest.raises(InputError, match="is corrupt"):
        stored.place(2)


def test_a_store_of_another_run_is_refused(problem: Problem, stored: Store) -> None:
    run = problem.run("run")
    run.settings = replace(run.settings, seed=7)
    with pytest.raises(InputError, match="do not belong together"):
        collection.collect(run, stored.folder)


def test_a_run_that_was_begun_elsewhere_goes_on(problem: Problem) -> None:
    run, calls = problem.run("run"), 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > 3

    quiet = dict(on_call=lambda n: None, on_epoch=lambda e, a: None, say=lambda line: None)
    assert not run.train(problem.split, run.shares[0], stop=stop, **quiet)
    work = problem.work()
    parts = {name_of(unit): Units.of([unit]) for unit in run.model.units}
    collection.begin(run, work.store.folder, parts)
    assert collection.steps(run, problem.job())[1] > 0
    work.turn([1, 2, 3, "head"], lambda: False)
    assert collection.collect(run, work.store.folder) and same_bits(run, problem.undisturbed())
    assert collection.unfinished(run) == [] and run.whole
    collection.clear(work.store.folder)
    assert not work.store.folder.exists()
