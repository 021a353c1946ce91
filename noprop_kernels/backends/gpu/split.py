"""Splits a training call into smaller calls."""

from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from ..calls import Gather, TrainCall
from .memory import compact


def part_of(call: TrainCall, steps: slice, slices: slice) -> TrainCall:
    """A call of some steps of some slices, on the same state."""

    def rows(value: Tensor | Gather) -> Tensor | Gather:
        if isinstance(value, Tensor):
            return value[steps, slices]
        return replace(value, indices=value.indices[steps], replica=value.replica[slices])

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: inner[slices] for name, inner in value.items()}
        return value if value is None else value[slices]

    noise, noising, rule, out = call.noise, call.noising, call.rule, call.out

    def numbers(value: Tensor) -> Tensor:
        return compact(value[steps, slices])

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
        noising=replace(noising, signal=numbers(noising.signal), noise=numbers(noising.noise)),
        objective=replace(call.objective, weight=numbers(call.objective.weight)),
        inputs={name: rows(value) for name, value in call.inputs.items()},
        z=cut(call.z),
        y=rows(call.y),
        rule=rule and replace(rule, lr=numbers(rule.lr), weight_decay=rule.weight_decay[slices]),
        K=len(range(call.K)[steps]),
        out=replace(out, **results),
    )
