"""Small networks of one's own, as users write them, and ModuleBlocks made of them."""

from functools import partial

import torch
from torch import Tensor, nn

import noprop
import noprop_kernels as nk

F, M, T = 6, 3, 3
GOALS = {"dt": nk.DT(nk.NoiseSchedule.cosine(T)), "ct": nk.CT(), "fm": nk.FM()}
ADAMW = partial(torch.optim.AdamW, lr=1e-2)


class Net(nn.Module):
    """Reads x (B, F), z (B, D) and perhaps t (B,); has batch norm and dropout."""

    def __init__(self, D: int = M, timed: bool = False, features: int = F) -> None:
        super().__init__()
        self.hidden = nn.Linear(features + D + timed, 16)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.3)
        self.logits = nn.Linear(16, M)

    def forward(self, x: Tensor, z: Tensor, *t: Tensor) -> Tensor:
        h = self.hidden(torch.cat([x.float(), z, *(each[:, None] for each in t)], 1))
        return self.logits(self.dropout(self.norm(h).relu()))


class Encoder(nn.Module):
    """Features (B, 5) of images (B, 3, 2, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, (2, 1))
        self.norm = nn.BatchNorm2d(5)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(self.conv(x)).flatten(1).relu())


def own_blocks(kind: str = "dt", seed: int | list[int] = 5, **options) -> noprop.ModuleBlocks:
    """Of Nets that follow from the seed; of images (3, 2, 1) where there is an encoder."""
    goal = GOALS[kind]
    D = options["embedding"].shape[1] if "embedding" in options else M
    encoded = "encoder" in options
    options = {"x_shape": (3, 2, 1)} | options if encoded else options
    made = partial(Net, D, goal.timed, 5 if encoded else F)
    options = {"optimizer": ADAMW} | options
    return noprop.ModuleBlocks(lambda t: made(), goal, M, seed=seed, **options)


def own_encoder(seed: int = 0) -> Encoder:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Encoder()


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x (count, F) float32 and y (count,), which x shows."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % M
    return torch.randn(count, F, generator=generator) + 3 * torch.eye(M, F)[y], y


def state(blocks: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in blocks.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The names whose bits are not the same."""
    assert before.keys() <= after.keys()
    bits = {name: value.nan_to_num(7.25) for name, value in before.items()}
    return {name for name in bits if not torch.equal(bits[name], after[name].nan_to_num(7.25))}
