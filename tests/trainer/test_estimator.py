"""NoPropClassifier: its data, its answers, and what a training follows from."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pandas
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import noprop
from support.cli import call
from support.estimators import IRIS, NAMES, SPECIES, assert_same, fitted, small

# what it learns, and what it answers


@pytest.mark.parametrize("variant", ["dt", "ct", "fm"])
def test_every_variant_learns(variant):
    model = fitted(variant=variant, epochs=150, hidden=32, lr=1e-2)
    assert model.score(IRIS, NAMES) > 0.93
    assert model.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert len(model.loss_curve_) == model.n_iter_ == 150
    assert model.loss_curve_[-1] < model.loss_curve_[0]


def test_the_defaults_follow_from_the_rows():
    model = noprop.NoPropClassifier(hidden=8, T=2, random_state=0).fit(IRIS, NAMES)
    assert model.n_iter_ == noprop.defaults.default_epochs(150, 128)
    decay = noprop.defaults.default_weight_decay(150)
    assert model.model_.blocks.optimizer.weight_decay == decay
    # two hundred rows of which 4 are distinct: as many steps, and no stronger decay
    few = np.tile([[0.0, 0], [0, 1], [1, 0], [1, 1]], (50, 1))
    model = noprop.NoPropClassifier(hidden=8, T=2).fit(few, few[:, 0])
    assert model.n_iter_ == 2 * noprop.defaults.default_epochs(200, 128)
    decay = noprop.defaults.default_weight_decay(200)
    assert model.model_.blocks.optimizer.weight_decay == decay


LABELS = {
    "texts": NAMES,
    "objects": NAMES.astype(object),
    "numbers": SPECIES * 3 - 5,
    "whole floats": SPECIES + 1.0,
    "bools": SPECIES > 0,
    "bytes": SPECIES.astype(np.uint8),
    "a list": NAMES.tolist(),
    "a series": pandas.Series(NAMES),
    "one class": np.ones(150),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_come_back(kind):
    y = LABELS[kind]
    model = fitted(y=y, epochs=150, lr=1e-2)
    answer = model.predict(IRIS)
    assert answer.dtype == np.asarray(y).dtype
    assert np.mean(answer == np.asarray(y)) > 0.9
    assert np.array_equal(model.classes_, np.unique(y))


def test_an_answer_depends_on_its_row_alone_bit_for_bit():
    for variant in ("dt", "ct", "fm"):
        model = fitted(variant=variant)
        probs, order = model.predict_proba(IRIS), np.random.default_rng(0).permutation(150)
        assert probs.dtype == np.float64 and np.abs(probs.sum(1) - 1).max() < 1e-15
        assert np.array_equal(model.predict_proba(IRIS[order]), probs[order])
        for size in (1, 7):
            for first in range(0, 40, size):
                part = slice(first, first + size)
                assert np.array_equal(model.predict_proba(IRIS[part]), probs[part])
        assert np.array_equal(model.predict(IRIS), model.classes_[probs.argmax(1)])
        assert np.array_equal(model.predict_log_proba(IRIS), np.log(probs))
        reference = model.model_.predict(IRIS).probs.numpy()
        assert np.abs(probs - reference).max() < 1e-6


# files, copies, data frames


def test_copies_answer_with_the_same_bits():
    model = fitted()
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert_same(other, model)
        other.set_params(warm_start=True).fit(IRIS, NAMES)  # it can be trained further
        assert other.n_iter_ == 12 and model.n_iter_ == 6
    new = clone(model)
    assert new.get_params() == model.get_params() and not hasattr(new, "model_")
    with pytest.raises(NotFittedError):
        new.predict(IRIS)
    with pytest.raises(NotFittedError):
        new.save("nowhere")


def test_it_saves_as_a_run(tmp_path):
    frame = pandas.DataFrame(IRIS, columns=["a", "b", "c", "d"])
    model = fitted(frame)
    model.save(tmp_path / "run")
    loaded = noprop.load(tmp_path / "run")
    assert loaded.classes_ == ("setosa", "versicolor", "virginica")
    assert loaded.predict(IRIS).probs.equal(model.model_.predict(IRIS).probs)
    frame[["d", "c", "b", "a"]].to_csv(tmp_path / "new.csv", index=False)
    call("predict", tmp_path / "run", tmp_path / "new.csv", "--out", tmp_path / "answers.csv")
    answers = pandas.read_csv(tmp_path / "answers.csv")
    assert np.abs(answers.filter(like="p(").to_numpy() - model.predict_proba(frame)).max() < 1e-6


def test_tables_have_their_names():
    frame = pandas.DataFrame(IRIS, columns=["a", "b", "c", "d"])
    model = fitted(frame)
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert model.n_features_in_ == 4
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame.rename(columns={"a": "z"}))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        assert np.array_equal(model.predict(IRIS), model.predict(frame))
    assert not hasattr(fitted(), "feature_names_in_")


def test_sparse_rows_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match="toarray"):
        small().fit(scipy.sparse.csr_matrix(IRIS), NAMES)
    with pytest.raises(TypeError, match="toarray"):
        fitted().predict(scipy.sparse.csr_array(IRIS))


# what is refused

WRONG = {
    "hidden": (0, "hidden must be"),
    "T": (2.5, "T must be"),
    "variant": ("dx", r"variant must be one of \['dt', 'ct', 'fm'\], got 'dx'"),
    "epochs": (0, "epochs must be"),
    "batch_size": (-1, "batch_size must be"),
    "lr": (0.0, "lr must be above 0, got 0.0"),
    "lr_schedule": ("linear", "lr_schedule must be one of"),
    "weight_decay": (-1.0, "weight_decay must be at least 0"),
    "precision": ("float16", "precision must be"),
    "validation_fraction": (1.0, "validation_fraction must be above 0 and below 1, got 1.0"),
    "n_iter_no_change": (0, "n_iter_no_change must be"),
    "tol": (float("nan"), "tol must be"),
    "random_state": (-1, "random_state must be"),
    "device": ("gpu", "'gpu' is not available"),
    "class_weight": ("even", "class_weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_parameters_that_do_not_fit(name):
    value, text = WRONG[name]
    model = small(**{name: value})  # raises nothing before `fit`
    with pytest.raises(ValueError, match=text):
        model.fit(IRIS, NAMES)
    assert not hasattr(model, "model_")


@pytest.mark.parametrize(
    "weight, text",
    [
        (-np.ones(150), "sample_weight must be at least 0"),
        (np.zeros(150), "one above .not all zero"),
        (np.ones(149), r"sample_weight must be \(150,\)"),
        (np.full(150, np.nan), "Input sample_weight contains NaN"),
    ],
)
def test_weights_that_do_not_fit(weight, text):
    with pytest.raises(ValueError, match=text):
        fitted(sample_weight=weight)


def test_a_backend_is_forced():
    want = fitted(backend="cpu")
    assert_same(fitted(device="cpu"), want)
    other = fitted(backend="reference")
    assert other.model_.blocks.backend == "reference"
    assert np.abs(other.predict_proba(IRIS) - want.predict_proba(IRIS)).max() < 1e-4


WITHOUT = """
import sys
sys.modules["sklearn"] = None
from noprop import *
import noprop
assert "NoPropClassifier" in dir(noprop) and "fit" in dir()
try:
    noprop.NoPropClassifier
except ImportError as error:
    print(error)
"""


def test_without_scikit_learn_the_error_names_the_extra():
    run = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'noprop-kernels[sklearn]'" in done.stdout
    assert sys.modules["sklearn"] is not None
