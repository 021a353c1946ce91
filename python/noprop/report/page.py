"""The page of a report, from a run's model, its records and the test rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import noprop_kernels as nk

from ..errors import extra
from ..model import Model
from ..units import HEAD
from . import pictures
from .answers import Answers
from .paths import Paths
from .pictures import Picture

with extra("report"):
    from jinja2 import Environment, PackageLoader

Json = dict[str, Any]
CONFUSED = 15  # pairs of classes in the table
WORST = 12  # wrong answers that are shown
WAYS = 5  # rows of different classes whose ways are shown, beside a wrong answer


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        caption: what its rows are.
        columns: their names.
        rows: of texts, the first of each its name.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading: text, then pictures, then tables."""

    title: str
    text: str
    pictures: list[Picture]
    tables: list[Table]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def render(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    name: str,
    result: Json,
    lines: Sequence[Json],
    about: Json,
) -> str:
    """The report as one HTML page that loads nothing.

    Args:
        model: of one replica.
        x, y: the test rows (B, F) and their classes (B,).
        name: of the run.
        result: of `Evaluation.to_json`, and what a run adds to it.
        lines: as of `losses_of_all`, of this replica.
        about: the settings and versions, by name.

    Raises:
        ImportError: the extra report is not installed.
        ValueError: the rows do not fit the model.
    """
    answers = Answers.of(model, x, y)
    names = list(model.classes_ or map(str, range(model.blocks.M)))
    sections = [
        *([losses(lines)] if lines else []),
        by_block(result) if result["accuracy_per_block"] is not None else by_steps(result),
        confusion(answers, names),
        calibration(answers, model),
        ways(model, x, answers, names),
        *([wrong_answers(model, x, answers, names)] if answers.worst(1) else []),
        Section("Settings", "", [], [record("Settings and versions", about)]),
    ]
    environment = Environment(
        loader=PackageLoader("noprop", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        name=name, headline=headline(result, answers), sections=sections
    )


def headline(result: Json, answers: Answers) -> list[tuple[str, str]]:
    """The figures above all sections."""
    figures = [("test accuracy", f"{result['test_accuracy']:.2%}")]
    if result["paper_accuracy"] is not None:
        std = result["paper_accuracy_std"]
        term = "the paper's protocol" + ("" if std is None else f", ±\u00a0{std:.2%}")
        figures.append((term, f"{result['paper_accuracy']:.2%}"))
    if result.get("val_accuracy") is not None:
        figures.append(("held-out rows", f"{result['val_accuracy']:.2%}"))
    return [
        *figures,
        ("log-loss", f"{answers.log_loss:.4f}"),
        ("calibration error", f"{answers.calibration_error:.4f}"),
        ("test rows", f"{result['rows']:,}"),
    ]


def losses_of_all(lines: Sequence[Json], T: int) -> list[Json]:
    """Lines of metrics.jsonl, one an epoch, with the losses of all T blocks.

    Of units that were trained apart each has lines of its own; of a unit that was trained again the
    last line counts.
    """
    by_epoch: dict[int, Json] = {}
    for line in lines:
        whole = by_epoch.setdefault(line["epoch"], {"loss": [None] * T, "error": [None] * T})
        blocks = [unit for unit in line.get("units", range(1, T + 1)) if unit != HEAD]
        for name in ("loss", "error"):
            for t, value in zip(blocks, line.get(name, ()), strict=False):
                whole[name][t - 1] = value
        rest = {name: value for name, value in line.items() if name not in ("loss", "error")}
        if line.get("head_loss") is None:  # of other units
            rest.pop("head_loss", None)
        whole |= rest
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def losses(lines: Sequence[Json]) -> Section:
    epochs, last = [line["epoch"] for line in lines], lines[-1]
    kinds = {"loss": [line["loss"] for line in lines]}
    errors = [line["error"] for line in lines]
    if any(each is not None for line in errors for each in line):
        kinds = {"loss, weighted": kinds["loss"], "error, not weighted": errors}
    columns = ["block", *kinds]
    rows = [
        [str(t + 1), *(number(values[-1][t]) for values in kinds.values())]
        for t in range(len(last["loss"]))
    ]
    if last.get("head_loss") is not None:
        rows.append(["head", number(last["head_loss"]), *[""] * (len(kinds) - 1)])
    shown = [pictures.losses(epochs, kinds)]
    for name in ("val_accuracy", "train_accuracy"):
        if all(line.get(name) is not None for line in lines):
            shares = [line[name] for line in lines]
            words = {"val_accuracy": "accuracy, held-out rows"}.get(name, "accuracy, training rows")
            shown.append(pictures.accuracy_by_epoch(epochs, words, shares))
    text = (
        "Each block has a loss of its own: the weight of its t times |û - u_y|², the squared error "
        "of its estimate of the label's embedding, whose mean without the weight is the error."
    )
    return Section("Losses", text, shown, [Table(f"Epoch {epochs[-1]}", columns, rows)])


def by_block(result: Json) -> Section:
    columns = {
        "after the block in the chain": result["accuracy_per_block"],
        "the block alone, from pure noise": result["accuracy_alone"],
    }
    blocks = range(1, len(result["accuracy_per_block"]) + 1)
    text = (
        "A block's most probable class after t blocks of the chain without noise, and of the block "
        "alone on one draw of pure noise. Where the two are alike, the chain adds nothing."
    )
    return Section(
        "Accuracy by block",
        text,
        [pictures.accuracies("block t", blocks, columns)],
        [shares_table("Test accuracy of the blocks", "block", blocks, columns)],
    )


def by_steps(result: Json) -> Section:
    quiet, noisy = result["accuracy_by_steps"], result["accuracy_by_steps_with_noise"]
    steps = [int(each) for each in quiet]
    columns = {
        "without noise": list(quiet.values()),
        "as the paper's protocol draws": [noisy.get(each) for each in quiet],
    }
    tenths = [(i + 1) / 10 for i in range(len(result["accuracy_by_t"]))]
    on_the_way = {"the likeliest class given z_t": result["accuracy_by_t"]}
    text = (
        "One block is evaluated at every step of a sampler. Accuracy by the number of its steps, "
        "and of the likeliest class given z_t on a way of 100 steps."
    )
    return Section(
        "Accuracy by steps",
        text,
        [
            pictures.accuracies("steps of the sampler", steps, columns, log=True),
            pictures.accuracies("t, 0 noise, 1 label", tenths, on_the_way),
        ],
        [
            shares_table("Test accuracy by the sampler's steps", "steps", steps, columns),
            shares_table("Test accuracy on the way", "t", tenths, on_the_way),
        ],
    )


def confusion(answers: Answers, names: Sequence[str]) -> Section:
    counts, M = answers.confusion, len(names)
    rows = [
        [names[true], names[other], f"{count:,}", f"{count / of_class:.2%}"]
        for true, other, count, of_class in answers.confused(CONFUSED)
    ]
    tables = []
    if rows:
        columns = ["true class", "answered", "rows", "of the true class"]
        tables.append(Table("The classes that are confused most", columns, rows))
    if M <= pictures.MOST_WRITTEN:
        full = [
            [names[true], *(f"{count:,}" for count in row)]
            for true, row in enumerate(counts.tolist())
        ]
        tables.append(Table("Test rows by true and answered class", ["true", *names], full))
    else:
        of_class = counts.sum(1)
        order = (counts.diag() / of_class.clamp(min=1)).sort(stable=True).indices.tolist()
        hardest = [
            [names[true], f"{int(counts[true, true]):,}", f"{int(of_class[true]):,}"]
            for true in order
            if of_class[true] > 0
        ][:CONFUSED]
        columns = ["class", "right", "of test rows"]
        tables.append(Table("The classes that are answered right least", columns, hardest))
    text = f"{int(answers.right.sum()):,} of {len(answers.y):,} test rows are answered right."
    return Section("Confusion", text, [pictures.confusion(answers, names)], tables)


def calibration(answers: Answers, model: Model) -> Section:
    figures = {
        "accuracy": f"{answers.accuracy:.2%}",
        "mean confidence": f"{answers.confidence.mean().item():.2%}",
        "expected calibration error": f"{answers.calibration_error:.4f}",
        "log-loss, nats": f"{answers.log_loss:.4f}",
        "Brier score": f"{answers.brier_score:.4f}",
    }
    bins = [
        [
            f"{each.low:.3f} to {each.high:.3f}",
            f"{each.rows:,}",
            f"{each.confidence:.2%}",
            f"{each.accuracy:.2%}",
        ]
        for each in answers.bins
        if each.rows
    ]
    text = (
        "How often answers of a given probability are right. Below the line answers are surer than "
        "they are right, above it they are less sure."
    )
    if isinstance(model.goal, nk.FM):
        text += (
            " A velocity has no probabilities: those of an FM rank classes, and are no measure of "
            "how sure an answer is."
        )
    return Section(
        "Calibration",
        text,
        [pictures.reliability(answers)],
        [
            record("Calibration of the test rows", figures),
            Table("By confidence", ["confidence", "rows", "mean confidence", "accuracy"], bins),
        ],
    )


def ways(model: Model, x: Tensor, answers: Answers, names: Sequence[str]) -> Section:
    """Of the first test row of each of some classes, and of the worst wrong answer."""
    classes = answers.y.unique()
    some = torch.linspace(0, len(classes) - 1, WAYS, dtype=torch.float64, device="cpu").round()
    chosen = classes[some.long().unique()]  # spread over all
    firsts = [int((answers.y == label).nonzero()[0]) for label in chosen]
    rows = [*firsts, *(row for row in answers.worst(1) if row not in firsts)]
    paths = Paths.of(model, x[rows])
    y, labels = answers.y[rows], answers.labels[rows]
    t_name = "block t" if isinstance(model.goal, nk.DT) else "t, 0 noise, 1 label"
    last = paths.distances()[-1]
    columns = ["test row", "true class", "answered", "its probability"]
    columns += ["distance of the last z to the true class", "to the answered one"]
    table = [
        [
            f"{row:,}",
            names[int(y[i])],
            names[int(labels[i])],
            f"{answers.confidence[row].item():.2%}",
            f"{last[i, y[i]].item():.4f}",
            f"{last[i, labels[i]].item():.4f}",
        ]
        for i, row in enumerate(rows)
    ]
    text = (
        "z_t from its beginning to the last z, of the first test row of some classes and of the "
        "wrong answer of the highest probability, which is dashed; rows count from 0. The plane "
        "has the embeddings' principal axes; one-hot embeddings, whose axes are all alike, lie on "
        "a circle. Stars are the embeddings of the rows' own classes, squares the last z."
    )
    shown = [
        pictures.plane(paths, y, labels, names),
        pictures.distances(paths, rows, y, labels, names, t_name),
    ]
    return Section("Ways to the embeddings", text, shown, [Table("The rows", columns, table)])


def wrong_answers(model: Model, x: Tensor, answers: Answers, names: Sequence[str]) -> Section:
    rows = answers.worst(WORST)
    columns = ["test row", "true class", "answered", "its probability", "that of the true class"]
    table = [
        [
            f"{row:,}",
            names[int(answers.y[row])],
            names[int(answers.labels[row])],
            f"{answers.confidence[row].item():.2%}",
            f"{answers.probs[row, answers.y[row]].item():.2%}",
        ]
        for row in rows
    ]
    shown, image = [], None if model.inputs is None else model.inputs.image
    if image is not None:
        titles = [
            f"{pictures.short(true)}, answered\n{pictures.short(other)} ({p})"
            for _, true, other, p, _ in table
        ]
        shown.append(pictures.images(x[rows], image, titles))
    text = "The wrong answers of the highest probability. Rows count from 0."
    return Section("Wrong answers", text, shown, [Table("Wrong answers", columns, table)])


# tables


def shares_table(caption: str, first: str, xs: Sequence[float], columns: dict[str, Any]) -> Table:
    rows = [
        [f"{x:,}", *("" if share is None else f"{share:.2%}" for share in shares)]
        for x, *shares in zip(xs, *columns.values(), strict=True)
    ]
    return Table(caption, [first, *columns], rows)


def record(caption: str, values: Json) -> Table:
    """A table of names and values, without those that are None."""
    rows = [[name, str(value)] for name, value in values.items() if value is not None]
    return Table(caption, ["name", "value"], rows)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
