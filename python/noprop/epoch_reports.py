"""What a run tells of each epoch: lines of metrics.jsonl, figures for people, and a warning."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from . import learned_metrics, metrics, seeds
from .building import Split
from .epochs import Epoch
from .units import Units

if TYPE_CHECKING:
    from .runs import Run

NOT_IN_A_LINE = ("replica", "replicas", "figures", "blocks")  # of an epoch, in metrics.jsonl
WATCHED_STEPS = 5  # of a sampler, for the accuracy after each epoch


@dataclass
class EpochReports:
    """Called after each epoch of a share's training.

    Args:
        run: whose epochs these are.
        split: the data that accuracies are of.
        apart: the share's units where they are not all of the run's, else None.
        on_epoch, say: as of `Run.train`.
    """

    run: "Run"
    split: Split
    apart: Units | None
    on_epoch: Callable[[Epoch, str], None]
    say: Callable[[str], None]
    collapsed: bool = False
    watched: list[tuple[Epoch, float]] = field(default_factory=list)  # of replicas in an epoch

    def __call__(self, epoch: Epoch) -> None:
        run, model = self.run, self.run.model
        line = {key: it for key, it in asdict(epoch).items() if key not in NOT_IN_A_LINE}
        if self.apart is not None:
            line["units"] = list(self.apart)
        if model.missing:
            metrics.append(run.folder, line)
            self.on_epoch(epoch, "")
            return
        name, accuracy = run.watch(self.split, WATCHED_STEPS, epoch.replica)
        learned = learned_metrics.learned_metrics(model)
        epoch.figures[name] = accuracy
        line |= {name: accuracy} | learned
        if run.settings.seeds is not None:
            line["seed"] = run.settings.seeds[epoch.replica]
        metrics.append(run.folder, line)
        self.watched.append((epoch, accuracy))
        if epoch.replica == model.replicas - 1:
            epochs, accuracies = zip(*self.watched, strict=True)
            told = f"{name.replace('_', ' ')} {of_seeds(accuracies)}"
            figures = filter(None, (told, learned_metrics.line(learned)))
            self.on_epoch(mean_epoch(epochs), "  ".join(figures))
            self.watched.clear()
        warning = learned_metrics.collapse(model, learned)
        if warning is not None and not self.collapsed:
            self.say(f"warning: after epoch {epoch.epoch} {warning}")
        self.collapsed = warning is not None


def of_seeds(accuracies: Sequence[float]) -> str:
    """An accuracy, of several seeds their mean and deviation."""
    n, text = len(accuracies), f"{seeds.mean(accuracies):.2%}"
    return text if n == 1 else f"{text} +- {seeds.deviation(accuracies):.2%} over {n} seeds"


def mean_epoch(epochs: Sequence[Epoch]) -> Epoch:
    """An epoch with the mean losses of the replicas."""
    last, names = epochs[-1], ("loss", "error", "head_loss")
    if len(epochs) == 1:
        return last
    means = {name: seeds.mean([getattr(epoch, name) for epoch in epochs]) for name in names}
    return replace(last, **means)
