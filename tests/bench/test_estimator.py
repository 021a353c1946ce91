"""The comparison of classifiers: every contender learns, and the table names the best."""

import importlib.util
import json

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)
if not all(map(importlib.util.find_spec, ("sklearn", "typer", "rich"))):
    pytest.skip("the trainer needs its extra", allow_module_level=True)

import noprop
from bench.report.whole_rows import estimator_rows
from bench.whole import estimator


def test_command_measures_and_tells(tmp_path, capsys, monkeypatch):
    quick = lambda seed: noprop.NoPropClassifier(hidden=16, epochs=150, random_state=seed)  # noqa: E731
    monkeypatch.setitem(estimator.CONTENDERS, "ours", quick)
    out, before = tmp_path / "estimator.jsonl", torch.get_num_threads()
    chosen = ["ours", "logistic_regression"]
    arguments = ["--quick", "--contender", *chosen, "--threads", "1", "--out", str(out)]
    try:
        assert estimator.main(arguments) == 0
    finally:
        torch.set_num_threads(before)
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert [line["contender"] for line in lines] == chosen
    for line in lines:
        assert line["shape"] == "iris" and line["accuracy"] > 0.85 and line["log_loss"] < 0.6
        assert line["fit_seconds"] > 0 and line["predict_seconds"] > 0
        assert (line["train_rows"], line["test_rows"]) == (120, 30) and line["machine"]["cpu"]
    assert "logistic regression" in capsys.readouterr().out


@pytest.mark.parametrize("name", estimator.CONTENDERS)
def test_every_contender_is_made_anew_from_its_seed(name):
    one, other = estimator.CONTENDERS[name](1), estimator.CONTENDERS[name](2)
    assert one is not other and hasattr(one, "predict_proba")


def test_the_table_has_a_star_at_the_best_of_a_column():
    base = {"kind": "estimator", "shape": "iris", "precision": "float32"}
    worse = {"accuracy": 0.9, "log_loss": 0.5, "fit_seconds": 0.1, "predict_seconds": 0.02}
    better = {"accuracy": 0.95, "log_loss": 0.4, "fit_seconds": 2.0, "predict_seconds": 0.01}
    rows = estimator_rows(
        [base | worse | {"contender": "mlp"}, base | better | {"contender": "a_b"}]
    )
    assert rows[1] == ("iris", "mlp", "90.00%", "0.5000", "0.1*", "0.02")
    assert rows[2] == ("iris", "a b", "95.00%*", "0.4000*", "2", "0.01*")
