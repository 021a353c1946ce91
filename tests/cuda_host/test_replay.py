"""Whole launches of the persistent kernel, every stage in them, under sanitizers.

What the backend launches is recorded, with the memory that it works in, and run again by a program
that is built with AddressSanitizer and UndefinedBehaviorSanitizer, or with ThreadSanitizer; both
must leave the bytes that the plain module left.

What the host cannot show is in test_emulator.py; and an overrun from one buffer of the workspace
into the next, or from a slice into its neighbour, is inside of one allocation: only wrong bytes
tell of it.
"""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from calls_for_tests import PLANS, make_predict_call, make_slices, make_train_call
from cuda_host_for_tests import HERE, ROOT, run, with_marks
from noprop_kernels.calls import Rule, UpdateCall
from noprop_kernels.cuda_kernels import extension, residency
from noprop_kernels.cuda_kernels.residency import Layout
from noprop_kernels.optimizers import SGD, AdamW
from recordings_for_tests import Recorder
from stages_for_tests import ENUMS

pytestmark = pytest.mark.cuda_host

PRECISIONS = ("float32", "tf32", "bfloat16")
SOURCES = [HERE / "replay.cpp", HERE / "runtime_host.cpp", ROOT / "csrc/cuda/launch.cpp"]


def record_all(kernels: ModuleType) -> None:
    """Few launches with all kinds of stages: norms, skips, several tiles a stage, odd sizes."""
    for precision in PRECISIONS:
        steps = make_train_call(
            PLANS["branches"](70, 5, 6), 3, 3, 19, 2, optimizer=AdamW(), gather=True
        )
        steps.slices.precision = precision
        kernels.train(steps)
    options = {"extras": True, "head": "linear", "flow": 1.0, "per_row": True, "sigma": 0.5}
    plan = PLANS["branches"](9, 5, 6)
    kernels.train(make_train_call(plan, 3, 2, 19, 1, optimizer=SGD(lr=0.1), **options))
    kernels.predict(make_predict_call(PLANS["added_input"](9, 5, 6), 2, 2, 19, 1))
    kernels.update(update_call())


def update_call() -> UpdateCall:
    generator = torch.Generator().manual_seed(3)
    optimizer, plan = SGD(lr=0.1, momentum=0.9), PLANS["branches"](9, 5, 6)
    slices = make_slices(plan, 3, 2, optimizer=optimizer, generator=generator)
    grads = {
        name: torch.randn(2, *shape, generator=generator)
        for name, shape in plan.parameters().items()
    }
    rates = torch.full((1, 2), 0.1, dtype=torch.float64)
    return UpdateCall(slices, grads, torch.tensor([True, False]), Rule(optimizer, rates, rates[0]))


@pytest.fixture(scope="session")
def recordings(cuda_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of launches of two groups of two thread blocks."""
    from noprop_kernels import dispatch

    recorder = Recorder(cuda_module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "module", recorder)
        patch.setattr(residency, "layout", lambda *sizes: Layout(2, 2))
        record_all(dispatch.load("cuda"))
    kinds = frozenset().union(*(made.kinds for made in recorder.recordings))
    assert {kind.replace("_", "") for kind in kinds} == {kind.lower() for kind in ENUMS["Kind"]}
    folder = tmp_path_factory.mktemp("recordings")
    return [made.write(folder / f"launch{i}") for i, made in enumerate(recorder.recordings)]


@pytest.mark.parametrize("variant", with_marks((v,) for v in ("plain", "address", "thread")))
def test_every_byte_is_the_module_s(builder, recordings, variant: str) -> None:
    seeds = "0123" if variant == "plain" else "02"
    said = run(builder.build("replay", SOURCES, variant), "0", seeds, *recordings)
    assert said == "".join(f"seed {seed}: 0 wrong\n" for seed in seeds) * len(recordings)
