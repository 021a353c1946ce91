"""Chains of evaluations on the CPU kernels: results beside an oracle in float64, and the same bits
however a chain is divided, kept or split into what moves and what does not.
"""

import functools
import signal
import time
from types import ModuleType
from typing import Any

import pytest
import torch

from noprop_kernels import plans
from noprop_kernels.backends.chain_calls import PredictCall
from noprop_kernels.backends.cpu import extension
from noprop_kernels.plan import BatchNorm, Conv2d, Dense, Plan
from support.calls import clone_call
from support.chains import OUTPUTS, make_chain_call, oracle, poisoned
from support.compare import assert_matches
from support.isas import ISAS

RELU: dict[str, Any] = {"activation": "relu"}
GELU: dict[str, Any] = {"activation": "gelu"}


def with_time(F: int, D: int, M: int, hidden: int) -> Plan:
    """The MLP with a third stem, for t."""
    return Plan(
        inputs={"x": (F,), "z": (D,), "t": (11,)},
        layers={
            "hx": Dense("x", hidden, **RELU),
            "hz": Dense("z", hidden, **RELU),
            "ht": Dense("t", hidden, **RELU),
            "f": Dense(("hx", "hz", "ht"), hidden, **RELU),
            "logits": Dense("f", M),
        },
    )


PLANS = {
    "mlp with time": with_time(97, 5, 6, 67),
    "paper_ct": plans.paper_ct((1, 16, 16), 10, 7),
    "paper_ct, z as an image": plans.paper_ct((1, 16, 16), 256, 7, z_image=True),
    "time in the middle": Plan(
        inputs={"t": (6,), "z": (5,), "x": (17,)},
        layers={
            "both": Dense(("x", "t"), 9, **GELU),  # of x and t alone
            "ht": Dense("t", 9, norm=BatchNorm(eps=1e-3), **GELU),
            "more": Dense(("ht", "t"), 9, add="ht"),
            "hz": Dense(("t", "z"), 9, add="more"),
            "only": Dense(("t", "more"), 9, **RELU, add="hz"),  # every source is of t
            "still": Dense(("x", "x"), 9, norm=BatchNorm(eps=1e-3), add="only"),  # or stands still
            "f": Dense(("x", "both", "ht", "still", "hz", "more"), 23, norm=BatchNorm(), **GELU),
            "logits": Dense(("x", "f", "t"), 6),
        },
    ),
    "time as an image": Plan(
        inputs={"x": (2, 6, 6), "z": (1, 6, 6), "t": (1, 6, 6)},
        layers={
            "c": Conv2d("x", 5, **RELU),
            "d": Conv2d("t", 5, **RELU, add="c"),
            "e": Conv2d("z", 5, add="d"),
            "logits": Dense(("c", "d", "e", "t"), 6),
        },
    ),
    "no time": plans.mlp(97, 5, 6, hidden=67),
    "paper_dt": plans.paper_dt((1, 16, 16), 5, 6),
}


def check(kernels: ModuleType, call: PredictCall, answers: tuple | None = None) -> None:
    exact, plain = answers or (oracle(call, torch.float64), oracle(call, torch.float32))
    kernels.predict(call)
    for name in OUTPUTS:
        assert_matches(getattr(call, name), exact[name], plain[name], terms=200, name=name)


# of each plan every kind of step; sizes, samples and what is kept take turns
KINDS = [("euler", 4), ("ancestral", 4), ("heun", 2), ("rk4", 2), ("mixed", 1)]
SIZES = [(1, 1, 1), (3, 3, 1), (9, 1, 2), (150, 3, 2), (9, 3, 1), (150, 1, 1), (3, 1, 2), (1, 3, 2)]
CASES = [
    (plan, *kind, *SIZES[(p + k + 3 * turn) % len(SIZES)], turn)
    for p, plan in enumerate(PLANS)
    for k, kind in enumerate(KINDS)
    for turn in (0, 1)
]


@functools.lru_cache(maxsize=1)
def case(
    plan: str, kind: str, steps: int, B: int, S: int, R: int, turn: int
) -> tuple[PredictCall, tuple]:
    """A call and its answers, for all instruction sets."""
    call = make_chain_call(
        *(PLANS[plan], kind, steps, B),
        **{"S": S, "R": R, "kept": (1, steps)[turn], "first_row": 5 * turn, "seed": B},
        head=("softmax", "linear")[turn],
        add_noise=kind != "rk4",
    )
    return call, (oracle(call, torch.float64), oracle(call, torch.float32))


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("sizes", CASES, ids=lambda sizes: "-".join(map(str, sizes)))
def test_predict(kernels: ModuleType, isa: str, sizes: tuple) -> None:
    call, answers = case(*sizes)
    check(kernels, clone_call(call), answers)


@pytest.mark.parametrize("plan", ["mlp with time", "time in the middle", "time as an image"])
@pytest.mark.parametrize("B", [3, 40])
def test_a_block_for_each_evaluation(kernels: ModuleType, plan: str, B: int) -> None:
    check(kernels, make_chain_call(PLANS[plan], "mixed", 1, B, S=3, R=2, many_blocks=True))


def test_more_evaluations_than_have_their_times_at_once(kernels: ModuleType) -> None:
    call = make_chain_call(with_time(9, 5, 6, 8), "heun", 150, 5, S=2, kept=150)
    call.chain.a *= 0.1
    check(kernels, call)


@pytest.mark.parametrize("step", [2**16 - 2, 2**16 + 3])
def test_noise_of_the_step_s_number(kernels: ModuleType, step: int) -> None:
    """Modulo 2^16. Only this step's noise is there, and z is nothing else."""
    plan = Plan({"x": (1,), "z": (2,)}, {"logits": Dense(("x", "z"), 2)})
    call = make_chain_call(plan, "heun", step + 1, 1, seed=step)
    for name in ("weight", "keep", "sqrt_c"):
        getattr(call.chain, name).zero_()
    call.chain.sqrt_c[-1] = 1
    kernels.predict(call)
    expected = make_chain_call(plan, "euler", step % 2**16 + 1, 1, seed=step)
    expected.seeds = call.seeds
    for name in ("weight", "keep", "sqrt_c"):
        getattr(expected.chain, name).zero_()
    expected.chain.sqrt_c[-1] = 1
    kernels.predict(expected)
    assert call.z.abs().min() > 0 and torch.equal(call.z, expected.z)


CLOSE = 1e-3  # of the largest value: rounding to bfloat16 errs by more, other sums by less


@pytest.mark.parametrize("B", [3, 40])
@pytest.mark.parametrize("plan", ["mlp with time", "time in the middle", "paper_ct"])
def test_operands_are_rounded_to_bfloat16(kernels: ModuleType, isa: str, plan: str, B: int) -> None:
    call = make_chain_call(PLANS[plan], "heun", 2, B, S=2, precision="bfloat16")
    exact, unrounded = oracle(call, torch.float64)["logits"], clone_call(call)
    unrounded.slices.precision = "float32"
    kernels.predict(call)
    kernels.predict(unrounded)
    error, other = ((made.logits - exact).abs().max() for made in (call, unrounded))
    assert error <= CLOSE * exact.abs().max() < other, (error, other, exact.abs().max())


def assert_same(part: PredictCall, whole: PredictCall, place: Any = ...) -> None:
    for name in OUTPUTS:
        expected = getattr(whole, name)[place]
        assert expected.isfinite().all() and torch.equal(getattr(part, name), expected), name


def rows_of(whole: PredictCall, first: int, rows: int) -> PredictCall:
    part = clone_call(whole)
    part.first_row = whole.first_row + first
    part.inputs = {
        name: x[:, first : first + rows].contiguous() for name, x in whole.inputs.items()
    }
    kept, S, R, _, _ = whole.z.shape
    return poisoned(part, kept, S, R, rows)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("plan", PLANS)
def test_parts_of_a_batch(kernels: ModuleType, isa: str, plan: str, precision: str) -> None:
    options = {"S": 2, "R": 2, "kept": 1, "first_row": 7, "precision": precision}
    whole = make_chain_call(PLANS[plan], "mixed", 1, 150, **options)
    kernels.predict(whole)
    for first, rows in ((0, 1), (5, 3), (30, 6), (50, 9), (100, 50)):
        part = rows_of(whole, first, rows)
        kernels.predict(part)
        assert_same(part, whole, (slice(None),) * 3 + (slice(first, first + rows),))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("many_blocks", [True, False])
@pytest.mark.parametrize("plan", PLANS)
def test_samples_alone_or_together(
    kernels: ModuleType, isa: str, plan: str, many_blocks: bool, precision: str, monkeypatch
) -> None:
    """One sample's layers have no sums that are kept where it is alone, with a block each."""
    monkeypatch.setattr(extension, "threads", lambda: 1)
    for B in (3, 40):
        options = {"many_blocks": many_blocks, "precision": precision, "seed": B}
        together = make_chain_call(PLANS[plan], "ancestral", 3, B, S=3, **options)
        alone = make_chain_call(PLANS[plan], "ancestral", 3, B, S=1, **options)
        kernels.predict(together)
        kernels.predict(alone)
        assert_same(alone, together, (slice(None), slice(1)))


@pytest.mark.parametrize("plan", PLANS)
def test_all_that_is_kept(kernels: ModuleType, plan: str) -> None:
    few = make_chain_call(PLANS[plan], "heun", 4, 9, kept=2, S=2)
    every = make_chain_call(PLANS[plan], "heun", 4, 9, kept=4, S=2)
    kernels.predict(few)
    kernels.predict(every)
    assert_same(few, every, slice(1, None, 2))


WIDE = {
    "mlp with time": with_time(301, 5, 6, 300),
    "paper_ct": PLANS["paper_ct"],
    "time in the middle": Plan(
        inputs={"x": (300,), "z": (5,), "t": (6,)},
        layers={
            "ht": Dense("t", 300, **RELU),
            "more": Dense(("ht", "t"), 300, **GELU),
            "both": Dense(("x", "t", "x"), 300, **RELU),
            "f": Dense(("x", "both", "z", "more"), 300, **RELU),
            "g": Dense(("more", "f", "ht"), 300, add="more"),
            "logits": Dense("g", 6),
        },
    ),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("B, S, threads", [(1, 1, 2), (3, 2, 5), (40, 1, 3), (131, 1, 7)])
@pytest.mark.parametrize("plan", WIDE)
def test_threads(
    kernels: ModuleType, plan: str, B: int, S: int, threads: int, precision: str, monkeypatch
) -> None:
    alone = make_chain_call(WIDE[plan], "mixed", 17, B, S=S, precision=precision)
    crew = clone_call(alone)
    monkeypatch.setattr(extension, "threads", lambda: 1)
    kernels.predict(alone)
    monkeypatch.setattr(extension, "threads", lambda: threads)
    for _ in range(3):
        crew = poisoned(crew, *alone.z.shape[:4])
        kernels.predict(crew)
        assert_same(crew, alone)


@pytest.mark.parametrize("B, threads", [(40, 1), (40, 2), (10_000, 2)])
def test_a_signal_s_handler_stops_a_long_chain(
    kernels: ModuleType, B: int, threads: int, monkeypatch
) -> None:
    """Whichever thread leads it: of a crew, the first to come."""

    class Stop(Exception):
        pass

    def handler(*_: Any) -> None:
        raise Stop

    call = make_chain_call(plans.mlp(20, 5, 6, hidden=300), "euler", 10**8 // B // 10, B)
    monkeypatch.setattr(extension, "threads", lambda: threads)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(5):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            started = time.monotonic()
            with pytest.raises(Stop):
                kernels.predict(call)
            assert time.monotonic() - started < 2  # of minutes
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# what the extension refuses


def refused(kernels: ModuleType, call: PredictCall, words: str) -> None:
    with pytest.raises(ValueError, match=f"^predict: {words}"):
        kernels.predict(call)
    for name in OUTPUTS:
        assert getattr(call, name).isnan().all(), name


def test_chains_that_do_not_fit(kernels: ModuleType) -> None:
    def made(kind: str = "heun", kept: int = 1, plan: str = "mlp with time", **options: Any) -> Any:
        return make_chain_call(PLANS[plan], kind, 4, 3, kept=kept, **options)

    for name in ("b", "sqrt_c", "weight", "next", "keep"):
        call = made()
        setattr(call.chain, name, torch.zeros(7))
        refused(kernels, call, rf"{name} must have shape \(8,\), got \(7,\)")
        setattr(call.chain, name, torch.zeros(8, dtype=torch.float64))
        refused(kernels, call, f"{name} must be torch.float32, got torch.float64")
    call = made()
    call.chain.a = torch.zeros(0)
    refused(kernels, call, "a must have at least 1 evaluation, got 0")
    call = made()
    call.chain.ends = call.chain.ends.float()
    refused(kernels, call, "ends must be torch.bool, got torch.float32")
    call = made()
    call.chain.ends = ~call.chain.ends
    refused(kernels, call, "ends must be true of the last evaluation, got false")
    refused(kernels, made(kept=3), "logits must be kept after each of equal parts of 8 evaluations")
    refused(kernels, made(kept=8), "ends must be true where results are kept, got false of eval")
    call = made(many_blocks=True)
    call.slices.index = call.slices.index[:4].clone()
    refused(kernels, call, "index must have 1 block or one for each of 8 evaluations, got 4")


def test_times_that_do_not_fit(kernels: ModuleType) -> None:
    def made(plan: str = "mlp with time") -> Any:
        return make_chain_call(PLANS[plan], "euler", 4, 3)

    call = made("no time")
    call.chain.t = torch.zeros(4, 11)
    refused(kernels, call, "t must be None, since the plan has no such input")
    call = made()
    call.inputs["t"] = torch.zeros(1, 3, 11)
    refused(kernels, call, "t must be given by the chain or among the inputs, got both")
    call.chain.t = None
    kernels.predict(call)  # the same for all evaluations
    del call.inputs["t"]
    refused(kernels, poisoned(call, 1, 1, 1, 3), "t must be a tensor, got NoneType")
    for width, rows in ((10, 4), (11, 3)):
        call = made()
        call.chain.t = torch.zeros(rows, width)
        refused(kernels, call, rf"t must have shape \(4, 11\), got \({rows}, {width}\)")
    for bad in (torch.nan, torch.inf):
        call = made()
        call.chain.t[3, 10] = bad
        refused(kernels, call, "t must be finite, got NaN or infinity")
