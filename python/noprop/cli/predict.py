"""noprop predict: a class and M probabilities a row, in the file's order."""

import csv
import io
import json
import sys
from types import SimpleNamespace

from .. import loading
from ..answer import Answer
from ..datasets.own import read_rows
from ..errors import InputError, notice
from ..files import atomic_file
from . import common
from .options import FORMATS, one_of

LABEL = "label"


def run(options: SimpleNamespace) -> None:
    if options.format is not None:
        one_of("--format", options.format, FORMATS)
    by_name = "jsonl" if options.out is not None and options.out.suffix == ".jsonl" else "csv"
    common.place_of(options)  # refuses at once what no model can use
    trained = loading.load(options.folder, backend=options.backend)
    trained.check_whole(str(options.folder))
    replica = common.check_replica(options.replica, trained.seeds, options.folder)
    common.placed(options, trained)
    if trained.inputs is None:
        raise InputError(
            f"{options.folder} was trained by a version that did not record what a row is: train "
            "it again, or ask Model.predict"
        )
    rows = read_rows(options.file, trained.inputs, notice)
    answer = trained.predict(rows, replica=replica)
    text = as_jsonl(answer) if (options.format or by_name) == "jsonl" else as_csv(answer)
    if options.out is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with atomic_file(options.out) as file:
        file.write(text.encode())


def as_csv(answer: Answer) -> str:
    """label, and a column "p(NAME)" for each class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([LABEL, *(f"p({name})" for name in answer.classes)])
    for name, row in zip(answer.names, answer.probs.tolist(), strict=True):
        writer.writerow([name, *(f"{p:.9g}" for p in row)])  # 9 digits hold a float32
    return text.getvalue()


def as_jsonl(answer: Answer) -> str:
    """{"label": NAME, "probabilities": {NAME: p, ...}} a line."""
    lines = [
        json.dumps({LABEL: name, "probabilities": dict(zip(answer.classes, row, strict=True))})
        for name, row in zip(answer.names, answer.probs.tolist(), strict=True)
    ]
    return "".join(line + "\n" for line in lines)
