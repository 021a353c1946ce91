"""NoPropClassifier in scikit-learn's pipelines, searches and calibrations."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import AdaBoostClassifier, VotingClassifier
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline

import noprop

X, Y = load_iris(return_X_y=True)
Y = np.array(["setosa", "versicolor", "virginica"])[Y]


@pytest.fixture
def quick():
    options = {"hidden": 16, "T": 3, "epochs": 40, "batch_size": 32, "lr": 1e-2}
    return noprop.NoPropClassifier(**options, weight_decay=0.01, random_state=0)


def test_a_pipeline(quick):
    pipeline = make_pipeline(PCA(2), quick).fit(X, Y, nopropclassifier__sample_weight=np.ones(150))
    assert pipeline.score(X, Y) > 0.9
    assert pipeline[:-1].transform(X).shape == (150, 2)


def test_a_search_takes_its_parameters(quick):
    search = GridSearchCV(quick, {"hidden": [4, 8], "class_weight": [None, "balanced"]}, cv=2)
    search.fit(X, Y)
    assert search.best_score_ > 0.85
    assert search.best_estimator_.model_.blocks.hx.weight.shape[1] == search.best_params_["hidden"]


def test_cross_validation(quick):
    assert cross_val_score(quick, X, Y, cv=3).mean() > 0.9
    probs = cross_val_predict(quick, X, Y, cv=3, method="predict_proba")
    assert np.mean(np.unique(Y)[probs.argmax(1)] == Y) > 0.9


@pytest.mark.parametrize("method", ["sigmoid", "isotonic", "temperature"])
def test_calibration(quick, method):
    calibrated = CalibratedClassifierCV(quick, method=method, cv=2).fit(X, Y)
    assert calibrated.score(X, Y) > 0.9
    assert np.abs(calibrated.predict_proba(X).sum(1) - 1).max() < 1e-6


def test_boosting_whose_weights_add_up_to_1(quick):
    boosted = AdaBoostClassifier(quick, n_estimators=2, random_state=0).fit(X, Y)
    assert boosted.score(X, Y) > 0.9


def test_votes_and_importances(quick):
    votes = VotingClassifier([("one", quick), ("other", quick)], voting="soft").fit(X, Y)
    assert votes.score(X, Y) > 0.9
    found = permutation_importance(quick.fit(X, Y), X, Y, n_repeats=2, random_state=0)
    assert found.importances_mean.argmax() >= 2  # a petal's


# a search whose score is the threads that the kernels use in its worker
SEARCH = """
import json, os
import joblib
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
import noprop

def share(model, X, y):
    from noprop_kernels.backends.cpu import extension
    model.predict(X)
    return extension.threads() + 1000 * (os.getpid() != parent)

if __name__ == "__main__":
    parent = os.getpid()
    model = noprop.NoPropClassifier(hidden=4, T=2, epochs=1, random_state=0)
    search = GridSearchCV(model, {"hidden": [4, 5]}, scoring=share, n_jobs=2, cv=2, refit=False)
    search.fit(*load_iris(return_X_y=True))
    scores = [search.cv_results_[f"split{i}_test_score"].tolist() for i in (0, 1)]
    print(json.dumps([joblib.cpu_count(), sorted(set(sum(scores, [])))]))
"""
LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOKY_MAX_CPU_COUNT")


def test_each_worker_of_a_search_has_its_share_of_the_cores():
    """joblib's workers have OMP_NUM_THREADS = cores // n_jobs, where the user has set none."""
    env = {name: value for name, value in os.environ.items() if name not in LIMITS}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SEARCH], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    cores, threads = json.loads(done.stdout)
    assert threads == [1000 + max(1, cores // 2)]
