"""The report of a run: its numbers are those of the evaluation, and it stands alone."""

import json
import math
import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, log_loss

import noprop
from noprop import data, metrics, runs
from noprop.report.answers import Answers
from noprop.report.paths import DRAWS, Paths, principal
from support import browser
from support.cli import QUICK, call

VOID = {"meta", "link", "img"}


@dataclass
class Page(HTMLParser):
    """What is on a page; every element must be closed.

    Attributes:
        tables: rows of texts under the caption, the columns' names first.
        images: (source, alt) of each.
        tags, headings, links: names of all elements, (level, text), href and src of all.
    """

    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    images: list[tuple[str, str]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    headings: list[tuple[str, str]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    terms: dict[str, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.open, self.texts, self.rows = [], [], []

    @classmethod
    def of(cls, text: str) -> "Page":
        page = cls()
        page.feed(text)
        assert page.open == []
        return page

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.append(tag)
        self.ids |= {named["id"]} if "id" in named else set()
        self.links += [named[name] for name in ("href", "src") if name in named]
        if tag == "img":
            self.images.append((named["src"], named["alt"]))
        if tag == "th":
            assert named["scope"] in ("row", "col")
        if tag == "tr":
            self.rows.append([])
        if tag == "table":
            self.rows = []
        if tag not in VOID:
            self.open.append(tag)
            self.texts.append("")

    def handle_data(self, text):
        if self.texts:
            self.texts[-1] += text

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        text = self.texts.pop()
        if tag in ("td", "th"):
            self.rows[-1].append(text)
        elif tag == "caption":
            self.caption = text
        elif tag == "table":
            self.tables[self.caption] = self.rows
        elif tag in ("h1", "h2"):
            self.headings.append((tag, text))
        elif tag == "dt":
            self.term = text
        elif tag == "dd":
            self.terms[self.term] = text


def report(*arguments) -> Page:
    out = Path("report.html")
    call("report", *arguments, "--out", out)
    return Page.of(out.read_text())


def shares(values) -> list[str]:
    return [f"{value:.2%}" for value in values]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on the digits that has not learned them well, and its report."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    options = ("--hidden", 16, "--T", 4, "--epochs", 3, "--head", "paper", "--lr", 0.01)
    call("train", "--data", "digits", *options, "--out", folder)
    call("report", folder)
    return folder


def test_the_numbers_are_those_of_the_evaluation(digits):
    page, content = Page.of((digits / "report.html").read_text()), data.load("digits")
    model = noprop.load(digits)
    result = noprop.evaluate(model, content.x_test, content.y_test)
    table = page.tables["Test accuracy of the blocks"]
    assert [row[0] for row in table[1:]] == ["1", "2", "3", "4"]
    assert [row[1] for row in table[1:]] == shares(result.accuracy_per_block)
    assert [row[2] for row in table[1:]] == shares(result.accuracy_alone)
    assert page.terms["test accuracy"] == f"{result.test_accuracy:.2%}"
    drawn = f"the paper's protocol, ±\u00a0{result.paper_accuracy_std:.2%}"
    assert page.terms[drawn] == f"{result.paper_accuracy:.2%}"
    last = metrics.read(digits)[-1]
    losses = page.tables["Epoch 3"][1:]
    assert [row[1] for row in losses] == [f"{x:.4g}" for x in (*last["loss"], last["head_loss"])]
    assert [row[2] for row in losses] == [*(f"{error:.4g}" for error in last["error"]), ""]
    settings = dict(page.tables["Settings and versions"])
    assert settings["lr"] == "0.01" and settings["epochs done"] == "3"


def test_confusion_and_calibration_are_those_of_the_answers(digits):
    page, content = Page.of((digits / "report.html").read_text()), data.load("digits")
    answer, y = noprop.load(digits).predict(content.x_test), content.y_test.numpy()
    counts = confusion_matrix(y, answer.labels.numpy())
    table = page.tables["Test rows by true and answered class"]
    assert [[int(cell) for cell in row[1:]] for row in table[1:]] == counts.tolist()
    assert int(np.trace(counts)) < len(y), "no wrong answer: the test shows little"
    np.fill_diagonal(counts, 0)
    confused = page.tables["The classes that are confused most"][1:]
    assert [int(row[2]) for row in confused] == sorted(counts[counts > 0])[::-1][:15]
    assert all(counts[int(true), int(other)] == int(n) for true, other, n, _ in confused)
    probs = answer.probs.double().numpy()
    figures = dict(page.tables["Calibration of the test rows"])
    assert figures["log-loss, nats"] == f"{log_loss(y, probs / probs.sum(1, keepdims=True)):.4f}"
    brier = ((probs - np.eye(10)[y]) ** 2).sum(1).mean()
    assert figures["Brier score"] == f"{brier:.4f}"
    confidence = probs[np.arange(len(y)), answer.labels.numpy()]
    right, error = answer.labels.numpy() == y, 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            error += abs(right[inside].mean() - confidence[inside].mean()) * inside.mean()
    assert figures["expected calibration error"] == f"{error:.4f}"
    bins = page.tables["By confidence"][1:]
    assert sum(int(row[1]) for row in bins) == len(y)
    wrong = page.tables["Wrong answers"][1:]
    assert [row[3] for row in wrong] == shares(sorted(confidence[~right])[::-1][:12])
    assert all(y[int(row[0])] == int(row[1]) != int(row[2]) for row in wrong)


def test_the_page_stands_alone_and_can_be_read_aloud(digits):
    page = Page.of((digits / "report.html").read_text())
    assert "script" not in page.tags and page.tags.count("h1") == 1 == page.tags.count("main")
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert len(page.images) >= 8
    for source, alt in page.images:
        assert source.startswith("data:image/svg+xml;base64,") and len(alt) > 20
    assert [text for level, text in page.headings if level == "h2"] == [
        *("Losses", "Accuracy by block", "Confusion", "Calibration"),
        *("Ways to the embeddings", "Wrong answers", "Settings"),
    ]
    assert page.tags.count("caption") == page.tags.count("table") == len(page.tables)


def test_a_report_changes_nothing_and_is_the_same_again(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in digits.iterdir()}
    call("report", digits, "--out", "again.html")
    assert {path: path.read_bytes() for path in digits.iterdir()} == before
    assert Path("again.html").read_text() == (digits / "report.html").read_text()


def test_ways_end_where_the_answer_is(digits):
    content, model = data.load("digits"), noprop.load(digits)
    x = content.x_test[:7]
    paths = Paths.of(model, x)
    assert paths.t.tolist() == [0, 1, 2, 3, 4] and paths.drawn.shape == (5, 7, DRAWS, 10)
    assert not paths.quiet[0].any() and paths.drawn[0].std().item() == pytest.approx(1, abs=0.2)
    last = model.blocks.predict(model.features(x), noise=False).z[0, 0]
    assert torch.equal(paths.quiet[-1], last.double())
    nearest = paths.distances()[-1].argmin(-1)
    assert torch.equal(nearest, model.predict(x).labels)


@pytest.mark.parametrize("kind", ["ct", "fm"])
def test_ways_of_samplers(alone, toy_file, kind):
    call("train", "--data", toy_file, *QUICK[:2], "--variant", kind, "--epochs", 1, "--out", "run")
    page, model = report("run"), noprop.load("run")
    result = json.loads(Path("run/model.json").read_text())["training"]["result"]
    table = page.tables["Test accuracy by the sampler's steps"][1:]
    assert [row[0].replace(",", "") for row in table] == [*result["accuracy_by_steps"]]
    assert [row[1] for row in table] == shares(result["accuracy_by_steps"].values())
    noisy = [cell for row in table if (cell := row[2])]
    assert noisy == shares(result["accuracy_by_steps_with_noise"].values())
    on_the_way = page.tables["Test accuracy on the way"][1:]
    assert [row[1] for row in on_the_way] == shares(result["accuracy_by_t"])
    assert "Brier score" in dict(page.tables["Calibration of the test rows"])
    x = np.load(toy_file)["x_test"][:3]
    paths = Paths.of(model, x)
    assert paths.quiet.shape == (21, 3, 3) and paths.t[-1] == 1
    if kind == "fm":  # of one step z_1 = z_0 + u_hat, the velocity
        several = model.features(x).repeat_interleave(DRAWS, 0)
        step = model.blocks.predict(several, sampler="euler", steps=1)
        z_0 = (step.z - step.u_hat)[0, 0].double()
        torch.testing.assert_close(paths.drawn[0].flatten(0, 1), z_0, atol=1e-5, rtol=0)


def test_classes_with_names_that_are_no_html_or_formulas(alone, tmp_path):
    """100 of them: the matrix is a picture, the tables have the worst."""
    names = np.array([f"<b>${i}_^{{ & a long name of a class" for i in range(100)])
    draw = np.random.default_rng(0)
    y = np.arange(1000) % 100
    x = draw.normal(size=(1000, 5)).astype(np.float32)
    np.savez("many.npz", x=x, y=names[y], x_test=x[:300], y_test=names[y[:300]])
    call("train", "--data", "many.npz", *QUICK, "--epochs", 1, "--out", "run")
    page = report("run")
    assert "b" not in page.tags and "Test rows by true and answered class" not in page.tables
    assert len(page.tables["The classes that are confused most"]) == 16
    hardest = page.tables["The classes that are answered right least"]
    assert len(hardest) == 16 and hardest[1][0] in names
    assert browser.missing() or browser.faults(Path("report.html"), 390) == []


def test_learned_embeddings_and_two_classes(alone, tmp_path):
    x = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    np.savez("two.npz", x=x, y=y, x_test=x[:40], y_test=y[:40])
    for dim in (1, 5):
        options = ("--embedding", "learned", "--embed-dim", dim, "--epochs", 1)
        call("train", "--data", "two.npz", *QUICK, *options, "--out", f"run-{dim}")
        assert "Ways to the embeddings" in dict(map(reversed, report(f"run-{dim}").headings))


def test_principal_axes():
    W_embed = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=torch.float64)
    assert principal(W_embed).abs().round(decimals=9).tolist() == [[1, 0], [0, 1], [0, 0]]
    circle = principal(torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(circle.T @ circle, torch.eye(2, dtype=torch.float64))
    assert circle.norm(dim=1).tolist() == pytest.approx([(2 / 5) ** 0.5] * 5)


def test_answers_that_are_all_right():
    y = torch.tensor([0, 1, 1])
    answers = Answers(y, y, torch.eye(2, dtype=torch.float64)[y])
    assert answers.confused(5) == [] and answers.worst(5) == []
    assert answers.calibration_error == 0 and answers.log_loss == 0 == answers.brier_score
    assert [each.rows for each in answers.bins] == [0] * 14 + [3]


def test_a_probability_of_zero_has_a_finite_loss():
    answers = Answers(*torch.tensor([[1], [0]]), torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert answers.log_loss == pytest.approx(-math.log(2**-23)) and answers.brier_score == 2


def test_one_of_several_seeds(alone, toy_file):
    arguments = ("train", "--data", toy_file, *QUICK, "--epochs", 2, "--head", "paper")
    call(*arguments, "--seeds", "3,4", "--out", "both")
    call(*arguments, "--seed", 4, "--out", "one")
    assert "name one" in call("report", "both", code=2).stderr
    ours, alone_ = report("both", "--replica", 1), report("one")
    for page in (ours, alone_):
        del page.tables["Settings and versions"]
    assert ours.tables == alone_.tables and ours.terms == alone_.terms


def test_a_run_merged_of_blocks_has_the_report_of_the_whole(alone, toy_file):
    arguments = ("train", "--data", toy_file, *QUICK, "--epochs", 2, "--head", "paper")
    call(*arguments, "--out", "whole")
    call(*arguments, "--blocks", "1,3", "--out", "one")
    call(*arguments, "--blocks", "2,head", "--out", "other")
    assert "missing: block 2 and the head" in call("report", "one", code=1).stderr
    call("merge", "one", "other", "--out", "merged")
    merged, whole = report("merged"), report("whole")
    for page in (merged, whole):
        del page.tables["Settings and versions"]
    assert len(whole.tables["Epoch 2"]) == 5
    assert merged.tables == whole.tables and merged.terms == whole.terms


def test_an_unfinished_run_is_tested_for_its_report(run, alone, monkeypatch):
    tests, test, load = [], runs.Run.test, runs.Run.load

    def counted(self, content, split, samples):
        tests.append(samples)
        return test(self, content, split, samples)

    monkeypatch.setattr(runs.Run, "test", counted)
    known = report(run)
    assert tests == []
    again = report(run, "--samples", 2)
    assert tests == [2] and again.terms == known.terms

    def untested(*arguments):
        found = load(*arguments)
        found.result = None
        return found

    monkeypatch.setattr(runs.Run, "load", untested)
    assert report(run).tables == known.tables and tests == [2, 5]


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named(run, alone, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(("noprop.report", f"{package}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "noprop.cli.report", raising=False)
    text = call("report", run, code=1).stderr
    assert "pip install 'noprop-kernels[report]'" in text and not (run / "report.html").exists()


# in a browser

in_browser = pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or "")


@in_browser
@pytest.mark.parametrize("width", browser.WIDTHS)
def test_a_browser_shows_it_whole(digits, width):
    assert browser.faults(digits / "report.html", width) == []


@in_browser
def test_a_browser_tells_faults(tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><img src='data:image/png;base64,AAAA'><script>console.log('here')</script>"
        "<script>nothing()</script><p style='width: 2000px'>wide</p><img src='not-there.png'>"
    )
    text = "\n".join(browser.faults(path, 1280))
    for fault in ("console: here", "nothing is not defined", "request: file:.*not-there.png"):
        assert re.search(fault, text), text
    for fault in ("picture 0 does not show", "picture 1 does not show", "2008 pixels wide"):
        assert fault in text, text


@in_browser
def test_a_browser_makes_a_picture_of_it(digits, tmp_path):
    from PIL import Image

    browser.photograph(digits / "report.html", tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size < 300_000
    with Image.open(tmp_path / "report.png") as image:
        assert image.width == 1900
