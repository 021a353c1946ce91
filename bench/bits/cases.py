"""The cases whose bits are compared, run in the sources of one commit.

command.py copies this file into the commit's tests/, whose fixture `backend` builds and forces a
backend. It uses only public names of the package, so that it runs on commits before and after a
move or a renaming. Each case is a line of JSON in NOPROP_BITS_OUT: its name and the SHA-256 of
every tensor that it gave. NOPROP_BITS_CASE selects cases by a part of their names; NOPROP_BITS_ONLY
names a file with the cases to run, and then their tensors are kept too.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import noprop_kernels as nk

T, K = 3, 3


class Sizes(NamedTuple):
    F: int
    D: int
    M: int
    hidden: int
    B: tuple[int, ...]
    seeds: tuple[int, ...]  # one replica each


SIZES = Sizes(F=70, D=5, M=6, hidden=37, B=(7, 130), seeds=(11, -12))
# interpreted and emulated kernels run thousands of times slower
SMALL = Sizes(F=7, D=5, M=6, hidden=9, B=(7,), seeds=(11,))
SLOW = ("triton", "cuda")
SLOW_IN_FULL = (("norm", "adamw", "float32"), ("two_inputs", "nesterov", "bfloat16"))


def norm_plan(s: Sizes) -> nk.Plan:
    """Batch norm with and without an activation, a skip, concatenations."""
    norm = nk.BatchNorm(momentum=0.3)
    return nk.Plan(
        inputs={"x": (s.F,), "z": (s.D,)},
        layers={
            "h": nk.Dense(("z", "x"), s.hidden, norm=norm, activation="relu"),
            "left": nk.Dense("h", s.hidden, norm=nk.BatchNorm(eps=1e-3), add="h"),
            "right": nk.Dense(("h", "left"), s.hidden, activation="relu", add="left"),
            "logits": nk.Dense(("right", "x"), s.M),
        },
    )


def two_inputs(s: Sizes) -> nk.Plan:
    """A second input of the caller's, "t", that two layers read."""
    return nk.Plan(
        inputs={"t": (6,), "z": (s.D,), "x": (s.F,)},
        layers={
            "hx": nk.Dense(("x", "t"), s.hidden, activation="relu"),
            "hz": nk.Dense("z", 8),
            "f": nk.Dense(("hx", "hz", "t"), 11, activation="relu"),
            "logits": nk.Dense("f", s.M),
        },
    )


def added_input(s: Sizes) -> nk.Plan:
    """The inputs themselves are added."""
    return nk.Plan(
        inputs={"x": (s.F,), "z": (s.D,)},
        layers={
            "h": nk.Dense(("z", "x"), s.F, activation="relu", add="x"),
            "u": nk.Dense("h", s.D, norm=nk.BatchNorm(), add="z"),
            "logits": nk.Dense(("u", "h"), s.M),
        },
    )


PLANS: dict[str, Callable[[Sizes], nk.Plan]] = {
    "mlp": lambda s: nk.plans.mlp(s.F, s.D, s.M, hidden=s.hidden),
    "one_hot": lambda s: nk.plans.mlp(s.F, s.M, s.M, hidden=s.hidden),
    "norm": norm_plan,
    "two_inputs": two_inputs,
    "added_input": added_input,
    "paper_dt": lambda s: nk.plans.paper_dt(s.F, s.D, s.M),
}
WIDE = ("paper_dt",)  # layers of up to 512, too slow for every case
OPTIMIZERS = {
    "sgd": nk.SGD(lr=0.1, weight_decay=1e-3),
    "momentum": nk.SGD(lr=0.05, momentum=0.9),
    "nesterov": nk.SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": nk.Adam(lr=1e-2, weight_decay=1e-2, betas=(0.8, 0.95), eps=1e-6),
    "adamw": nk.AdamW(lr=1e-2),
}
PRECISIONS = ("float32", "bfloat16", "tf32")
LABELS = (
    ("softmax", 0.0),
    ("softmax", 1.0),
    ("linear", 0.0),
    ("linear", 1.0),
    ("cross_entropy", 0.0),
)
Results = Iterator[tuple[str, Any]]
Case = Callable[[], Results]


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Setting(NamedTuple):
    """The blocks of one case."""

    s: Sizes
    plan: str
    optimizer: str | None
    precision: str

    def blocks(self) -> nk.DenoisingBlocks:
        plan = PLANS[self.plan](self.s)
        D = plan.inputs["z"][0]
        table = torch.randn(self.s.M, D, generator=random(5))
        return nk.DenoisingBlocks(
            plan,
            nk.DT(nk.NoiseSchedule.cosine(T)),
            embedding=None if self.plan == "one_hot" else table,
            optimizer=None if self.optimizer is None else OPTIMIZERS[self.optimizer],
            seed=self.s.seeds,
            precision=self.precision,
        )

    def data(self, rows: int, dtype: torch.dtype = torch.float32) -> tuple[dict, Tensor]:
        """Inputs by name and labels."""
        generator, plan = random(rows), PLANS[self.plan](self.s)
        x = {}
        for name, (width,) in plan.inputs.items():
            if name == "z":
                continue
            if dtype == torch.uint8:
                made = torch.randint(256, (rows, width), generator=generator, dtype=dtype)
            else:
                made = torch.randn(rows, width, generator=generator).to(dtype)
            x[name] = made
        return x, torch.randint(self.s.M, (rows,), generator=generator)


# the work of a case


def train_step(setting: Setting, B: int) -> Results:
    """Three steps: of all blocks, of one block, and with every gradient that can be requested."""
    blocks, (x, y) = setting.blocks(), setting.data(B)
    wanted: dict[str, Any] = {
        name: True for name in signature(blocks.train_step).parameters if "_grad" in name
    }
    yield "all", blocks.train_step(x, y)
    yield "one", blocks.train_step(x, y, blocks=2, lr=0.02)
    yield "gradients", blocks.train_step(x, y, **wanted)
    yield "state", blocks.state_dict()


def train_steps(
    setting: Setting,
    B: int,
    dtype: torch.dtype,
    normalize: bool,
    gathered: bool = True,
    blocks: int | None = None,
) -> Results:
    """K steps in one call, of all blocks or of one."""
    made, (X, Y) = setting.blocks(), setting.data(3 * B, dtype)
    indices = torch.randint(3 * B, (K, len(setting.s.seeds), B), generator=random(3))
    options: dict[str, Any] = {"lr": torch.tensor([0.01, 0.02, 0.03]), "blocks": blocks}
    if normalize:
        options["normalize"] = {
            name: (
                torch.rand(value.shape[1], generator=random(1)),
                0.3 + torch.rand(value.shape[1], generator=random(2)),
            )
            for name, value in X.items()
        }
    if gathered:
        yield "loss", made.train_steps(X, Y, indices, **options)
    else:
        batches = {name: value.view(K, B, -1) for name, value in X.items()}
        yield "loss", made.train_steps(batches, Y.view(K, B), None, **options)
    yield "state", made.state_dict()


def halves(setting: Setting, B: int) -> Results:
    """Three times the gradients and the update as two calls, then the caller's own loss."""
    blocks, (x, y) = setting.blocks(), setting.data(B)
    for step in range(K):
        gradients = blocks.gradients(x, y)
        yield f"gradients{step}", gradients
        yield f"applied{step}", blocks.update(gradients)
    z = torch.randn(B, blocks.D, generator=random(7)).requires_grad_()
    logits = blocks(x, z)
    yield "logits", logits
    d_logits = torch.randn(logits.shape, generator=random(8)) / B
    yield "update", blocks.backward_update(logits, d_logits)
    yield "state", blocks.state_dict()


def autograd(setting: Setting, B: int) -> Results:
    """The loss by autograd."""
    blocks, (x, y) = setting.blocks(), setting.data(B)
    x = {name: value.requires_grad_() for name, value in x.items()}
    loss = blocks.loss(x, y)
    yield "loss", loss
    loss.sum().backward()
    yield "d_x", {name: value.grad for name, value in x.items()}
    yield "grad", {name: value.grad for name, value in blocks.named_parameters()}
    yield "noised", blocks.add_noise(y)
    yield "state", blocks.state_dict()


def predict(setting: Setting, B: int) -> Results:
    """The chain with its noise, and from the mean."""
    blocks, (x, _) = setting.blocks(), setting.data(B)
    yield "noise", blocks.predict(x, samples=2, keep="all")
    yield "mean", blocks.predict(x, noise=False)


def head(optimizer: str, precision: str, s: Sizes, B: int) -> Results:
    """The output head's training, and its answers afterwards."""
    made = nk.OutputHead(
        s.D,
        s.M,
        goal=nk.DT(nk.NoiseSchedule.cosine(T)),
        embedding=torch.randn(s.M, s.D, generator=random(5)),
        optimizer=OPTIMIZERS[optimizer],
        seed=s.seeds,
        precision=precision,
    )
    Y = torch.randint(s.M, (3 * B,), generator=random(6))
    yield "step", made.train_step(Y, 2)
    indices = torch.randint(3 * B, (K, B), generator=random(3))
    yield "loss", made.train_steps(Y, indices, torch.tensor([1, 2, 3]))
    yield "logits", made(torch.randn(B, s.D, generator=random(4)))
    yield "state", made.state_dict()


def layers(optimizer: str, precision: str, s: Sizes, B: int) -> Results:
    """A layer that updates itself, and its update as a function."""
    x = torch.randn(B, s.F, generator=random(1))
    weight = torch.randn(s.hidden, s.F, generator=random(2)) / 8
    bias = torch.randn(s.hidden, generator=random(3))
    d_y = torch.randn(B, s.hidden, generator=random(4)) / B
    layer = nk.Linear(s.F, s.hidden, optimizer=OPTIMIZERS[optimizer], precision=precision)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    for step in range(K):
        given = x.clone().requires_grad_()
        y = layer(given)
        y.backward(d_y)
        yield f"step{step}", {"y": y, "d_x": given.grad}
    yield "state", {**layer.state_dict(), "optimizer": layer.optimizer_state_dict()["state"]}
    state: dict[str, Tensor] = {}
    for step in range(K):
        yield (
            f"update{step}",
            nk.functional.dense_update_(
                x,
                d_y,
                weight,
                bias,
                optimizer=OPTIMIZERS[optimizer],
                state=state,
                input_grad=True,
                precision=precision,
            ),
        )
    yield "updated", {"weight": weight, "bias": bias, **state}


def dense(activation: str | None, precision: str, s: Sizes, B: int) -> Results:
    """One layer and its gradients."""
    x = torch.randn(B, s.F, generator=random(1)).requires_grad_()
    weight = (torch.randn(s.hidden, s.F, generator=random(2)) / 8).requires_grad_()
    bias = torch.randn(s.hidden, generator=random(3)).requires_grad_()
    y = nk.functional.dense(x, weight, bias, activation=activation, precision=precision)
    y.backward(torch.randn(y.shape, generator=random(4)))
    yield "y", y
    yield "grad", {"x": x.grad, "weight": weight.grad, "bias": bias.grad}


def label(kind: str, flow: float, s: Sizes, B: int) -> Results:
    """Noise on embeddings and the loss of a row, and their gradients."""
    table = torch.randn(s.M, s.D, generator=random(5)).requires_grad_()
    y = torch.randint(s.M, (B,), generator=random(6))
    signal = torch.rand(B, generator=random(7)).requires_grad_()
    z, eps = nk.functional.add_noise(
        y, signal, 0.5, seed=-3, draw=4, block=2, first_row=1, W_embed=table, sigma=0.25 * flow
    )
    yield "noised", {"z": z, "eps": eps}
    z.square().sum().backward()
    yield "d_noised", {"signal": signal.grad, "W_embed": table.grad}
    table.grad = None
    entropy = kind == "cross_entropy"
    logits = torch.randn(B, s.M, generator=random(8)).requires_grad_()
    loss = nk.functional.denoising_loss(
        logits,
        y,
        signal,
        W_embed=None if entropy else table,
        head=kind,
        flow=flow,
        eps=eps.detach() if flow else None,
    )
    yield "loss", loss
    loss.sum().backward()
    yield "d_loss", {"logits": logits.grad, "signal": signal.grad, "W_embed": table.grad}


def all_cases(backend: str) -> Iterator[tuple[str, Case]]:
    """Every case of a backend by its name."""
    slow = backend in SLOW
    s = SMALL if slow else SIZES
    for plan in PLANS:
        if backend == "triton" and plan in WIDE:  # hundreds of tiles a step
            continue
        for precision in PRECISIONS:
            for optimizer in OPTIMIZERS:
                setting = Setting(s, plan, optimizer, precision)
                few = plan in WIDE or (slow and (plan, optimizer, precision) not in SLOW_IN_FULL)
                for act, case in of_training(setting, few, one_block=slow):
                    yield f"{plan} {optimizer} {precision} {act}", case
            if slow and precision != "float32":
                continue
            setting = Setting(s, plan, None, precision)
            for B in s.B:
                for act in (autograd, predict):
                    yield f"{plan} {precision} {act.__name__} B={B}", partial(act, setting, B)
    for B in s.B:
        for precision in PRECISIONS:
            for optimizer in OPTIMIZERS:
                for act in (head, layers):
                    yield (
                        f"{act.__name__} {optimizer} {precision} B={B}",
                        partial(act, optimizer, precision, s, B),
                    )
            for activation in (None, "relu"):
                yield (
                    f"dense {activation} {precision} B={B}",
                    partial(dense, activation, precision, s, B),
                )
        for kind, flow in LABELS:
            yield f"label {kind} flow={flow} B={B}", partial(label, kind, flow, s, B)


def of_training(setting: Setting, few: bool, one_block: bool) -> Iterator[tuple[str, Case]]:
    """The cases of one plan, optimizer and precision; `few` keeps only steps on float32 rows."""
    for B in setting.s.B:
        steps = partial(train_steps, setting, B)
        blocks = 2 if one_block else None
        yield f"train_steps float32 B={B}", partial(steps, torch.float32, False, blocks=blocks)
        if few:
            continue
        yield f"train_step B={B}", partial(train_step, setting, B)
        yield f"halves B={B}", partial(halves, setting, B)
        for dtype in (torch.float32, torch.bfloat16, torch.uint8):
            text = str(dtype).removeprefix("torch.")
            yield f"train_steps {text} normalized B={B}", partial(steps, dtype, True)
        yield f"train_steps uint8 B={B}", partial(steps, torch.uint8, False)
        yield (
            f"train_steps batches B={B}",
            partial(steps, torch.float32, False, gathered=False),
        )


# their digests


def named(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a result, records and dicts opened."""
    if isinstance(value, Tensor):
        yield name, value.detach()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from named(f"{name}.{key}", inner)
    elif isinstance(value, tuple | list):
        for i, inner in enumerate(value):
            yield from named(f"{name}.{i}", inner)
    elif is_dataclass(value):
        for field in fields(value):
            yield from named(f"{name}.{field.name}", getattr(value, field.name))


def digest(value: Tensor) -> str:
    """SHA-256 of a tensor: its dtype, shape and bytes."""
    data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode() + data).hexdigest()


def run(backend: str, out: Path, part_of_name: str, only: set[str] | None) -> None:
    """Runs the cases and writes their lines; `only` some of them, with their tensors."""
    kept = {}
    with (out / "lines.jsonl").open("w") as file:
        for name, case in all_cases(backend):
            if part_of_name not in name or (only is not None and name not in only):
                continue
            line: dict[str, Any] = {"case": name}
            tensors: dict[str, Tensor] = {}
            try:
                for part, value in case():
                    # now, since the next call may write into the state
                    tensors |= {key: tensor.clone() for key, tensor in named(part, value)}
                line["digests"] = {key: digest(tensor) for key, tensor in tensors.items()}
            except nk.BackendError as error:
                line["refused"] = str(error)
            except Exception as error:  # recorded for both commits; the other cases still run
                line["failed"] = f"{type(error).__name__}: {error}"
            file.write(json.dumps(line) + "\n")
            file.flush()
            if only is not None:
                kept[name] = tensors
    if only is not None:
        torch.save(kept, out / "tensors.pt")


def product(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
    """Replaces Triton's dot in the interpreter by sums in ascending order: numpy's order depends on
    the host."""
    from triton.runtime.interpreter import TensorHandle

    left, right = (operand.data.astype(d.data.dtype) for operand in (a, b))
    total = np.array(d.data)
    for k in range(left.shape[-1]):
        total = total + left[..., k, None] * right[..., k, None, :]
    return TensorHandle(total, d.dtype.scalar)


def test_bits(backend: str, monkeypatch: Any) -> None:
    root = Path.cwd()
    assert Path(nk.__file__).is_relative_to(root), f"{nk.__file__} is not of {root}"
    if backend == "triton":
        from triton.runtime.interpreter import InterpreterBuilder

        monkeypatch.setattr(InterpreterBuilder, "create_dot", product)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)  # for torch.nn.Linear's own initialisation, which is then overwritten
    only = os.environ.get("NOPROP_BITS_ONLY")
    chosen = None if only is None else set(json.loads(Path(only).read_text()))
    out, part_of_name = os.environ["NOPROP_BITS_OUT"], os.environ["NOPROP_BITS_CASE"]
    run(backend, Path(out), part_of_name, chosen)
