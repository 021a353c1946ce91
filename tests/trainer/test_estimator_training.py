"""NoPropClassifier: what a training follows from."""

import numpy as np
import pytest

import noprop
from noprop.distinct import distinct
from support.estimators import IRIS, NAMES, assert_same, differ, fitted, small

# the order of rows, repetitions and weights


def test_the_order_of_the_rows_and_their_type_change_no_bit():
    X = IRIS.astype(np.float32)
    weight = np.random.default_rng(1).random(150)
    want, order = fitted(X, sample_weight=weight), np.random.default_rng(0).permutation(150)
    assert_same(fitted(X[order], NAMES[order], weight[order]), want)
    assert_same(fitted(X.astype(np.float64), sample_weight=weight), want)
    assert differ(fitted(X, sample_weight=weight[::-1]), want)


@pytest.mark.parametrize("class_weight", [None, "balanced", {"setosa": 0.3, "virginica": 2}])
def test_a_weight_is_a_number_of_repetitions(class_weight):
    count = np.random.default_rng(0).integers(0, 4, 150)
    options = {"class_weight": class_weight, "epochs": None, "batch_size": 16}
    weighted = fitted(sample_weight=count, **options)
    repeated = fitted(IRIS.repeat(count, 0), NAMES.repeat(count), **options)
    assert_same(weighted, repeated)
    assert weighted.n_iter_ == repeated.n_iter_


def test_class_weights_multiply_those_of_rows():
    weight = np.random.default_rng(0).integers(1, 4, 150)
    of_class = {"setosa": 0.25, "versicolor": 4, "virginica": 1}
    both = fitted(sample_weight=weight, class_weight=of_class, weight_decay=0.1)
    # powers of two, so that the products are exact
    product = weight * [of_class[name] for name in NAMES]
    assert_same(fitted(sample_weight=product, weight_decay=0.1), both)
    unlike = {"setosa": 5, "versicolor": 1, "virginica": 1}
    assert differ(fitted(class_weight=unlike), fitted())
    nothing = np.zeros_like(IRIS)
    heavy = fitted(nothing, class_weight={"versicolor": 9}, epochs=150, lr=1e-2)
    assert (heavy.predict(nothing) == "versicolor").all()


def test_distinct_rows():
    X = np.array([[0.0, 1], [-0.0, 1], [0, 1], [2, 3], [4, 5]])
    label, weight = np.array([0, 0, 1, 0, 0]), np.array([1.0, 2, 4, 8, 0])
    at, sums = distinct(X, label, weight)
    assert sorted(zip(at.tolist(), sums.tolist(), strict=True)) == [(0, 3.0), (2, 4.0), (3, 8.0)]
    order = np.array([4, 3, 2, 1, 0])
    again, same = distinct(X[order], label[order], weight[order])
    assert np.array_equal(X[order][again] + 0.0, X[at]) and np.array_equal(same, sums)


@pytest.mark.parametrize("units", [np.ones(300), np.logspace(-3, 3, 300)])
def test_decay_follows_from_the_directions_whatever_the_units_of_the_columns(units, monkeypatch):
    random, seen = np.random.default_rng(0), []
    X, y = random.normal(size=(600, 300)) * units, np.arange(600) % 3
    run = noprop.estimator.fit
    monkeypatch.setattr(
        "noprop.estimator.fit", lambda *a, **k: (seen.append(k["early_weight_decay"]), run(*a, **k))
    )
    fitted(X, y, epochs=1)
    assert seen == [2.0]  # 12 * 300 / 600, at most 2


# the seed, going on, early stopping


def test_random_state_decides_all():
    want = fitted()
    assert_same(fitted(), want)
    assert differ(fitted(random_state=1), want)
    drawn = [fitted(random_state=np.random.RandomState(3)) for _ in range(2)]
    assert_same(*drawn)
    assert differ(fitted(random_state=None), fitted(random_state=None))
    state = np.random.RandomState(3)
    assert differ(fitted(random_state=state), fitted(random_state=state))


def test_warm_start_goes_on():
    options = {"lr_schedule": "constant", "weight_decay": 0.1}
    whole = fitted(epochs=5, **options)
    parts = fitted(epochs=2, warm_start=True, **options)
    parts.set_params(epochs=3).fit(IRIS, NAMES)
    assert_same(parts, whole)
    assert parts.n_iter_ == 5 and len(parts.loss_curve_) == 5
    assert differ(fitted(epochs=2).set_params(epochs=3).fit(IRIS, NAMES), whole)
    parts.set_params(lr=0.1, weight_decay=2.0).fit(IRIS[NAMES != "setosa"], NAMES[50:])
    assert parts.model_.blocks.optimizer.lr == 0.1 and parts.n_iter_ == 8
    with pytest.raises(ValueError, match="must be of the classes .* got .'lily'. too"):
        parts.fit(IRIS, np.where(NAMES == "setosa", "lily", NAMES))
    with pytest.raises(ValueError, match="fit: hidden must stay 8 where the training goes on, got"):
        parts.set_params(hidden=9).fit(IRIS, NAMES)


def test_partial_fit_trains_an_epoch_on_what_it_is_given():
    names = np.unique(NAMES)
    model = small()
    with pytest.raises(ValueError, match="partial_fit: classes must be all labels"):
        model.partial_fit(IRIS[:40], NAMES[:40])
    model.partial_fit(IRIS[:40], NAMES[:40], names)  # one class alone
    assert model.classes_.tolist() == names.tolist() and model.n_iter_ == 1
    decay = model.model_.blocks.optimizer.weight_decay
    assert decay == noprop.defaults.default_weight_decay(40)
    for _ in range(60):
        for part in np.array_split(np.random.default_rng(0).permutation(150), 3):
            model.partial_fit(IRIS[part], NAMES[part])
    assert model.n_iter_ == 181 and model.score(IRIS, NAMES) > 0.9
    decay = model.model_.blocks.optimizer.weight_decay
    assert decay == noprop.defaults.default_weight_decay(9040)
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        model.partial_fit(IRIS, NAMES, ["setosa", "virginica"])
    with pytest.raises(ValueError, match="early_stopping must be False"):
        small(early_stopping=True).partial_fit(IRIS, NAMES, names)
    with pytest.raises(ValueError, match="class_weight must not be 'balanced'"):
        small(class_weight="balanced").partial_fit(IRIS, NAMES, names)
    model.fit(IRIS, NAMES)
    assert_same(model, fitted())


def test_partial_fit_takes_weights():
    names, weight = np.unique(NAMES), np.random.default_rng(0).integers(0, 3, 150)
    one = small().partial_fit(IRIS, NAMES, names, sample_weight=weight)
    same = small().partial_fit(IRIS.repeat(weight, 0), NAMES.repeat(weight), names)
    assert_same(one, same)


def test_early_stopping_keeps_the_best_epoch():
    options = {"early_stopping": True, "validation_fraction": 0.3, "lr": 1e-2}
    options["lr_schedule"] = "constant"
    model = fitted(epochs=100, n_iter_no_change=3, **options)
    scores = model.validation_scores_
    best = int(np.argmax(scores))
    assert len(scores) == model.n_iter_ < 100 and best < model.n_iter_ - 1
    assert model.best_validation_score_ == scores[best]
    assert max(scores[-3:]) <= max(scores[:-3]) + 1e-4
    # the weights of that epoch, as if the training had ended there
    assert_same(fitted(epochs=best + 1, n_iter_no_change=100, **options), model)
    assert fitted().validation_scores_ is None


def test_early_stopping_holds_out_a_part_of_each_class():
    options = {"early_stopping": True, "validation_fraction": 0.5, "epochs": 2}
    X = IRIS + 1e-3 * np.arange(150)[:, None]  # no row twice
    weight = np.where(NAMES == "setosa", 2.0, 1.0)
    scores = fitted(X, sample_weight=weight, **options).validation_scores_
    assert all(abs(score * 100 - round(score * 100)) < 1e-9 for score in scores)  # of 25 2 + 50
    with pytest.raises(ValueError, match="The least populated class"):
        fitted(X[:51], NAMES[:51], **options)


def test_verbose_tells_each_epoch(capsys):
    fitted(verbose=True, epochs=2, early_stopping=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("epoch 1: loss ")
    assert "validation accuracy " in lines[1]
    fitted(epochs=1)
    assert capsys.readouterr().out == ""
