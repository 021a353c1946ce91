"""Tensors whose memory was released are refused by name; PyTorch's own operations would read beyond
it and end the process."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import noprop_kernels as nk

T, F, M, B = 3, 7, 5, 9
DT = nk.DT(nk.NoiseSchedule.cosine(T))


def released(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    value = torch.ones(shape, dtype=dtype)
    value.untyped_storage().resize_(0)
    return value


def blocks() -> nk.DenoisingBlocks:
    return nk.DenoisingBlocks(nk.plans.mlp(F, M, M, hidden=6), DT)


def rows() -> tuple[Tensor, Tensor]:
    return torch.ones(B, F, dtype=torch.float32), torch.arange(B) % M


def steps(**options: object) -> Callable[[], object]:
    return lambda: blocks().train_steps(*rows(), torch.arange(8).view(2, 4), **options)  # type: ignore[arg-type]


INTEGER = torch.int64
CALLS: dict[str, tuple[str, Callable[[], object]]] = {
    "a mean": ("normalize", steps(normalize=(released(F), 1.0))),
    "a std": ("normalize", steps(normalize=(0.0, released(F)))),
    "rates": ("lr", steps(lr=released(2))),
    "a rate": ("lr", steps(lr=released())),
    "the optimizer's rate": ("lr", lambda: nk.AdamW(lr=released())),  # type: ignore[arg-type]
    "alpha_bar": ("alpha_bar", lambda: nk.NoiseSchedule(released(T + 1))),
    "gamma": ("values", lambda: nk.Gamma(released(4))),
    "an end of gamma": ("gamma_0", lambda: nk.Gamma.linear(released(), 6.0)),  # type: ignore[arg-type]
    "times": ("t", lambda: nk.CT(nk.Gamma.linear()).levels(released(3))),
    "a number of blocks": ("T", lambda: nk.NoiseSchedule.cosine(released(dtype=INTEGER))),  # type: ignore[arg-type]
    "a width": ("width", lambda: nk.plans.mlp(released(dtype=INTEGER), M, M)),  # type: ignore[arg-type]
    "a block": ("blocks", lambda: blocks().block(released())),  # type: ignore[arg-type]
    "blocks": ("blocks", lambda: blocks().train_step(*rows(), blocks=released(2))),  # type: ignore[arg-type]
    "samples": ("samples", lambda: blocks().predict(rows()[0], samples=released())),  # type: ignore[arg-type]
    "a first row": ("first_row", lambda: blocks().add_noise(rows()[1], first_row=released())),  # type: ignore[arg-type]
    "a seed": ("seed", lambda: nk.DenoisingBlocks(blocks().plan, DT, seed=released())),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CALLS)
def test_released_memory_is_refused(name: str) -> None:
    argument, call = CALLS[name]
    with pytest.raises(ValueError, match=f"{argument}.* must have memory for its"):
        call()
