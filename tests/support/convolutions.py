"""Plans with convolutions, their twin in torch.nn.functional, and rows that no rounding turns."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

import noprop_kernels as nk
from noprop_kernels import philox
from noprop_kernels.plan import Conv2d, Dense, Layer, MaxPool2d, Plan, Shape

F64 = torch.float64
M, D, T = 5, 4, 2  # classes, width of an embedding, blocks
MARGIN = 1e-4  # far above a rounding, so that every float takes the same side of a ReLU or pool

RELU, POOL = {"activation": "relu"}, {"pool": MaxPool2d()}
BOTH = RELU | POOL


def plan_of(x: Shape, z: Shape = (D,), **layers: Layer) -> Plan:
    return Plan({"x": x, "z": z}, layers)


# channels on either side of a tile of outputs (6 or 12) and of a strip of inputs (8, 16 or 32)
PLANS = {
    "one": plan_of((1, 5, 5), a=Conv2d("x", 5, **RELU), logits=Dense(("a", "z"), M)),
    "two": plan_of(
        (3, 7, 6),
        a=Conv2d("x", 12, **RELU),
        b=Conv2d("a", 13, 2, **RELU),
        logits=Dense(("z", "b"), M),
    ),
    "pools": plan_of(  # a row and a column are dropped; the second pool has no ReLU
        (2, 9, 9),
        a=Conv2d("x", 13, **BOTH),
        b=Conv2d("a", 26, 2, **POOL),
        logits=Dense(("b", "z"), M),
    ),
    "kernel 1": plan_of(
        (5, 4, 4),
        a=Conv2d("x", 26, 1),
        b=Conv2d("a", 26, 1, **RELU, add="a"),
        c=Conv2d("b", 26, 1, add="a"),
        d=Conv2d("c", 5, 3, **RELU),
        logits=Dense(("d", "z"), M),
    ),
    "adds x": plan_of(
        (5, 4, 5),
        a=Conv2d("x", 5, 1, **RELU, add="x"),
        b=Conv2d("a", 6, 2, **BOTH),
        logits=Dense(("b", "z"), M),
    ),
    "strips": plan_of(
        (20, 6, 5),
        a=Conv2d("x", 12, **RELU, dropout=0.25),
        b=Conv2d("a", 26, 2, **RELU, dropout=0.1),
        logits=Dense(("b", "z"), M),
    ),
    "more strips": plan_of(
        (40, 5, 5),
        a=Conv2d("x", 33, 2, **RELU),
        b=Conv2d("a", 5, **BOTH, dropout=0.4),
        logits=Dense(("b", "z"), M),
    ),
    "blocks of tiles": plan_of(
        (2, 6, 5),
        a=Conv2d("x", 53, 2, **BOTH),
        b=Conv2d("a", 50, 2, **RELU),
        logits=Dense(("b", "z"), M),
    ),
    "kernel 5": plan_of((2, 9, 8), a=Conv2d("x", 6, 5, **BOTH), logits=Dense(("a", "z"), M)),
    "kernel 7": plan_of(
        (1, 8, 9), a=Conv2d("x", 26, 7, **RELU), b=Conv2d("a", 5, 2), logits=Dense(("b", "z"), M)
    ),
    "two readers": plan_of(  # of a: one reads less of it than the other
        (3, 8, 7),
        a=Conv2d("x", 12, **RELU),
        b=Conv2d("a", 5, **POOL),
        c=Conv2d("a", 13, 2, **BOTH),
        logits=Dense(("b", "z", "c"), M),
    ),
    "dense and convolution": plan_of(
        (2, 7, 7),
        a=Conv2d("x", 26, **RELU),
        h=Dense("a", 6, **RELU),
        b=Conv2d("a", 13, **BOTH, dropout=0.3),
        logits=Dense(("b", "h", "z"), M),
    ),
    "z is an image": plan_of(
        (3, 6, 6),
        (1, 7, 6),
        a=Conv2d("x", 12, **BOTH),
        d=Conv2d("z", 5, **BOTH),
        e=Conv2d("d", 20, 2, **RELU),
        logits=Dense(("a", "e"), M),
    ),
    "dense reads x": plan_of((2, 6, 5), a=Conv2d("x", 5, **BOTH), logits=Dense(("x", "a", "z"), M)),
    "last": plan_of(
        (3, 5, 5), (M, 1, 1), a=Conv2d("x", 12, **RELU), logits=Conv2d("a", M, add="z")
    ),
}


def blocks_of(plan: Plan, held: list[int] | None = None, **options) -> nk.DenoisingBlocks:
    embedding = torch.randn(M, D, generator=torch.Generator().manual_seed(5))
    options = {"embedding": embedding, "backend": "cpu", "seed": 3} | options
    T = options.pop("T", 2)
    return nk.DenoisingBlocks(plan, nk.DT(nk.NoiseSchedule.cosine(T)), held=held, **options)


class Twin:
    """Slice i of blocks at their next step, its parameters leaves of autograd."""

    def __init__(self, blocks: nk.DenoisingBlocks, i: int, dtype: torch.dtype) -> None:
        self.blocks, self.i, self.dtype, self.plan = blocks, i, dtype, blocks.plan
        state = {name: value[i].clone() for name, value in blocks.state_dict().items()}
        shapes = self.plan.parameters()
        self.params = {name: state[name].to(dtype).requires_grad_() for name in shapes}
        self.stats = {name: state[name].to(dtype) for name in self.plan.statistics()}

    def kept(self, B: int) -> dict[str, Tensor]:
        """What dropout multiplies each result (B, C, H, W) by: its numbers go pixel by pixel."""
        blocks, found = self.blocks, {}
        for name, site in self.plan.dropout_sites().items():
            C, H, W = self.plan.shapes[name]
            rate = self.plan.layers[name].dropout
            numbers = philox.uniform(
                *(blocks.seeds[self.i : self.i + 1], philox.STREAM_DROPOUT, site),
                *(blocks.draws[self.i], blocks.t[self.i] - 1, B, H * W * C),
            )
            kept = (numbers[0] >= round(rate * 2**24) / 2**24).to(self.dtype) / (1 - rate)
            found[name] = kept.view(B, H, W, C).movedim(-1, 1)
        return found

    def logits(self, inputs: Mapping[str, Tensor], training: bool = True) -> Tensor:
        """(B, M) of rows (B, F); afterwards `margin` (B,) has the smallest distance of each row's
        numbers before a ReLU from 0, and of the two largest pixels of a pool from each other."""
        found, margins = dict(inputs), []
        kept = self.kept(len(inputs["x"])) if training else {}
        for name, layer in self.plan.layers.items():
            weight, bias = self.params[f"{name}.weight"], self.params[f"{name}.bias"]
            if isinstance(layer, Conv2d):
                image = found[layer.inputs].unflatten(-1, self.plan.shapes[layer.inputs])
                y = F.conv2d(image, weight, bias)
            else:
                y = F.linear(
                    torch.cat([found[source] for source in layer.sources], -1), weight, bias
                )
                if layer.norm is not None:
                    key = f"{name}.norm."
                    y = F.batch_norm(
                        y,
                        *(self.stats[key + "running_mean"], self.stats[key + "running_var"]),
                        *(self.params[key + "weight"], self.params[key + "bias"]),
                        *(training, layer.norm.momentum, layer.norm.eps),
                    )
            if layer.activation is not None:
                margins.append(y.detach().abs().flatten(1).amin(1))
                y = y.relu()
            if isinstance(layer, Conv2d) and layer.pool is not None:
                margins.append(pool_margin(y.detach()))
                y = F.max_pool2d(y, 2)
            y = (y * kept[name] if name in kept else y).flatten(1)
            found[name] = y + found[layer.add] if layer.add else y
        self.margin = torch.stack(margins).amin(0)
        return found[self.plan.output]

    def error(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B,): |softmax(logits) @ W_embed - u_y|^2."""
        W = self.blocks.W_embed
        W = torch.eye(M, dtype=self.dtype) if W is None else W.to(self.dtype)
        return (logits.softmax(-1) @ W - W[y]).square().sum(-1)

    def loss(self, error: Tensor) -> Tensor:
        t = self.blocks.t[self.i : self.i + 1]
        return self.blocks.goal.levels(t).weight[0].to(self.dtype) * error.mean()


def pool_margin(y: Tensor) -> Tensor:
    """(B,) of maps (B, C, H, W); a window of zeros hands no gradient to any of its pixels."""
    height, width = y.shape[2] // 2 * 2, y.shape[3] // 2 * 2
    windows = y[..., :height, :width].unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    top = windows.transpose(3, 4).flatten(4).topk(2).values
    apart = torch.where(top[..., 0] == 0, torch.inf, top[..., 0] - top[..., 1])
    return apart.flatten(1).amin(1)


def rows_apart(
    twins: list[Twin],
    B: int,
    z: Tensor | None = None,
    seed: int = 0,
    margin: float = MARGIN,
) -> dict[str, Tensor]:
    """Random rows (B, F) of each input, drawn anew until each has the margin in every twin.

    Args:
        z: (n, B, width), the twins' own; None: it is drawn too, for all of them.
    """
    generator = torch.Generator().manual_seed(seed)
    widths = {name: F for name, F in twins[0].plan.widths.items() if name in twins[0].plan.inputs}
    if z is not None:
        del widths["z"]
    rows = {name: torch.randn(B, width, generator=generator) for name, width in widths.items()}
    for _ in range(200):
        near = torch.zeros(B, dtype=torch.bool)
        for i, twin in enumerate(twins):
            given = rows if z is None else rows | {"z": z[i]}
            stats = {name: value.clone() for name, value in twin.stats.items()}
            with torch.no_grad():
                twin.logits({name: value.to(F64) for name, value in given.items()})
            twin.stats = stats
            near |= twin.margin < margin
        if not near.any():
            return rows
        for name, width in widths.items():
            rows[name][near] = torch.randn(int(near.sum()), width, generator=generator)
    raise AssertionError(f"no rows found whose numbers are {margin} apart")


def results(
    blocks: nk.DenoisingBlocks,
    inputs: Mapping[str, Tensor],
    objective: Callable[[Twin, Tensor], Tensor],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Of all slices by torch's autograd: logits, the gradients of parameters and inputs (d_...).

    Args:
        inputs: (B, F) by name, the same for all slices.
        objective: of a twin and its logits, the number whose gradients are taken.
    """
    found: dict[str, list[Tensor]] = {}
    for i in range(len(blocks)):
        twin = Twin(blocks, i, dtype)
        leaves = {name: x.to(dtype).clone().requires_grad_() for name, x in inputs.items()}
        logits = twin.logits(leaves)
        value = objective(twin, logits)
        wanted = twin.params | {f"d_{name}": leaf for name, leaf in leaves.items()}
        grads = torch.autograd.grad(value, list(wanted.values()))
        parts = dict(zip(wanted, grads, strict=True))
        for name, part in (parts | {"logits": logits.detach(), "value": value.detach()}).items():
            found.setdefault(name, []).append(part)
    return {name: torch.stack(parts) for name, parts in found.items()}
