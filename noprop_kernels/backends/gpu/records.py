"""What both GPU backends read out of a call's records, and the memory that a table asks for."""

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...optimizers import SGD, Adam, AdamW, Optimizer
from .. import contents
from ..calls import Gather, Mix, Rule, Slices, TrainCall
from . import errors
from .guard import where
from .stages import Table, floats
from .tables import Ask
from .tiles import Tiles


@lru_cache(maxsize=256)
def placed(index: tuple[int, ...], device: torch.device) -> Tensor:
    """(n,) int64 on a device; from pinned memory, so that nothing waits."""
    pinned = device.type == "cuda"
    host = torch.tensor(index, dtype=torch.int64, device="cpu", pin_memory=pinned)
    return host.to(device, non_blocking=True)


def index_on(index: Tensor, device: torch.device) -> Tensor:
    """Positions, (n,) int64 on the CPU, where the tensors are."""
    return index if device.type == "cpu" else placed(tuple(index.tolist()), device)


def index_of(slices: Slices) -> Tensor:
    return index_on(slices.index, where(slices))


def as_bytes(flags: Tensor | None) -> Tensor | None:
    return None if flags is None else flags.view(torch.uint8)


def stored(value: Tensor) -> Tensor:
    """The entries that an expanded tensor has in memory."""
    return value[tuple(slice(0, 1 if stride == 0 else None) for stride in value.stride())]


def differs(value: Tensor, dim: int) -> bool:
    return value.shape[dim] > 1 and value.stride(dim) != 0


def compact(value: Tensor) -> Tensor:
    """An expanded tensor whose entries lie together, so that no launch has to copy them."""
    kept = stored(value)
    return value if kept.is_contiguous() else kept.contiguous().expand(value.shape)


@dataclass
class Room:
    """Memory for workspaces of which one is used at a time; made anew where it is too small."""

    whole: Tensor | None = None

    def take(self, size: int, device: torch.device) -> Tensor:
        if self.whole is None or self.whole.numel() < size:
            self.whole = torch.empty(size, dtype=torch.float32, device=device)
        return self.whole


def allocate(table: Table, device: torch.device, room: Room | None = None) -> dict[str, Tensor]:
    """The buffers of a table's workspace, views of one tensor."""
    whole = (Room() if room is None else room).take(table.floats, device)
    views = {}
    for name, shape in table.shapes.items():
        start = table.offsets[name]
        views[name] = whole[start : start + floats(shape)].view(shape[1]).view(shape[0])
    return views


def rule_name(rule: Rule | None) -> str:
    return "none" if rule is None else optimizer_name(rule.optimizer)


def optimizer_name(optimizer: Optimizer) -> str:
    if isinstance(optimizer, SGD):
        momentum = "nesterov" if optimizer.nesterov else "momentum"
        return momentum if optimizer.momentum else "sgd"
    assert isinstance(optimizer, Adam)  # the caller refuses what is none of ours
    return "adamw" if isinstance(optimizer, AdamW) else "adam"


def hyper(rule: Rule | None) -> tuple[float, ...]:
    """The optimizer's own numbers, formed in float64."""
    optimizer = rule.optimizer if rule is not None else None
    if isinstance(optimizer, SGD):
        return (optimizer.momentum,)
    if isinstance(optimizer, Adam):
        beta_1, beta_2 = optimizer.betas
        return 1 - beta_1, beta_2, 1 - beta_2, optimizer.eps
    return (0.0,)


def log_betas(rule: Rule | None) -> tuple[float, float]:
    """ln beta; of a beta of 0 what gives exp(ln beta) = 0."""
    optimizer = rule.optimizer if rule is not None else None
    betas = optimizer.betas if isinstance(optimizer, Adam) else (0.0, 0.0)
    first, second = (math.log(beta) if beta > 0 else -1e4 for beta in betas)
    return first, second


def classes(mix: Mix) -> int:
    return mix.D if mix.W_embed is None else len(mix.W_embed)


def contents_are_checked(device: torch.device) -> bool:
    """On the CPU the host looks at labels, indices and inputs; on a GPU the kernels do."""
    return device.type == "cpu"


def owner_of(owner: Tensor | None, device: torch.device) -> Tensor:
    """Whose errors a call's are: an object's, or the device's."""
    return errors.owner_of(device) if owner is None else owner


def check_train(call: TrainCall) -> None:
    if contents_are_checked(where(call.slices)):
        contents.check_train(call)
        return
    if call.B == 0:
        raise ValueError("train: a batch must have at least 1 row, got 0")
    contents.check_rows("train", call.slices.plan, call.B)
    if call.rule is None and call.out.grads is None:
        raise ValueError("train: a call without grads must have a rule, got None")


def ask_of(call: TrainCall, tiles: Tiles, check: bool) -> Ask:
    """What the table of a training call is for."""
    plan, out, mix = call.slices.plan, call.out, call.mix
    drawn, updates = call.z is None, out.grads is None
    numbers = out.d_signal is not None or out.d_noise is not None
    wanted = set(out.d_inputs)
    if drawn and (numbers or out.d_W_embed is not None):
        wanted.add("z")
    gathered = tuple(name for name, value in call.inputs.items() if isinstance(value, Gather))
    replicas = [
        value.indices.shape[1] for value in call.inputs.values() if isinstance(value, Gather)
    ]
    return Ask(
        tiles=tiles,
        n=len(call.slices.index),
        B=call.B,
        M=plan.widths[plan.output],
        D=mix.D,
        R=max(replicas, default=1),
        precision=call.slices.precision,
        gathered=gathered,
        looked_at=tuple(name for name in call.inputs if name not in gathered) if check else (),
        drawn=drawn,
        eps=mix.flow != 0 or numbers,
        wanted=frozenset(wanted),
        numbers=drawn and numbers,
        d_W_embed=out.d_W_embed is not None,
        embedded=mix.head != "cross_entropy",
        update=updates,
        statistics="later" if updates and plan.has_norm() else "",
        check=check,
        outside=frozenset(outputs_of(call)),
    )


def outputs_of(call: TrainCall) -> dict[str, Tensor]:
    """The caller's tensors by the table's names, but for inputs that change from step to step."""
    out = call.out
    named = {":error": out.error, ":d_signal": out.d_signal, ":d_noise": out.d_noise}
    named |= {":d_W_embed": out.d_W_embed, "z": call.z}
    named |= {f"d:{name}": value for name, value in out.d_inputs.items()}
    named |= {f"grad:{name}": value for name, value in (out.grads or {}).items()}
    if out.grads is not None:
        named |= {f"batch:{name}": value for name, value in (out.stats or {}).items()}
    named |= {":loss": out.loss, ":applied": out.applied.view(torch.uint8)}
    return {name: value for name, value in named.items() if value is not None}


def part_of(call: TrainCall, steps: slice, slices: slice) -> TrainCall:
    """Some steps of some slices as a call of their own, on the same state."""

    def rows(value: Tensor | Gather) -> Tensor | Gather:
        if isinstance(value, Tensor):
            return value[steps, slices]
        return replace(value, indices=value.indices[steps], replica=value.replica[slices])

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: inner[slices] for name, inner in value.items()}
        return value if value is None else value[slices]

    noise, mix, rule, out = call.noise, call.mix, call.rule, call.out

    def numbers(value: Tensor) -> Tensor:
        return compact(value[steps, slices])

    both = {name: numbers(getattr(mix, name)) for name in ("signal", "noise", "weight")}
    results = {
        item.name: cut(getattr(out, item.name)) for item in fields(out) if item.name != "loss"
    }
    results |= {"loss": out.loss[steps, slices], "applied": out.applied[steps, slices]}
    return replace(
        call,
        slices=replace(call.slices, index=call.slices.index[slices]),
        noise=replace(
            noise,
            seeds=noise.seeds[slices],
            draw=numbers(noise.draw),
            block=numbers(noise.block),
        ),
        mix=replace(mix, **both),
        inputs={name: rows(value) for name, value in call.inputs.items()},
        z=cut(call.z),
        y=rows(call.y),
        rule=rule and replace(rule, lr=numbers(rule.lr), weight_decay=rule.weight_decay[slices]),
        K=len(range(call.K)[steps]),
        out=replace(out, **results),
    )
