"""NoPropClassifier: a NoProp network as a classifier of scikit-learn."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import noprop_kernels as nk
from noprop_kernels.check import check_number, check_positive

from . import variants
from .defaults import LR, default_epochs, default_weight_decay, default_weight_decays
from .directions import directions
from .epochs import Epoch, Progress
from .errors import extra
from .estimator_model import new_model, seed_of
from .estimator_rows import Rows, rows_of
from .patience import Patience
from .probabilities import probabilities
from .training import LR_SCHEDULES, fit

with extra("sklearn"):
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data

NUMBERS = (np.float64, np.float32)
NETWORK = ("hidden", "T", "variant", "precision", "backend")  # what a trained model keeps


class NoPropClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of scikit-learn: a NoProp network of dense blocks on normalised features.

    X are finite numbers (n, F), dense: an array, a table of pandas, lists. y are labels of any kind
    that scikit-learn takes. Where several rows are equal, features and label, they are trained as
    one row of the sum of their weights, in an order that their contents decide: rows that are given
    in another order, or often in place of once with a weight, make the same model, bit for bit. So
    does a float32 X in place of the same numbers in float64.

    An answer draws nothing and depends on its row alone. `predict` is the argmax of
    `predict_proba`, which `noprop.Model.predict` calls probs.

    Args:
        hidden: width of the hidden layers of a block.
        T: number of blocks of the variant "dt"; "ct" and "fm" have one for all t.
        variant: "dt", "ct" or "fm".
        epochs: passes over the rows in `fit`; None: enough for their number.
        batch_size: rows of a step.
        lr: AdamW's learning rate.
        lr_schedule: "cosine", by which it falls to 0 over `epochs`, or "constant".
        weight_decay: AdamW's; None: the stronger the fewer rows, at first also the more directions
            they vary in.
        precision: "float32" or "bfloat16", as of DenoisingBlocks.
        class_weight: None, "balanced", or a number for each label, by which the weights of its rows
            are multiplied.
        early_stopping: whether `fit` holds out a part of the rows, stops where accuracy on them
            (weighted as training is) no longer grows, and goes back to the best epoch.
        validation_fraction: the part that is held out, of each class.
        n_iter_no_change: epochs in a row without a gain of more than `tol` that end the training.
        tol: that gain.
        warm_start: whether `fit` goes on with the model of the one before, by `epochs` more, as
            `noprop train --resume` does; the rate falls over all of them.
        random_state: a number is the seed of weights, noise and order; a RandomState, or None,
            gives one.
        verbose: whether a line is printed after each epoch.
        device: "auto" (a GPU that the kernels run on, else the CPU), "cpu", "cuda" or "cuda:N".
        backend: a backend to force; None: the best that runs there.

    Attributes:
        classes_: the labels, sorted.
        n_features_in_, feature_names_in_: as scikit-learn has them; names where X had them.
        model_: the noprop.Model, whose classes are the labels' texts.
        n_iter_: epochs that were trained, those before a warm start included.
        loss_curve_: after each epoch the mean over blocks and rows of |u_hat - u_y|^2, of "ct" and
            "fm" the loss.
        validation_scores_, best_validation_score_: accuracy on the rows held out; None without.
    """

    def __init__(
        self,
        *,
        hidden: int = 256,
        T: int = 10,
        variant: str = "dt",
        epochs: int | None = None,
        batch_size: int = 128,
        lr: float = LR,
        lr_schedule: str = "cosine",
        weight_decay: float | None = None,
        precision: str = "float32",
        class_weight: dict | str | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
        device: str = "auto",
        backend: str | None = None,
    ) -> None:
        self.hidden = hidden
        self.T = T
        self.variant = variant
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.lr_schedule = lr_schedule
        self.weight_decay = weight_decay
        self.precision = precision
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device
        self.backend = backend

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "NoPropClassifier":
        """Trains a new network; with `warm_start` the present one.

        Args:
            X: (n, F) finite numbers.
            y: (n,) labels.
            sample_weight: (n,) numbers at least 0, one above. Only their ratios matter to the loss;
                their sum, where it is more than the distinct rows, is the number of rows that
                epochs and weight decay follow from.

        Returns:
            Itself.

        Raises:
            ValueError: an argument does not fit.
            TypeError: X is sparse; .toarray() makes it dense.
        """
        self._check("fit")
        goes_on = self.warm_start and hasattr(self, "model_")
        X, y = validate_data(self, X, y, dtype=NUMBERS, reset=not goes_on)
        check_classification_targets(y)
        classes = self.classes_ if goes_on else np.unique(y)
        rows = rows_of("fit", X, y, sample_weight, self.class_weight, classes)
        seed = self._seed if goes_on else seed_of(self.random_state)
        patience = None
        if self.early_stopping:
            rows, patience = self._hold_out(rows, seed)
        epochs = self.epochs
        if epochs is None:
            steps = default_epochs(rows.count, self.batch_size)
            steps *= math.ceil(rows.count / self.batch_size)
            epochs = math.ceil(steps / math.ceil(len(rows.X) / self.batch_size))
        if goes_on:
            self._same_network("fit")
        else:
            self._begin(classes, seed)
        columns = rows.X.shape[1]  # each in units of its own
        vary = directions(torch.from_numpy(rows.X), columns)
        decays = default_weight_decays(rows.count, vary)
        self._train(rows, decays, epochs, self.lr_schedule, patience)
        return self

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> "NoPropClassifier":
        """Trains one epoch on these rows, at the constant rate `lr`.

        The first call's rows decide the normalisation. With weight_decay None it follows from the
        rows of all calls.

        Args:
            X, y, sample_weight: as of `fit`.
            classes: all labels; needed in the first call.

        Returns:
            Itself.

        Raises:
            ValueError, TypeError: as of `fit`.
        """
        op = "partial_fit"
        self._check(op)
        if self.early_stopping:
            raise ValueError(f"{op}: early_stopping must be False, since no rows are held out")
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"{op}: class_weight must not be {self.class_weight!r}, since a call has not all "
                "rows; give the numbers of compute_class_weight, or sample_weight"
            )
        first = not hasattr(self, "model_")
        if first and classes is None:
            raise ValueError(f"{op}: classes must be all labels in the first call, got None")
        X, y = validate_data(self, X, y, dtype=NUMBERS, reset=first)
        check_classification_targets(y)
        known = self.classes_ if classes is None else np.unique(classes)
        if not first and not np.array_equal(known, self.classes_):
            raise ValueError(
                f"{op}: classes must be those of the first call, {self.classes_}, got {known}"
            )
        rows = rows_of(op, X, y, sample_weight, self.class_weight, known)
        if first:
            self._begin(known, seed_of(self.random_state))
        else:
            self._same_network(op)
        self._seen += rows.count
        decay = default_weight_decay(self._seen)
        self._train(rows, (decay, decay), 1, "constant", None)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, M) float64 of the classes, in the order of `classes_`.

        Raises:
            NotFittedError: nothing was trained yet.
            ValueError, TypeError: X does not fit.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=NUMBERS, reset=False)
        return probabilities(self.model_, X)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """log of `predict_proba`; arguments and errors as there."""
        with np.errstate(divide="ignore"):  # a probability may be 0
            return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels, the likeliest by `predict_proba`; arguments and errors as there."""
        probs = self.predict_proba(X)
        return self.classes_[probs.argmax(axis=1)]

    def save(self, folder: str | Path) -> None:
        """Writes the model as a run's folder, for `noprop.load` and `noprop predict`.

        Raises:
            NotFittedError: nothing was trained yet.
            ImportError, OSError: as of `noprop.Model.save`.
        """
        check_is_fitted(self)
        self.model_.save(folder)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __getstate__(self) -> dict[str, Any]:
        """A model on a GPU is pickled, and comes back, on the CPU, which every machine has."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        if "model_" in state and state["model_"].device.type != "cpu":
            state = state | {"model_": copy.deepcopy(state["model_"]).to("cpu")}
        return state

    # the parts of a training

    def _check(self, op: str) -> None:
        """
        Raises:
            ValueError: a parameter does not fit; those of the network raise where it is made.
        """
        for name in ("hidden", "T", "batch_size", "n_iter_no_change"):
            check_positive(op, name, getattr(self, name))
        if self.epochs is not None:
            check_positive(op, "epochs", self.epochs)
        check_number(op, "lr", self.lr, "be above 0", lambda value: value > 0)
        check_number(op, "tol", self.tol, "be at least 0", lambda value: value >= 0)
        between = "be above 0 and below 1", lambda value: 0 < value < 1
        check_number(op, "validation_fraction", self.validation_fraction, *between)
        if self.weight_decay is not None:
            rule = "be at least 0", lambda value: value >= 0
            check_number(op, "weight_decay", self.weight_decay, *rule)
        for name, known in (("variant", [*variants.VARIANTS]), ("lr_schedule", [*LR_SCHEDULES])):
            if (got := getattr(self, name)) not in known:
                raise ValueError(f"{op}: {name} must be one of {known}, got {got!r}")

    def _begin(self, classes: np.ndarray, seed: int) -> None:
        """An untrained model."""
        network = {name: getattr(self, name) for name in NETWORK}
        features = getattr(self, "n_features_in_")  # noqa: B009  # scikit-learn sets it
        names = getattr(self, "feature_names_in_", None)
        columns = None if names is None else tuple(names)
        self.model_ = new_model(classes, features, columns, seed, self.device, **network)
        self.classes_ = classes
        self.loss_curve_: list[float] = []
        self._seed, self._progress, self._seen, self._network = seed, Progress(), 0, network

    def _same_network(self, op: str) -> None:
        """
        Raises:
            ValueError: a parameter of the network was changed since the first training.
        """
        for name, value in self._network.items():
            if (got := getattr(self, name)) != value:
                text = f"{name} must stay {value!r} where the training goes on, got {got!r}"
                raise ValueError(f"{op}: {text}")

    def _hold_out(self, rows: Rows, seed: int) -> tuple[Rows, Patience]:
        """The rows to train on, and the others to stop by."""
        kept, held = train_test_split(
            np.arange(len(rows.X)),
            test_size=self.validation_fraction,
            stratify=rows.label,
            random_state=seed,
        )
        patience = Patience(rows.part(np.array(held)), self.n_iter_no_change, self.tol)
        return rows.part(np.array(kept)), patience

    def _train(
        self,
        rows: Rows,
        decays: tuple[float, float],
        epochs: int,
        lr_schedule: str,
        patience: Patience | None,
    ) -> None:
        """So many epochs more; `decays` are weight_decay's default, at first and at the end."""
        model, progress = self.model_, self._progress
        early, late = decays if self.weight_decay is None else (self.weight_decay,) * 2
        assert isinstance(model.blocks, nk.DenoisingBlocks) and model.classes_  # by _begin
        model.blocks.optimizer = nk.AdamW(lr=self.lr, weight_decay=late)

        def after_epoch(epoch: Epoch) -> None:
            parts = epoch.loss if epoch.error[0] is None else epoch.error
            self.loss_curve_.append(float(np.mean([part for part in parts if part is not None])))
            line = f"epoch {epoch.epoch}: loss {self.loss_curve_[-1]:.5f}"
            if patience is not None:
                line += f", validation accuracy {patience.look(model):.2%}"
            if self.verbose:
                print(line, flush=True)

        fit(
            model,
            rows.X,
            np.array(model.classes_)[rows.label],
            sample_weight=None if (rows.weight == rows.weight[0]).all() else rows.weight,
            epochs=progress.epoch + epochs,
            batch_size=self.batch_size,
            seed=self._seed,
            lr_schedule=lr_schedule,
            early_weight_decay=None if early == late else early,
            progress=progress,
            stop=lambda: patience is not None and patience.over,
            on_epoch=after_epoch,
        )
        self.n_iter_ = progress.epoch
        self.validation_scores_ = self.best_validation_score_ = None
        if patience is not None:
            patience.restore(model)
            self.validation_scores_, self.best_validation_score_ = patience.scores, patience.best
