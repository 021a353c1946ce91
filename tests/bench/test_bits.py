"""The comparison of two commits' bits: what counts as equal, and that nothing does unseen."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

from bench.bits.cases.digests import digest
from bench.bits.cases.plans import PLANS, WIDE
from bench.bits.cases.selection import all_cases
from bench.bits.cases.settings import GOALS, OPTIMIZERS, PRECISIONS
from bench.bits.compare import compare, largest_difference, read

LINE = {"case": "mlp", "digests": {"loss": "a", "weight": "b"}}


def test_equal_lines_are_equal():
    found = compare({"mlp": LINE}, {"mlp": LINE})
    assert found.same and found.equal == 1


def test_a_tensor_that_differs_is_named():
    other = {"case": "mlp", "digests": {"loss": "a", "weight": "c"}}
    found = compare({"mlp": LINE}, {"mlp": other})
    assert not found.same and found.equal == 0
    assert found.differing == {"mlp": ["weight"]} and found.problems == []


def test_a_tensor_of_one_side_is_told():
    other = {"case": "mlp", "digests": {"loss": "a", "bias": "b"}}
    found = compare({"mlp": LINE}, {"mlp": other})
    assert not found.same and found.equal == 0
    assert found.problems == [
        "mlp: tensor weight in BEFORE alone",
        "mlp: tensor bias in AFTER alone",
    ]


def test_a_case_of_one_side_is_told():
    found = compare({"mlp": LINE, "old": LINE}, {"mlp": LINE, "new": LINE})
    assert not found.same and found.equal == 1
    assert found.problems == ["case old in BEFORE alone", "case new in AFTER alone"]


def test_what_both_refuse_is_counted_apart():
    refused = {"case": "tf32", "refused": "no tf32"}
    found = compare({"mlp": LINE, "tf32": refused}, {"mlp": LINE, "tf32": refused})
    assert found.same and (found.equal, found.refused) == (1, 1)
    assert not compare({"tf32": refused}, {"tf32": refused}).same  # which shows nothing


@pytest.mark.parametrize("what", ["refused", "failed"])
def test_what_one_side_cannot_do_is_told(what: str):
    other = {"case": "mlp", what: "why"}
    for lines in ((LINE, other), (other, LINE)):
        found = compare(*({"mlp": line} for line in lines))
        assert not found.same and len(found.problems) == 1 and "why" in found.problems[0]


def test_what_fails_on_both_sides_is_not_equal():
    failed = {"case": "mlp", "failed": "ValueError: why"}
    found = compare({"mlp": failed}, {"mlp": failed})
    assert not found.same and len(found.problems) == 2


def test_nothing_is_not_equal():
    assert not compare({}, {}).same


def test_lines_are_read_by_case(tmp_path: Path):
    file = tmp_path / "lines.jsonl"
    file.write_text(json.dumps(LINE) + "\n")
    assert read(file) == {"mlp": LINE}
    file.write_text(2 * (json.dumps(LINE) + "\n"))
    with pytest.raises(ValueError, match="names of their own"):
        read(file)


def test_cases_are_the_product_by_names_of_their_own():
    for backend in ("reference", "cpu", "cuda", "triton"):
        names = [name for name, _ in all_cases(backend)]
        assert len(names) == len(set(names))
        for plan in set(PLANS) - set(WIDE if backend == "triton" else ()):
            for optimizer in OPTIMIZERS:
                for precision in PRECISIONS:
                    start = f"{plan} {optimizer} {precision} train_steps"
                    assert any(name.startswith(start) for name in names), start
        for goal in GOALS:
            assert any(name.startswith(goal) and "coupled" in name for name in names), goal


def test_a_digest_is_of_form_and_bits():
    one = torch.tensor([0.0, 1.0])
    others = (
        torch.tensor([-0.0, 1.0]),
        one.view(2, 1),
        one.double(),
        one.view(torch.int32),
        torch.nextafter(one, one + 1),
    )
    digests = {digest(value) for value in (one, *others)}
    assert len(digests) == 1 + len(others)
    assert digest(torch.tensor([[0.0, 5.0], [1.0, 6.0]])[:, 0]) == digest(one)
    assert digest(torch.tensor(3)) != digest(torch.tensor(4))


def test_how_far_two_tensors_are_apart():
    one = torch.tensor([1.0, -2.0])
    outcome = largest_difference(one, torch.tensor([1.0, -2.5]))
    assert outcome == "largest difference 5.000e-01 of 2.000e+00, 1 of 2 entries"
    assert "1 entries are NaN" in largest_difference(one, torch.tensor([1.0, torch.nan]))
    infinite = torch.tensor([torch.inf, 1.0])
    assert "difference inf of" in largest_difference(infinite, -infinite)
    assert "difference 1.000e+00" in largest_difference(infinite, torch.tensor([torch.inf, 2.0]))
    assert "became" in largest_difference(one, one.double())
    assert "0 of 2" in largest_difference(
        torch.tensor([0.0, torch.nan]), torch.tensor([-0.0, torch.nan])
    )
