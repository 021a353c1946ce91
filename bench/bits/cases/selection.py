"""Every case of a backend, by its name."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import torch

from .functions import LABELS, dense, head, label, layers
from .plans import PLANS, SIZES, SMALL, WIDE, Sizes
from .settings import DT, GOALS, OPTIMIZERS, PRECISIONS, Results, Setting
from .steps import autograd, coupled, halves, predict, train_step, train_steps

SLOW = ("triton", "cuda")
SLOW_IN_FULL = (("norm", "adamw", "float32"), ("two_inputs", "nesterov", "bfloat16"))
Case = Callable[[], Results]


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
            for activation in (None, "relu", "gelu"):
                yield (
                    f"dense {activation} {precision} B={B}",
                    partial(dense, activation, precision, s, B),
                )
        for kind, flow in LABELS:
            yield f"label {kind} flow={flow} B={B}", partial(label, kind, flow, s, B)
    yield from of_goals(s, slow)


def of_goals(s: Sizes, slow: bool) -> Iterator[tuple[str, Case]]:
    """The cases of each goal that draws a t for every row, and those of all that a goal learns."""
    optimizers, precisions = cycle(OPTIMIZERS), cycle(PRECISIONS)
    for goal in GOALS:
        for precision in (next(precisions),) if slow else PRECISIONS:
            for B in s.B:
                optimizer = next(optimizers)
                name = f"{goal} {optimizer} {precision}"
                one = s._replace(seeds=s.seeds[:1])  # a learned embedding is one replica's
                setting = Setting(one, "mlp", optimizer, precision, goal)
                yield f"{name} coupled B={B}", partial(coupled, setting, B)
                if goal == DT:
                    continue
                setting = setting._replace(s=s)
                steps = partial(train_steps, setting, B, torch.float32, False)
                yield f"{name} train_steps B={B}", steps
                for act in () if slow else (train_step, halves, autograd, predict):
                    yield f"{name} {act.__name__} B={B}", partial(act, setting, B)


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
