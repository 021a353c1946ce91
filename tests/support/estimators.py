"""Small classifiers of scikit-learn's kind, on the irises."""

import numpy as np
from sklearn.datasets import load_iris

import noprop

SMALL = {"hidden": 8, "T": 3, "epochs": 6, "batch_size": 32, "random_state": 0}
IRIS, SPECIES = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[SPECIES]


def small(**options):
    return noprop.NoPropClassifier(**SMALL | options)


def fitted(X=IRIS, y=NAMES, sample_weight=None, **options):
    return small(**options).fit(X, y, sample_weight)


def assert_same(one, other):
    """The same model, bit for bit."""
    a, b = one.model_.tensors(), other.model_.tensors()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].equal(b[name]), name
    assert np.array_equal(one.predict_proba(IRIS), other.predict_proba(IRIS))


def differ(one, other):
    return not one.model_.blocks.hx.weight.equal(other.model_.blocks.hx.weight)
