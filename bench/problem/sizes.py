"""The sizes that are measured, and the floating-point operations of one step."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

from noprop_kernels.plan import Plan
from noprop_kernels.plans import mlp, paper_ct, paper_dt


@dataclass(frozen=True)
class Shape:
    """T blocks of the two-stem MLP, or of the paper's convolutions, B rows a step.

    Args:
        name: as in the result files.
        B: rows of a mini-batch.
        F: width of x.
        H: width of the three hidden layers, or behind the paper's convolutions.
        D: width of the label embedding, which is one-hot where D = M.
        M: classes.
        T: blocks; or replicas of the one block of CT and FM.
        rows: of the data set that stays in memory, MNIST's number: far larger than any cache.
        image: (C, H, W) of x, where the blocks are the paper's.
        timed: whether the blocks are those of CT and FM, with an embedding of t as an input.
    """

    name: str
    B: int
    F: int
    H: int
    D: int
    M: int
    T: int
    rows: int = 60_000
    image: tuple[int, int, int] | None = None
    timed: bool = False

    @property
    def one_hot(self) -> bool:
        return self.D == self.M

    @cached_property
    def plan(self) -> Plan:
        """The layers hx, hz, f and logits, or the paper's block; where timed with ht too."""
        if self.image is not None:
            return (paper_ct if self.timed else paper_dt)(self.image, self.D, self.M)
        return mlp(self.F, self.D, self.M, hidden=self.H, time=self.timed)

    @property
    def dropout(self) -> dict[str, float]:
        """The part of each convolution's result that is 0 in a step."""
        return {name: self.plan.layers[name].dropout for name in self.plan.dropout_sites()}

    @property
    def parameters(self) -> int:
        """Parameters of all blocks."""
        return self.T * self.plan.num_parameters()

    @property
    def state_bytes(self) -> int:
        """Weights and AdamW's two moments of all blocks, float32."""
        return 12 * self.parameters

    def multiply_adds(self, name: str, live: bool = True) -> int:
        """Of a layer's product for one row, on the pixels that a result depends on or on all."""
        pixels = self.plan.live().get(name) if live else None
        if pixels is None:
            return self.plan.multiply_adds(name)
        return self.plan.fan_in(name) * self.plan.shapes[name][0] * math.prod(pixels)

    def forward_multiply_adds(self, live: bool = True) -> int:
        """Of one row and block."""
        return sum(self.multiply_adds(name, live) for name in self.plan.layers)

    def step_multiply_adds(self, live: bool = True) -> int:
        """Of one row and block: only products, and only unavoidable ones.

        A layer that reads the plan's inputs has two, the forward's and the weight gradient's; any
        other has that of its input's gradient too. An embedding that is not one-hot is a layer
        without a weight gradient.
        """
        plan, embedding = self.plan, 0 if self.one_hot else 2 * self.M * self.D
        products = {
            name: 2 if plan.inputs.keys() & set(layer.sources) else 3
            for name, layer in plan.layers.items()
        }
        layers = (count * self.multiply_adds(name, live) for name, count in products.items())
        return sum(layers) + embedding

    @property
    def flop(self) -> int:
        """Operations of one step of all blocks, on live pixels."""
        return 2 * self.T * self.B * self.step_multiply_adds()

    @property
    def nominal_flop(self) -> int:
        """The same on all pixels, those among them that a pool drops."""
        return 2 * self.T * self.B * self.step_multiply_adds(live=False)

    @property
    def forward_flop(self) -> int:
        """Operations of every block's products on B rows, once: a forward pass, or the chain."""
        return 2 * self.T * self.B * self.forward_multiply_adds()

    def of_input(self, name: str) -> set[str]:
        """An input, and the layers that depend on no other."""
        found = {name}
        for later, layer in self.plan.layers.items():
            if set(layer.sources) <= found:
                found.add(later)
        return found

    def sampler_flop(self, evaluations: int) -> int:
        """Operations of a sampler's answer to B rows: what x alone reaches is computed once.

        What t alone reaches is one row for the whole batch, and is not counted.
        """
        plan, encoder, time = self.plan, self.of_input("x"), self.of_input("t")
        once = each = 0
        for name, layer in plan.layers.items():
            if name in encoder:
                once += self.multiply_adds(name)
            else:
                outs, own = plan.widths[name], set(layer.sources) - encoder - time
                once += outs * sum(plan.widths[s] for s in encoder.intersection(layer.sources))
                each += outs * sum(plan.widths[s] for s in own)
        return 2 * self.T * self.B * (once + evaluations * each)


# goals of `ours` on a CPU in float32: ratio to the best rival, share of peak; of MLPs at K >= 50
TARGETS = {
    "tiny": (1.5, 0.70),
    "small": (1.5, 0.85),
    "stream": (1.8, 0.65),
    "wide": (1.3, 0.80),
    "paper-mnist": (1.4, 0.85),
    "paper-cifar10": (1.3, 0.85),
}

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", B=128, F=784, H=64, D=10, M=10, T=10),
        Shape("small", B=128, F=784, H=256, D=10, M=10, T=10),
        Shape("stream", B=32, F=784, H=256, D=10, M=10, T=10),
        Shape("wide", B=128, F=784, H=1024, D=10, M=10, T=10),
    )
}

# the paper's blocks; few rows, since the contenders share one machine's memory
PAPER_SHAPES = {
    shape.name: shape
    for shape in (
        Shape("paper-mnist", 128, 784, 256, 10, 10, T=10, rows=10_000, image=(1, 28, 28)),
        Shape("paper-cifar10", 128, 3072, 256, 10, 10, T=10, rows=10_000, image=(3, 32, 32)),
    )
}

# for a GPU beside SHAPES; at `huge` cuBLAS is expected to win
GPU_SHAPES = SHAPES | {
    shape.name: shape
    for shape in (
        Shape("large", B=2048, F=2048, H=2048, D=512, M=1000, T=12),
        Shape("huge", B=8192, F=4096, H=4096, D=512, M=1000, T=12),
    )
}

# for a rehearsal of a GPU's benchmark in Triton's interpreter
REHEARSAL = Shape("rehearsal", B=6, F=13, H=16, D=5, M=7, T=2, rows=40)

INFERENCE_SHAPES = {
    (shape := replace(SHAPES[name], name=f"{name}_x{B}", B=B)).name: shape
    for name in ("tiny", "small", "wide")
    for B in (1, 1024)
}

# one block of CT or FM, or ten replicas of it with the same rows
CONTINUOUS_SHAPES = {
    (shape := replace(base, name=f"{base.name}_R{R}", T=R, timed=True)).name: shape
    for base in (SHAPES["small"], PAPER_SHAPES["paper-mnist"])
    for R in (1, 10)
}
SAMPLER_SHAPES = {
    (shape := replace(base, name=f"{base.name}_x{B}", B=B, T=1, timed=True)).name: shape
    for base in (SHAPES["small"], PAPER_SHAPES["paper-mnist"])
    for B in (1, 128, 1024)
}

SCALES = {
    "T": (1, 2, 5, 10, 20),
    "B": (1, 8, 32, 128, 512),
    "H": (32, 64, 128, 256, 512, 1024),
}


def scaled(axis: str, value: int) -> Shape:
    """`small` with another T, B or H."""
    small = SHAPES["small"]
    if getattr(small, axis) == value:
        return small
    return replace(small, name=f"small_{axis}{value}", **{axis: value})


SCALING_SHAPES = {
    (shape := scaled(axis, value)).name: shape
    for axis, values in SCALES.items()
    for value in values
}
