"""Three models that are not NoProp's, each with over a million parameters in nn.Linear.

A multilayer perceptron on MNIST; a transformer with GELU, a tied head and two groups of
parameters, on sequences that it can learn; a residual encoder of convolutions on images of classes.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from noprop.datasets import idx

Group = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A model and what it learns.

    Args:
        name: of the model.
        build: the model, from torch's current seed.
        x, y: the rows.
        B: rows of a batch.
    """

    name: str
    build: Callable[[], nn.Module]
    x: Tensor
    y: Tensor
    B: int

    def model(self) -> nn.Module:
        """The model, always with the same first weights."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return self.build()

    def indices(self, K: int, seed: int) -> Tensor:
        """(K, B) int64: rows of K batches."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(len(self.x), (K, self.B), generator=generator)

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        x = self.x[rows]
        if x.is_floating_point():
            x = x.to(next(model.parameters()).dtype)
        return cross_entropy(model(x).flatten(0, -2), self.y[rows].flatten())


def groups(model: nn.Module) -> Iterator[Group]:
    """Two groups, as usual for transformers: vectors do not decay."""
    parameters = [*model.parameters()]
    yield {"params": [value for value in parameters if value.ndim > 1], "weight_decay": 0.1}
    yield {"params": [value for value in parameters if value.ndim < 2], "weight_decay": 0.0}


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.mix(x).unflatten(-1, (3, self.heads, -1)).movedim(-2, 1)
        query, key, value = parts.unbind(-2)
        y = scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(y.movedim(1, -2).flatten(-2))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads=4)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    def __init__(self, words: int, width: int, length: int, blocks: int) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        nn.init.normal_(self.word.weight, std=0.02)
        self.head.weight = self.word.weight  # tied

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[-1])
        return self.head(self.norm(self.blocks(self.word(x) + self.place(places))))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.silu(self.norms[0](self.first(x)))
        return nn.functional.silu(x + self.norms[1](self.second(y)))


def mlp() -> nn.Module:
    """Smooth, so that no row's gradient is a matter of rounding."""
    return nn.Sequential(
        *(nn.Linear(784, 1024), nn.GELU(), nn.Linear(1024, 512), nn.GELU(), nn.Linear(512, 10))
    )


def encoder() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, padding=1), Residual(16)),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), Residual(32), nn.Flatten()),
        *(nn.Linear(2048, 512), nn.SiLU(), nn.Linear(512, 10)),
    )


def sequences(words: int, length: int, count: int) -> tuple[Tensor, Tensor]:
    """Words of which the next mostly follows from this one, and the next of each."""
    generator = torch.Generator().manual_seed(1)
    follows = torch.randperm(words, generator=generator)
    words_at = [torch.randint(words, (count,), generator=generator)]
    for _ in range(length):
        drawn = torch.randint(words, (count,), generator=generator)
        keep = torch.rand(count, generator=generator) < 0.8
        words_at.append(torch.where(keep, follows[words_at[-1]], drawn))
    found = torch.stack(words_at, 1)
    return found[:, :-1].contiguous(), found[:, 1:].contiguous()


def images(count: int) -> tuple[Tensor, Tensor]:
    """Noise around an image of each of ten classes."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(10, (count,), generator=generator)
    centres = torch.randn(10, 3, 32, 32, generator=generator)
    return centres[y] / 4 + torch.randn(count, 3, 32, 32, generator=generator), y


def mnist_gap() -> str | None:
    """Why MNIST cannot be read, or None."""
    return None if os.environ.get("NOPROP_DATA") else "NOPROP_DATA, MNIST's folder, is not set"


def mnist() -> tuple[Tensor, Tensor]:
    folder = idx.folder_of(Path(os.environ["NOPROP_DATA"]).expanduser(), "MNIST")
    x, y = idx.read_split(folder, "train")
    return x.flatten(1).float() / 255, y.long()


def task(name: str, B: int | None = None) -> Task:
    """A task by name: "mlp", "transformer" or "encoder"; B rows a batch."""
    if name == "mlp":
        return Task(name, mlp, *mnist(), B or 128)
    if name == "transformer":
        build = lambda: Transformer(words=512, width=256, length=128, blocks=2)  # noqa: E731
        return Task(name, build, *sequences(512, 128, 512), B or 8)
    return Task(name, encoder, *images(2048), B or 64)


TASKS = ("mlp", "transformer", "encoder")
