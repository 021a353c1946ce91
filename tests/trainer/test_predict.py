"""noprop predict and noprop export: a run's answers in files, by the names of classes."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import noprop
from support.cli import call

QUICK = ["--hidden", "32", "--T", "3", "--batch-size", "32", "--epochs", "60", "--lr", "0.01"]
NAMES = ("ant", "bee, wild", "cat")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A run of a table of numbers with named columns and classes, and rows without labels whose
    columns stand otherwise.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    pytest.importorskip("pandas")
    values = np.random.default_rng(0)
    y = values.integers(0, 3, 200)
    x = values.normal(size=(200, 3)) + 4 * np.eye(3)[y]
    for path, columns, labelled in (
        ("train.csv", (0, 1, 2), True),
        ("rows.csv", (2, 0, 1), False),
    ):
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([f"c{i}" for i in columns] + ["kind"] * labelled)
            for row, label in zip(x, y, strict=True):
                writer.writerow([row[i] for i in columns] + [NAMES[label]] * labelled)
    call("train", "--data", "train.csv", "--label", "kind", *QUICK, "--out", "run")
    return x, y


def test_labels_and_probabilities_by_name_in_the_order_of_the_rows(table):
    x, y = table
    model = noprop.load("run")
    answer = model.predict(x)
    assert np.mean(answer.labels.numpy() == y) > 0.9 and model.classes_ == NAMES
    text = call("predict", "run", "rows.csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["label", "p(ant)", "p(bee, wild)", "p(cat)"]
    assert [row["label"] for row in rows] == answer.names
    found = torch.tensor([[float(row[f"p({name})"]) for name in NAMES] for row in rows])
    torch.testing.assert_close(found, answer.probs, rtol=1e-5, atol=1e-6)
    call("predict", "run", "rows.csv", "--out", "answers.jsonl")
    lines = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == answer.names
    assert all(tuple(line["probabilities"]) == NAMES for line in lines)
    assert (
        call("predict", "run", "rows.csv", "--format", "jsonl").stdout
        == Path("answers.jsonl").read_text()
    )
    call("predict", "run", "rows.csv", "--out", "answers.csv")
    assert Path("answers.csv").read_text() == text


def test_mistakes_of_predict(table, tmp_path):
    assert "rows.txt" in call("predict", "run", "rows.txt", code=1).stderr
    assert "model.json" in call("predict", "none", "rows.csv", code=1).stderr
    text = call("predict", "run", "rows.csv", "--format", "xml", code=2).stderr
    assert "'xml' is not available, there is: csv, jsonl" in text
    lines = Path("rows.csv").read_text().splitlines()
    (tmp_path / "less.csv").write_text("\n".join(line.rsplit(",", 1)[0] for line in lines))
    assert "c1" in call("predict", "run", "less.csv", code=1).stderr
    (tmp_path / "text.csv").write_text("\n".join([*lines[:3], "1,2,much"]))
    text = call("predict", "run", "text.csv", "--out", "none.csv", code=1).stderr
    assert "c1" in text and not (tmp_path / "none.csv").exists()


def test_a_torch_program(table):
    x, _ = table
    outcome = call("export", "run", "--torch", "run.pt2").stderr
    assert "x (B, 3) float32 -> labels (B,), probs (B, 3)" in outcome
    files = {"classes.json": ""}
    program = torch.export.load("run.pt2", extra_files=files)
    assert tuple(json.loads(files["classes.json"])) == NAMES
    labels, probs = program.module()(torch.from_numpy(x).float())
    answer = noprop.load("run").predict(x.astype(np.float32))
    assert torch.equal(labels, answer.labels)
    torch.testing.assert_close(probs, answer.probs, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_an_onnx_program(table):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    runtime = pytest.importorskip("onnxruntime")
    x, _ = table
    call("export", "run", "--onnx", "run.onnx")
    session = runtime.InferenceSession("run.onnx")
    classes = session.get_modelmeta().custom_metadata_map["classes"]
    assert tuple(json.loads(classes)) == NAMES
    for rows in (x, x[:1]):
        labels, probs = session.run(None, {"x": rows.astype(np.float32)})
        answer = noprop.load("run").predict(rows.astype(np.float32))
        assert labels.tolist() == answer.labels.tolist()
        np.testing.assert_allclose(probs, answer.probs.numpy(), rtol=1e-4, atol=1e-5)


def test_export_asks_for_one_file(table):
    for files in ([], ["--onnx", "a", "--torch", "b"]):
        assert (
            "give one of --onnx FILE and --torch FILE"
            in call("export", "run", *files, code=2).stderr
        )


def test_a_model_that_recorded_no_rows_is_told(tmp_path, new_model, toy_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = new_model()
    model.save("model")
    assert "did not record what a row is" in call("predict", "model", toy_file, code=1).stderr
