"""A result as text for people: the answer, and the paper's protocol if there is a head."""

from rich.console import Console

from noprop import console_text

RESULT = {
    "data": "toy",
    "test_accuracy": 0.995,
    "accuracy_per_block": [0.9, 0.99],
    "accuracy_alone": [0.8, 0.7],
    "accuracy_last_block": 0.99,
    "paper_accuracy": None,
    "paper_accuracy_std": None,
    "paper_accuracy_last_block": None,
    "samples": 5,
    "train_seconds": 1.0,
    "samples_per_second": 9.0,
    "eval_seconds": 0.5,
    "parameters": 7,
    "backend": "cpu",
}


def shown(**changes):
    console = Console(width=200)
    with console.capture() as capture:
        console_text.show_result(console, RESULT | changes)
    return capture.get()


def test_the_answer_is_the_headline():
    text = shown()
    assert "test accuracy:                99.50%" in text and "90.00%" in text
    assert "paper" not in text and "warning" not in text


def test_the_papers_protocol_stands_beside_it():
    text = shown(paper_accuracy=0.98, paper_accuracy_std=0.002, paper_accuracy_last_block=0.985)
    assert "the paper's protocol:         98.00% +- 0.20%" in text and "5 draws" in text
    assert "warning" not in text


def test_one_draw_has_no_deviation():
    text = shown(paper_accuracy=0.98, paper_accuracy_last_block=0.985, samples=1)
    assert "98.00%" in text and "+-" not in text


def test_a_head_below_its_last_block_is_warned_of():
    text = shown(paper_accuracy=0.5, paper_accuracy_std=0.0, paper_accuracy_last_block=0.99)
    assert "warning: the head of the paper's protocol answers 50.00% right" in text


BY_STEPS = {
    "accuracy_per_block": None,
    "accuracy_by_steps": {"1": 0.9, "100": 0.95},
    "accuracy_by_steps_with_noise": {"100": 0.875},
    "accuracy_by_t": [0.125] * 9 + [0.25],
    "paper_accuracy": 0.5,
}


def test_a_sampler_is_shown_by_its_steps():
    text = shown(**BY_STEPS, variant="fm", sampler="euler")
    rows = [line.split() for line in text.splitlines()]
    assert ["│", "1", "│", "90.00%", "│", "│"] in rows
    assert ["│", "100", "│", "95.00%", "│", "87.50%", "│"] in rows
    assert "on the way, at t = .1, .2, .. 1: " + "12.5% " * 9 + "25.0%" in text
    assert "50.00%  (z_0 drawn, nearest embedding, 5 draws)" in text and "warning" not in text


def test_what_the_papers_protocol_of_a_ct_draws():
    text = shown(**BY_STEPS, variant="ct", sampler="ancestral")
    assert "50.00%  (noise in every step, head on z_T, 5 draws)" in text
    assert "(z_0 drawn, head on z_T, 5 draws)" in shown(**BY_STEPS, variant="ct", sampler="heun")
