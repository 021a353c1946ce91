"""Units trained apart: any blocks, or the head, with the bits of a training of all."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import apart, checkpoint, metrics, runs
from noprop.epochs import Progress
from noprop.errors import InputError
from noprop.loggers import CsvLogger
from noprop.runs import Run
from noprop.settings import Settings
from noprop.shares import Share, cut, joined
from noprop.units import Units, ranges
from support.cli import QUICK, call, words
from support.units import assert_units_of

B = 32
WITH_HEAD = [*QUICK, "--epochs", 2, "--head", "paper"]


# names of units


def test_names_of_units():
    units = Units.parse("9,head, 3,7-8")
    assert [*units] == [3, 7, 8, 9, "head"] and len(units) == 5
    assert str(units) == "blocks 3, 7-9 and the head"
    assert str(Units.of([4])) == "block 4" and str(Units.of(["head"])) == "the head"
    assert units - Units.of([8, 1]) == Units.parse("3,7,9,head")
    assert units & Units.of([8, 1, "head"]) == Units.of(["head", 8])
    assert units | Units.of([1, 3]) == Units.parse("1,3,7-9,head")
    assert not Units() and ranges([1, 2, 4, 6, 7, 8]) == "1-2, 4, 6-8"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("3,3", "units must be different, got 3, 3"),
        ("0", "units must be t from 1 on"),
        ("x", "must be like 3,7-9,head, got 'x' in it"),
        ("3,", "must be like 3,7-9,head, got '' in it"),
        ("-3", "must be like 3,7-9,head, got '-3' in it"),
        ("5-3", "must name at least one unit"),
        ("1-999999", "must be like"),
    ],
)
def test_names_that_are_none(text, says):
    with pytest.raises(InputError, match=says):
        Units.parse(text)


# the library


@pytest.mark.parametrize("units", [[2], [1, 3, "head"], ["head"], [3, 2, 1]])
def test_units_of_a_model_learn_alone(toy, new_model, assert_same_state, units):
    """The others do not change."""
    whole = new_model()
    epochs, alone = [], []
    noprop.fit(whole, *toy, epochs=2, batch_size=B, lr_schedule="cosine", on_epoch=epochs.append)
    model = new_model()
    noprop.fit(
        *(model, *toy), epochs=2, batch_size=B, lr_schedule="cosine", units=units,
        on_epoch=alone.append,
    )  # fmt: skip
    for one, all_of in zip(alone, epochs, strict=True):
        ts = sorted(t for t in units if t != "head")
        assert one.loss == pytest.approx([all_of.loss[t - 1] for t in ts], rel=1e-12)
        assert one.error == pytest.approx([all_of.error[t - 1] for t in ts], rel=1e-12)
        assert one.head_loss == (all_of.head_loss if "head" in units else None)
        assert one.skipped == [0] * len(ts) and one.lr == all_of.lr
    others = whole.units - Units.of(units)
    noprop.fit(model, *toy, epochs=2, batch_size=B, lr_schedule="cosine", units=[*others] or units,
               progress=None if others else Progress(epoch=2))  # fmt: skip
    assert_same_state(model, whole)


@pytest.mark.parametrize(("held", "head"), [([2], True), ([1, 3], False), ([], True)])
def test_a_model_of_some_units(toy, new_model, tmp_path, held, head):
    whole = new_model()
    noprop.fit(whole, *toy, epochs=2, batch_size=B)
    part = some(new_model, held, head)
    samples = []
    noprop.fit(
        *(part, *toy), epochs=2, batch_size=B,
        on_call=lambda progress, count: samples.append(count),
    )  # fmt: skip
    assert sum(samples) == 2 * len(toy[0])
    assert_units_of(whole, part)
    part.save(tmp_path)
    content = checkpoint.load_content(tmp_path)
    assert content["format"] == 3 and content["model"]["order"] == held
    again = noprop.load(tmp_path)
    assert again.units == part.units and again.seeds == part.seeds == [5]
    assert_units_of(whole, again)
    missing = str(Units.of({1, 2, 3} - {*held}))
    for ask in (
        again.predict,
        again.predict_paper,
        again,
        lambda x: noprop.evaluate(again, x, toy[1]),
    ):
        with pytest.raises(
            InputError, match=f"all of its 3 blocks, missing: {missing}; noprop merge"
        ):
            ask(toy[0])
    with pytest.raises(InputError, match=f"missing: {missing}"):
        again.to_module()
    assert missing in repr(again)
    with pytest.raises(InputError, match="fit: units must be among"):
        noprop.fit(again, *toy, epochs=1, batch_size=B, units=[1, 2, 3])
    with pytest.raises(InputError, match="fit: units must be some of .* got none"):
        noprop.fit(again, *toy, epochs=1, batch_size=B, units=[])


def some(new_model, held: list[int], head: bool) -> noprop.Model:
    """An untrained model of some of the units of `new_model()`."""
    other = new_model()
    options = {"optimizer": other.blocks.optimizer, "seed": 5}
    blocks = nk.DenoisingBlocks(other.blocks.plan, other.goal, held=held or [1], **options)
    return noprop.Model(blocks, other.head if head else None, alone=not held)


def test_what_learns_together_is_not_trained_apart(toy):
    goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
    shared = nk.Shared(goal, nk.LearnedEmbedding(3, 4))
    plan = nk.plans.mlp(6, 4, 3, hidden=4)
    head = nk.OutputHead(4, 3, goal=goal, shared=shared)
    with pytest.raises(ValueError, match=r"blocks must hold all of 1..2 where something shared is"):
        noprop.Model(nk.DenoisingBlocks(plan, goal, shared=shared, held=[2]), head)
    model = noprop.Model(nk.DenoisingBlocks(plan, goal, shared=shared), head)
    with pytest.raises(InputError, match="units must be all, blocks 1-2 and the head"):
        noprop.fit(model, *toy, epochs=1, batch_size=B, units=[1])


def test_inference_has_a_seed_of_its_own(toy, new_model, tmp_path):
    """Whatever seed block 1 has: z_0 and the noise of the chain are the model's."""
    model = new_model()
    noprop.fit(model, *toy, epochs=1, batch_size=B)
    want = model.predict_paper(toy[0]), noprop.evaluate(model, *toy)
    model.save(tmp_path / "before")
    assert checkpoint.load_content(tmp_path / "before")["format"] == 1
    model.blocks.seeds[0] = 77
    model.save(tmp_path / "after")
    content = checkpoint.load_content(tmp_path / "after")
    assert content["format"] == 3 and content["model"]["seeds"] == [5]
    again = noprop.load(tmp_path / "after")
    assert again.blocks.seeds.tolist() == [77, 5, 5] and again.seeds == [5]
    for one in (model, again, again.replica(0)):
        assert torch.equal(one.predict_paper(toy[0]), want[0])
        assert noprop.evaluate(one, *toy) == want[1]


def test_logs_name_the_blocks_that_are_trained(toy, new_model, tmp_path):
    """By their t, and not by their place among those trained."""
    with CsvLogger(tmp_path) as logger:
        noprop.fit(
            *(new_model(), *toy), epochs=2, batch_size=B, units=[1, 3, "head"], callbacks=[logger]
        )
    for name, columns in (("blocks.csv", ["loss_1", "loss_3"]), ("epochs.csv", ["error_3"])):
        header, *rows = (tmp_path / name).read_text().splitlines()
        assert {*columns} <= {*header.split(",")} and "loss_2" not in header and rows


# shares


def life(units: str, epoch: int = 2, seconds: float = 1.0, **progress: object) -> Share:
    return Share(Units.parse(units), [0], 2, Progress(epoch=epoch, seconds=seconds, **progress))


def test_shares_of_equal_lives_join():
    one, other = life("1,3"), life("2,head", seconds=3.0)
    (both,) = joined([other, one])
    assert both == life("1-3,head", seconds=4.0)
    assert joined([other, life("1,3", epoch=1)]) == [life("1,3", epoch=1), other]
    within = life("1", block_steps=1, loss_sum=[1.0])
    assert len(joined([within, life("2", block_steps=1, loss_sum=[1.0])])) == 2
    versions = Share(Units.of([9]), [0], 2, Progress(epoch=2), {"torch": "1"})
    assert len(joined([one, versions])) == 2
    assert len(joined([one, Share(Units.of([9]), [1], 2, Progress(epoch=2))])) == 2
    assert one == life("1,3") and other == life("2,head", seconds=3.0)


def test_shares_are_cut():
    within = life(
        "1-3,head", block_steps=5, head_steps=2, loss_sum=[1.0, 2.0, 3.0], skipped=[4, 5, 6],
        head_loss_sum=[7.0], head_skipped=[8], seconds=4.0,
    )  # fmt: skip
    inside, outside = cut([within, life("4")], Units.parse("2,4"))
    assert inside == [
        life("2", block_steps=5, loss_sum=[2.0], skipped=[5]), life("4"),
    ]  # fmt: skip
    assert outside == [
        life("1,3,head", block_steps=5, head_steps=2, loss_sum=[1.0, 3.0], skipped=[4, 6],
             head_loss_sum=[7.0], head_skipped=[8], seconds=3.0)
    ]  # fmt: skip
    assert [
        Share.from_json(json.loads(json.dumps(share.to_json()))) for share in outside
    ] == outside


# runs


pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def whole(toy_file):
    call("train", "--data", toy_file, *WITH_HEAD, "--out", "whole")
    return Path("whole")


def test_a_share_of_a_run(toy_file, whole):
    shown = call("train", "--data", toy_file, *WITH_HEAD, "--blocks", "head,1,3", "--out", "part")
    assert "it lacks block 2, with which noprop merge makes one run" in words(shown.stdout)
    run, all_of = Run.load(Path("part")), Run.load(whole)
    assert_units_of(all_of.model, run.model)
    assert run.missing == Units.of([2]) and run.result is None
    assert checkpoint.load_content(Path("part"))["format"] == 3
    assert checkpoint.load_content(whole)["format"] == 1
    assert "progress" in checkpoint.load_content(whole)["training"]
    lines = metrics.read(Path("part"))
    assert [(line["epoch"], line["units"]) for line in lines] == [
        (epoch, [1, 3, "head"]) for epoch in (1, 2)
    ]
    for command in (
        ["eval", "part"],
        ["predict", "part", toy_file],
        ["export", "part", "--onnx", "x"],
    ):
        assert "missing: block 2; noprop merge" in words(call(*command, code=1).stderr)
    call("train", "--data", toy_file, *WITH_HEAD, "--blocks", "1-3", "--out", "headless")
    assert "missing: the head" in words(call("eval", "headless", code=1).stderr)
    rows = np.load(toy_file)["x_test"]
    np.save("rows.npy", rows)
    assert (
        call("predict", "headless", "rows.npy").stdout == call("predict", whole, "rows.npy").stdout
    )
    text = words(call("info", "part").stdout)
    assert "blocks 1, 3 and the head 2 of 2 epochs, seed 0" in text
    shown = call("train", "--resume", "part", "--json").stdout
    record = json.loads(shown)
    assert record["units"] == [1, 3, "head"] and record["missing"] == [2]


def test_a_share_that_was_stopped_goes_on(toy_file, whole, monkeypatch):
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    advance = runs.fit

    def interrupted(*args, on_call, **options):
        def watch(progress, samples):
            on_call(progress, samples)
            if progress.epoch == 1 and progress.head_steps == 4:
                signal.raise_signal(signal.SIGTERM)

        return advance(*args, on_call=watch, **options)

    monkeypatch.setattr(runs, "fit", interrupted)
    command = ("train", "--data", toy_file, *WITH_HEAD, "--blocks", "2,head", "--out", "part")
    call(*command, code=143)
    assert "9 steps of the next" in words(call("info", "part").stdout)
    monkeypatch.setattr(runs, "fit", advance)
    call("train", "--resume", "part")
    assert_units_of(Run.load(whole).model, Run.load(Path("part")).model)
    assert len(metrics.read(Path("part"))) == 2


REFUSED = {
    "ct": (["--variant", "ct", "--blocks", "1"], "ct has one block of all t"),
    "learned": (["--embedding", "learned", "--blocks", "1"], "learned learn from all blocks"),
    "seeds": (["--seeds", "0,1", "--blocks", "1"], "several seeds are trained at once"),
    "no such block": (["--T", "3", "--blocks", "2-4"], "the run has blocks 1-3, and not block 4"),
    "no head": (["--T", "3", "--blocks", "head"], "the run has blocks 1-3, and not the head"),
    "no unit": (["--blocks", "one"], "must be like 3,7-9,head"),
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("dry", [False, True])
def test_units_that_are_refused(toy_file, options, dry):
    arguments, says = options
    command = ["train", "--data", toy_file, *arguments, "--out", "run"]
    text = words(call(*command, *(["--dry-run"] if dry else []), code=2).stderr)
    assert "--blocks" in text and says in text
    assert not Path("run").exists()


def test_a_dry_run_counts_the_units(toy_file):
    command = ("train", "--data", toy_file, *WITH_HEAD, "--dry-run", "--json")
    sizes = [
        json.loads(call(*command, *blocks).stdout)["parameters"]
        for blocks in ([], ["--blocks", "1-3"], ["--blocks", "head"], ["--blocks", "2"])
    ]
    assert sizes[0] == sizes[1] + sizes[2] and sizes[1] == 3 * sizes[3] and sizes[2] == 12


def test_a_share_by_a_function(toy_file, whole, monkeypatch):
    """For any scheduler; stopped and called again it goes on."""
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    settings = Run.load(whole).settings
    left = iter(range(6))
    stopped = apart.train_share(
        "part", settings, ["head", 2], stop=lambda: next(left, None) is None
    )
    assert not stopped.shares[0].finished
    run = apart.train_share("part", settings, ["head", 2])
    assert run.shares[0].finished and run.model.units == Units.parse("2,head")
    assert_units_of(Run.load(whole).model, Run.load(Path("part")).model)
    with pytest.raises(InputError, match="holds block 2 and the head, and not block 2"):
        apart.train_share("part", settings, [2])
    other = Settings(**{**vars(settings), "seed": 9})
    with pytest.raises(InputError, match="was begun with the seed 0, not 9"):
        apart.train_share("part", other, [2, "head"])
    with pytest.raises(InputError, match="the run has blocks 1-3 and the head, and not block 4"):
        apart.train_share("other", settings, [4])
    with pytest.raises(InputError, match="units must be some of"):
        apart.train_share("other", settings, [])


LIES = [
    lambda training: training["shares"][0].update(units=[1]),
    lambda training: training["shares"][0].update(units=3),
    lambda training: training["shares"][0].update(seeds=["x"]),
    lambda training: training["shares"][0].update(epochs=0),
    lambda training: training["shares"][0].update(progress=3),
    lambda training: training["shares"][0]["progress"].update(loss_sum=[1.0, 2.0, 3.0]),
    lambda training: training.update(shares=[3]),
    lambda training: training.update(shares=[]),
]


def test_shares_that_lie_are_one_line(toy_file):
    call("train", "--data", toy_file, *WITH_HEAD, "--blocks", "1,3", "--out", "part")
    content, tensors = checkpoint.load(Path("part"))
    saved = json.dumps(content)
    for change in LIES:
        lying = json.loads(saved)
        change(lying["training"])
        checkpoint.save(Path("part"), lying, tensors, format=3)
        text = call("train", "--resume", "part", code=1).stderr
        assert text.count("noprop: error:") == 1 and "a fault of noprop" not in text
    for change in ({"order": [3, 1]}, {"order": [1, 4]}, {"order": ["x"]}, {"seeds": ["x"]}):
        lying = json.loads(saved)
        lying["model"].update(change)
        checkpoint.save(Path("part"), lying, tensors, format=3)
        text = call("train", "--resume", "part", code=1).stderr
        assert text.count("noprop: error:") == 1 and "a fault of noprop" not in text
