"""Plans: shapes and counts of their parameters, what they refuse, copies."""

import copy
import pickle

import pytest

from noprop_kernels import plans
from noprop_kernels.plan import BatchNorm, Dense, Plan
from support.calls import PLANS

INPUTS = {"x": (5,), "z": (3,)}


def test_parameters_of_an_mlp():
    plan = plans.mlp(784, 10, 10, hidden=256)
    assert plan.parameters() == {
        "hx.weight": (256, 784),
        "hx.bias": (256,),
        "hz.weight": (256, 10),
        "hz.bias": (256,),
        "f.weight": (256, 512),
        "f.bias": (256,),
        "logits.weight": (10, 256),
        "logits.bias": (10,),
    }
    assert plan.statistics() == {} and not plan.has_norm()
    assert plan.num_parameters() == 337_674


@pytest.mark.parametrize(
    "features, D, M, convolutions, total",
    [
        (2048, 10, 10, 320 + 18_496 + 73_856, 919_946),
        (2048, 20, 10, 320 + 18_496 + 73_856, 922_506),
        (3200, 10, 10, 896 + 18_496 + 73_856, 1_215_434),
        (3200, 100, 100, 896 + 18_496 + 73_856, 1_250_084),
        (3200, 20, 100, 896 + 18_496 + 73_856, 1_229_604),
    ],
)
def test_paper_dt_has_the_paper_s_parameters(features, D, M, convolutions, total):
    """Table 5 of arXiv:2503.24322v2; the convolutions come before the plan."""
    assert plans.paper_dt(features, D, M).num_parameters() + convolutions == total


def test_norm_adds_parameters_and_statistics():
    plan = Plan(INPUTS, {"h": Dense(("x", "z"), 4, norm=BatchNorm()), "out": Dense("h", 2)})
    assert list(plan.parameters()) == [
        "h.weight",
        "h.bias",
        "h.norm.weight",
        "h.norm.bias",
        "out.weight",
        "out.bias",
    ]
    assert plan.parameters()["h.weight"] == (4, 8)
    assert plan.statistics() == {"h.norm.running_mean": (4,), "h.norm.running_var": (4,)}
    assert plan.has_norm()
    assert plan.output == "out" and plan.in_widths == {"h": 8, "out": 4}
    assert plan.widths == {"x": 5, "z": 3, "h": 4, "out": 2}


def test_a_layer_counts_its_product_s_multiply_adds():
    """Two sources are one product; a norm, an activation and a skip cost none."""
    first = Dense(("x", "z"), 4, activation="relu", norm=BatchNorm())
    plan = Plan(INPUTS, {"h": first, "out": Dense("h", 4, add="h")})
    assert {name: plan.multiply_adds(name) for name in plan.layers} == {"h": 4 * 8, "out": 4 * 4}
    assert first.multiply_adds([(2, 3), (5,)]) == 4 * 11


def test_gradients_that_a_plan_needs():
    plan = plans.mlp(5, 3, 3)
    assert plan.needs_gradient() == {"hx", "hz", "f", "logits"}
    assert plan.needs_gradient(frozenset({"z"})) == {"z", "hx", "hz", "f", "logits"}


def wrong_plans():
    yield 'must have "z"', {"x": (5,)}, {"out": Dense("x", 2)}
    yield "at least one layer", INPUTS, {}
    yield (
        r"must have a shape \(F,\) or \(C, H, W\), got \(3, 8\)",
        {"z": (3, 8)},
        {"out": Dense("z", 2)},
    )
    yield (
        "the width of input 'z' must be an integer of at least 1",
        {"z": (0,)},
        {"o": Dense("z", 2)},
    )
    yield "'x' names two results", INPUTS, {"x": Dense(("x", "z"), 2)}
    yield "must be an identifier, got 'a.b'", INPUTS, {"a.b": Dense(("x", "z"), 2)}
    yield "reads 'y', which is no earlier result", INPUTS, {"out": Dense(("x", "z", "y"), 2)}
    yield (
        "layer 'h' reads 'g', which is no earlier result",
        INPUTS,
        {"h": Dense("g", 2), "g": Dense(("x", "z"), 2)},
    )
    yield (
        r"layer 'out' has shape \(2,\) and cannot add 'x' of shape \(5,\)",
        INPUTS,
        {"out": Dense(("x", "z"), 2, add="x")},
    )
    yield r"no layer reads: \['x'\]", INPUTS, {"out": Dense("z", 2)}
    yield r"no layer reads: \['h'\]", INPUTS, {"h": Dense("x", 4), "out": Dense(("x", "z"), 2)}


@pytest.mark.parametrize("text, inputs, layers", list(wrong_plans()))
def test_wrong_plans_are_refused(text, inputs, layers):
    with pytest.raises(ValueError, match=text):
        Plan(inputs, layers)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: Dense("x", 0), "features must be an integer of at least 1, got 0"),
        (lambda: Dense("x", 2.0), "features must be an integer"),
        (
            lambda: Dense("x", 2, activation="tanh"),  # type: ignore[arg-type]
            r"activation must be one of \(None, 'relu', 'gelu'\), got 'tanh'",
        ),
        (lambda: Dense((), 2), "at least one result"),
        (lambda: BatchNorm(eps=0), "eps must be above 0"),
        (lambda: BatchNorm(eps=float("nan")), "eps must be above 0"),
        (lambda: BatchNorm(momentum=1.5), "momentum must be in"),
        (lambda: plans.mlp(0, 3, 3), "must be an integer of at least 1, got 0"),
        (lambda: plans.mlp(5, 3, 3, hidden=0), "features must be an integer"),
    ],
)
def test_wrong_layers_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_one_name_is_a_tuple_of_one():
    assert Dense("x", 2).sources == ("x",) and Dense(["x", "z"], 2).sources == ("x", "z")


@pytest.mark.parametrize("name", PLANS)
def test_copies_are_equal(name):
    plan = PLANS[name](7, 5, 4)
    for copied in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert copied == plan and hash(copied) == hash(plan)
        assert copied.parameters() == plan.parameters() and copied.output == plan.output
    assert plan != PLANS[name](8, 5, 4)
    with pytest.raises(TypeError):
        plan.layers["more"] = Dense("x", 2)


def test_the_order_of_layers_matters_to_equality():
    h, g = Dense("x", 2), Dense("z", 2)
    out = Dense(("h", "g"), 2)
    one, other = {"h": h, "g": g, "out": out}, {"g": g, "h": h, "out": out}
    assert Plan(INPUTS, one) != Plan(INPUTS, other)


def test_repr_names_every_layer():
    text = repr(plans.mlp(5, 3, 3))
    assert all(f"{name}: Dense(" in text for name in ("hx", "hz", "f", "logits"))
