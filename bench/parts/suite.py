"""Times the parts of a step: `python -m bench parts [--quick] [--shape small ...] [--out FILE]`.

Each part, on given inputs, against the torch operations that it replaces, as `bench run` does with
whole steps: checked first (against float64), then timed in turns.

    draw             standard normal numbers (T, B, D): ours against a torch.Generator
    noise            z = signal * u_y + noise * eps of labels: add_noise against torch.randn and mix
    forward          logits of all blocks, nothing kept for a backward
    head             losses and d_logits of logits
    backward         the gradients of all parameters for given d_logits
    update           AdamW of all parameters for given gradients
    backward_update  both in one: ours in one pass, without a gradient array
    linear           one layer's forward, backward and AdamW: nk.Linear against torch.nn.Linear
    dense_update     its gradients and AdamW for given input and d_y: nk.functional.dense_update_
    dense            its forward: nk.functional.dense
    loss             losses of a block's rows and d_logits: nk.DenoisingLoss

`ours` calls the public objects, `ours_backend` the function that they call, where the public call
does more: `update` looks at every gradient first, the head has no public call of its own, and the
fused backward uses its logits up. `eager` is stacked PyTorch (autograd, fused AdamW) and `compiled`
the same with its formulas written out under torch.compile. Flop are the products', bytes those of
weights, moments and gradients, once each; a part of neither has no share.
"""

from collections.abc import Callable, Sequence
from functools import partial

from ..contenders.contender import Entry
from ..problem.sizes import SHAPES
from ..suites.rounds import measure_rounds
from ..suites.run import run
from ..suites.suite import Suite
from . import ours, rivals
from .check import check_part
from .given import Part, PartCall
from .layers import LAYERS

PARTS: dict[str, dict[str, Callable[[Part], PartCall]]] = {
    "draw": {"ours_backend": ours.draw, "torch_generator": rivals.torch_draw},
    "noise": {
        "ours": ours.noise,
        "eager": rivals.torch_noise,
        "compiled": partial(rivals.torch_noise, compiled=True),
    },
    "forward": {
        "ours": ours.forward,
        "eager": rivals.torch_forward,
        "compiled": partial(rivals.torch_forward, compiled=True),
    },
    "head": {
        "ours_backend": ours.head,
        "eager": rivals.eager_head,
        "compiled": rivals.compiled_head,
    },
    "backward": {
        "ours": ours.backward,
        "eager": rivals.eager_backward,
        "compiled": rivals.compiled_backward,
    },
    "update": {
        "ours": ours.update,
        "ours_backend": ours.backend_update,
        "fused": partial(rivals.torch_update, fused=True),
        "foreach": partial(rivals.torch_update, foreach=True),
        "compiled": rivals.compiled_update,
    },
    "backward_update": {
        "ours_backend": ours.backward_update,
        "eager": rivals.eager_backward_update,
        "compiled": rivals.compiled_backward_update,
    },
    **LAYERS,
}

SUITE = Suite(
    prog="parts",
    about=__doc__,
    quick="small alone",
    entries=[
        Entry(name, partial(Part, part=part, make=make), compiles=name == "compiled")
        for part, makers in PARTS.items()
        for name, make in makers.items()
    ],
    shapes=SHAPES,
    quick_shapes=("small",),
    Ks=(1,),
    check=check_part,
    measure=measure_rounds,
    kind="parts",
)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(SUITE, arguments)
