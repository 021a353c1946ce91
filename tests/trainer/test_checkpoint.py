"""Checkpoints: whole after a crash at any moment, and refused where a bit is not what it was."""

import hashlib
import json
import os

import pytest
import torch

import noprop
from noprop import checkpoint, metrics
from noprop.errors import InputError
from noprop.files import atomic_file

OLD = {"step": torch.arange(5), "weight": torch.randn(3, 4, dtype=torch.float64)}
NEW = {"step": torch.arange(5) + 1, "weight": torch.ones(3, 4, dtype=torch.float64)}


def assert_holds(folder, content, tensors):
    read, found = checkpoint.load(folder)
    assert read["name"] == content
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)


def test_round_trip_and_replacement(tmp_path):
    run = tmp_path / "a" / "run"
    checkpoint.save(run, {"name": "old"}, OLD)
    assert_holds(run, "old", OLD)
    checkpoint.save(run, {"name": "new"}, NEW)
    assert_holds(run, "new", NEW)
    assert len(list(run.iterdir())) == 2
    checkpoint.save(run, {"name": "again"}, NEW)
    assert_holds(run, "again", NEW)


class Crash(BaseException):
    pass


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_crash_at_any_moment_leaves_a_whole_state(tmp_path, monkeypatch, call):
    real = getattr(os, call)
    outcomes = []
    for moment in range(10):
        run = tmp_path / str(moment)
        checkpoint.save(run, {"name": "old"}, OLD)
        calls = iter(range(100))

        def crash(*args, moment=moment, calls=calls):
            if next(calls) == moment:
                raise Crash
            return real(*args)

        monkeypatch.setattr(os, call, crash)
        try:
            checkpoint.save(run, {"name": "new"}, NEW)
            crashed = False
        except Crash:
            crashed = True
        monkeypatch.setattr(os, call, real)
        name = checkpoint.load(run)[0]["name"]
        assert_holds(run, name, {"old": OLD, "new": NEW}[name])
        assert crashed or name == "new"
        outcomes.append((crashed, name))
        checkpoint.save(run, {"name": "new"}, NEW)
        assert len(list(run.iterdir())) == 2  # what the crash left is gone
    assert (True, "old") in outcomes and outcomes[-1] == (False, "new")


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = [tmp_path / ".tensors-0.safetensors.x", tmp_path / f".{checkpoint.RECORD}.x"]
    for path in (*left, tmp_path / "mine"):
        path.write_text("left")
    checkpoint.save(tmp_path, {"name": "new"}, NEW)
    assert len(list(tmp_path.iterdir())) == 3 and (tmp_path / "mine").exists()


def test_bytes_are_synced_before_the_rename(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, real=real: (order.append(name), real(*args))[1]
        )
    checkpoint.save(tmp_path, {"name": "old"}, OLD)
    assert order == ["fsync", "replace", "fsync"] * 2  # file, rename, folder: tensors, then record


def test_every_flipped_byte_is_noticed(tmp_path):
    checkpoint.save(tmp_path, {"name": "old", "number": 0.125}, OLD)
    for path in list(tmp_path.iterdir()):
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            broken = bytearray(whole)
            broken[place] ^= 0x01
            path.write_bytes(broken)
            try:
                read, _ = checkpoint.load(tmp_path)
            except InputError as error:
                assert str(tmp_path) in str(error)
            else:  # white space of the record may change into other white space, its meaning not
                assert path.name == checkpoint.RECORD and read["number"] == 0.125
                assert chr(whole[place]).isspace()
        path.write_bytes(whole)
    assert_holds(tmp_path, "old", OLD)


def test_every_cut_is_noticed(tmp_path):
    checkpoint.save(tmp_path, {"name": "old"}, OLD)
    for path in list(tmp_path.iterdir()):
        whole = path.read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match="corrupt"):
                checkpoint.load(tmp_path)
        path.unlink()
        with pytest.raises(InputError, match="No such file"):
            checkpoint.load(tmp_path)
        path.write_bytes(whole)


def test_another_format_is_refused(tmp_path):
    checkpoint.save(tmp_path, {"name": "new"}, NEW, format=4)
    with pytest.raises(InputError, match="has format 4, this version reads formats 1, 2 and 3"):
        checkpoint.load(tmp_path)


def test_atomic_file_keeps_the_old_content_when_the_writer_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"ne")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_differences():
    then = {"torch": "1", "backend": "cpu", "instruction_set": "avx2"}
    now = {"torch": "1", "backend": "cpu", "instruction_set": "avx512"}
    assert checkpoint.differences(then, then) == []
    assert checkpoint.differences(then, now) == ["instruction_set was avx2, is avx512"]


# models


def test_a_model_comes_back_whole(tmp_path, toy, new_model, assert_same_state):
    model = new_model()
    noprop.fit(model, *toy, epochs=2, batch_size=32)
    model.save(tmp_path)
    again = noprop.load(tmp_path)
    assert_same_state(model, again)
    assert again.blocks.plan == model.blocks.plan and again.blocks.goal == model.blocks.goal
    assert again.blocks.optimizer == model.blocks.optimizer
    assert again.head.optimizer == model.head.optimizer
    assert all(torch.equal(a, b) for a, b in zip(again.normalize, model.normalize, strict=True))
    assert torch.equal(again.predict(toy[0]).scores, model.predict(toy[0]).scores)
    assert torch.equal(again.predict_paper(toy[0]), model.predict_paper(toy[0]))


def test_a_model_without_a_head_comes_back_without_one(tmp_path, toy, new_model, assert_same_state):
    model = new_model(head=False)
    noprop.fit(model, *toy, epochs=1, batch_size=32)
    model.save(tmp_path)
    again = noprop.load(tmp_path)
    assert again.head is None
    assert_same_state(model, again)
    assert torch.equal(again(toy[0]), model(toy[0]))


def test_a_model_of_an_earlier_version_has_its_head_and_numbers_for_classes(
    tmp_path, toy, new_model
):
    model = new_model()
    noprop.fit(model, *toy, epochs=1, batch_size=32)
    model.save(tmp_path)
    content, tensors = checkpoint.load(tmp_path)
    for name in ("head", "class_names", "inputs"):
        del content["model"][name]
    checkpoint.save(tmp_path, content, tensors)
    again = noprop.load(tmp_path)
    assert again.head is not None and again.classes_ is None
    assert again.predict(toy[0]).names == model.predict(toy[0]).names
    assert torch.equal(again.predict_paper(toy[0]), model.predict_paper(toy[0]))


def test_a_model_with_embeddings_and_encoder(tmp_path, toy, new_model, assert_same_state):
    base = new_model(embedding=torch.randn(3, 4))
    model = noprop.Model(base.blocks, base.head, torch.nn.Linear(6, 6))
    noprop.fit(model, *toy, epochs=1, batch_size=32)
    model.save(tmp_path)
    with pytest.raises(InputError, match="saved with an encoder"):
        noprop.load(tmp_path)
    again = noprop.load(tmp_path, torch.nn.Linear(6, 6))
    assert_same_state(model, again)
    assert torch.equal(again.predict(toy[0]).probs, model.predict(toy[0]).probs)


@pytest.mark.parametrize(
    "name", ["plan", "goal", "order", "sampler", "normalisation", "optimizers", "encoder"]
)
def test_what_inference_needs_must_be_there(tmp_path, new_model, name):
    new_model().save(tmp_path)
    content, tensors = checkpoint.load(tmp_path)
    del content["model"][name]
    checkpoint.save(tmp_path, content, tensors)
    with pytest.raises(InputError, match=f"must carry its {name}"):
        noprop.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"order": [3, 2, 1]},
        {"sampler": {"kind": "euler"}},
        {"goal": {"kind": "CT"}},
        {"goal": {"kind": "DT", "eta": 0.1, "alpha_bar": [0.9, 0.5, 0.1, 0.0]}},
        {"plan": {"inputs": [["x", [6]]], "layers": []}},
        {"classes": 4},
        {"optimizers": {"blocks": {"kind": "Lion"}, "head": None}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_fit_is_refused(tmp_path, new_model, change):
    new_model().save(tmp_path)
    content, tensors = checkpoint.load(tmp_path)
    content["model"] |= change
    checkpoint.save(tmp_path, content, tensors)
    with pytest.raises(InputError):
        noprop.load(tmp_path)


def test_a_missing_tensor_is_refused(tmp_path, new_model):
    new_model().save(tmp_path)
    content, tensors = checkpoint.load(tmp_path)
    del tensors["blocks.hx.weight_m"]
    checkpoint.save(tmp_path, content, tensors)
    with pytest.raises(InputError, match="hx.weight_m"):
        noprop.load(tmp_path)


def test_metrics_survive_a_cut_line_and_rewind(tmp_path):
    for epoch in (1, 2, 3):
        metrics.append(tmp_path, {"epoch": epoch, "loss": 0.5})
    path = tmp_path / metrics.NAME
    path.write_text(path.read_text() + '{"epoch": 4, "lo')
    assert [line["epoch"] for line in metrics.read(tmp_path)] == [1, 2, 3]
    metrics.rewind(tmp_path, 2)
    metrics.append(tmp_path, {"epoch": 3})
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2, 3]


# false records, with sums that fit


def rewritten(folder, change):
    """Saves the record that `change` made of the saved one, with its sum."""
    path = folder / checkpoint.RECORD
    record = json.loads(path.read_text())
    del record["sha256"]
    change(record)
    path.write_text(json.dumps(record | {"sha256": checkpoint._digest(record)}))


@pytest.mark.parametrize("kind", ["absolute", "up", "other", "number", "missing"])
def test_the_tensors_lie_in_the_runs_own_folder(tmp_path, kind):
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run, other):
        checkpoint.save(folder, {"name": "old"}, OLD)
    name = json.loads((run / checkpoint.RECORD).read_text())["tensors"]["file"]
    names = {"absolute": str(other / name), "up": f"../other/{name}", "other": "x", "number": 3}

    def change(record):
        record["tensors"]["file"] = names.get(kind)

    rewritten(run, change)
    with pytest.raises(InputError, match="must name a file of tensors in"):
        checkpoint.load(run)


def test_a_nested_record_is_corrupt(tmp_path):
    checkpoint.save(tmp_path, {"name": "old"}, OLD)
    for text in ("[" * 100_000, '{"sha256": ' + "[" * 100_000 + "]" * 100_000 + "}"):
        (tmp_path / checkpoint.RECORD).write_text(text)
        with pytest.raises(InputError, match="corrupt"):
            checkpoint.load(tmp_path)


def test_tensors_that_are_none_are_corrupt(tmp_path):
    checkpoint.save(tmp_path, {"name": "old"}, OLD)
    path = next(tmp_path.glob("tensors-*"))
    for data in (
        b"",
        b"\xff" * 100,
        b"\x02\0\0\0\0\0\0\0{}" + b"more",
        b"\x40" + b"\0" * 7 + b"{" * 64,
    ):
        path.write_bytes(data)
        rewritten(
            tmp_path, lambda r, d=data: r["tensors"].update(sha256=hashlib.sha256(d).hexdigest())
        )
        with pytest.raises(InputError, match="corrupt: it holds no tensors"):
            checkpoint.load(tmp_path)


def test_sizes_are_compared_before_memory_is_asked_for(tmp_path, new_model, monkeypatch):
    new_model().save(tmp_path)
    content, tensors = checkpoint.load(tmp_path)
    for name, layer in content["model"]["plan"]["layers"]:
        layer["features"] = 20_000 if name != "logits" else 3
    checkpoint.save(tmp_path, content, tensors)
    monkeypatch.setattr(
        noprop.loading.nk, "DenoisingBlocks", lambda *args, **options: pytest.fail()
    )
    with pytest.raises(InputError, match=r"must have blocks.hx.weight \[3, 20000, 6\], got"):
        noprop.load(tmp_path)


@pytest.mark.parametrize("name", ["blocks.updates", "blocks.draws", "head.updates"])
def test_counters_count_from_0(tmp_path, new_model, name):
    new_model().save(tmp_path)
    content, tensors = checkpoint.load(tmp_path)
    tensors[name] = tensors[name] - 5
    checkpoint.save(tmp_path, content, tensors)
    with pytest.raises(InputError, match=f"must have {name} from 0 on, got -5"):
        noprop.load(tmp_path)
