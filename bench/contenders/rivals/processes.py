"""processes: one single-threaded process per core, each with its share of the blocks, block-major.

They are started once and kept; a call is a command through a pipe, and its time includes the round
trip. All processes read X from one memory-mapped file.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from numpy import ndarray
from torch import Tensor

from ...problem.problem import Problem, Weights
from ...problem.sizes import Shape
from ..contender import Contender
from .block_major import BlockMajor

BY_BLOCK = ("signal", "noise", "weight", "a", "b")


def share(problem: Problem, blocks: slice) -> Problem:
    """The problem restricted to these blocks."""
    T = len(range(*blocks.indices(problem.shape.T)))
    return dataclasses.replace(
        problem,
        shape=dataclasses.replace(problem.shape, T=T),
        weights={name: value[blocks] for name, value in problem.weights.items()},
        **{name: getattr(problem, name)[blocks] for name in BY_BLOCK},
    )


def work(
    pipe: Connection, folder: str, shape: Shape, fields: dict, make: Callable[..., Contender]
) -> None:
    """The main of a process: builds its blocks, then runs commands until the pipe closes.

    Tensors travel as numpy arrays, since torch's own pickling opens a shared memory file for each.
    """
    torch.set_num_threads(1)
    X = torch.from_file(f"{folder}/X", shared=True, size=shape.rows * shape.F)
    Y = torch.from_file(f"{folder}/Y", shared=True, size=shape.rows, dtype=torch.int64)
    numbers = {name: torch.from_numpy(fields.pop(name)) for name in BY_BLOCK}
    weights = {name: torch.from_numpy(value) for name, value in fields.pop("weights").items()}
    problem = Problem(
        shape=shape, X=X.view(shape.rows, shape.F), Y=Y, weights=weights, **numbers, **fields
    )
    blocks = make(problem, threads=1)
    pipe.send("ready")
    while (command := pipe.recv()) is not None:
        if command == "weights":
            pipe.send({name: value.numpy() for name, value in blocks.weights().items()})
            continue
        indices, eps, dropout = command
        blocks.dropout = {
            name: torch.from_numpy(drop) if isinstance(drop, ndarray) else drop
            for name, drop in dropout.items()
        }
        losses = blocks.steps(
            torch.from_numpy(indices), None if eps is None else torch.from_numpy(eps)
        )
        pipe.send(losses.numpy())


class Processes(Contender):
    """
    Args:
        make: (problem, threads) to the blocks of a process.
        maths: theirs, where it is not the class's own.
    """

    def __init__(
        self,
        problem: Problem,
        threads: int,
        *,
        make: Callable[..., Contender] = BlockMajor,
        maths: str | None = None,
    ) -> None:
        super().__init__(problem, threads, maths=maths)
        T, count = self.shape.T, min(threads, self.shape.T)
        self.shares = [slice(T * i // count, T * (i + 1) // count) for i in range(count)]
        context = get_context(
            "spawn"
        )  # a fork would copy torch's threads in whatever state they are
        self.workers = []
        self.pipes: list[Connection] = []
        with tempfile.TemporaryDirectory() as folder:
            self.X.numpy().tofile(Path(folder) / "X")
            self.Y.numpy().tofile(Path(folder) / "Y")
            for blocks in self.shares:
                part = share(problem, blocks)
                fields = {name: getattr(part, name).numpy() for name in BY_BLOCK}
                fields["weights"] = {name: w.numpy() for name, w in part.weights.items()}
                fields |= {"lr": part.lr, "weight_decay": part.weight_decay}
                ours, theirs = context.Pipe()
                worker = context.Process(
                    target=work, args=(theirs, folder, part.shape, fields, make), daemon=True
                )
                worker.start()
                theirs.close()
                self.workers.append(worker)
                self.pipes.append(ours)
            for pipe in self.pipes:
                pipe.recv()  # the file is mapped by now and can be unlinked

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        for pipe, blocks in zip(self.pipes, self.shares, strict=True):
            part = None if eps is None else eps[:, blocks].numpy()
            dropout = {
                name: drop[blocks].numpy() if isinstance(drop, Tensor) else drop
                for name, drop in self.dropout.items()
            }
            pipe.send((indices.numpy(), part, dropout))
        return torch.cat([torch.from_numpy(pipe.recv()) for pipe in self.pipes], dim=1)

    def weights(self) -> Weights:
        for pipe in self.pipes:
            pipe.send("weights")
        parts = [pipe.recv() for pipe in self.pipes]
        return {
            name: torch.cat([torch.from_numpy(part[name]) for part in parts]) for name in parts[0]
        }

    def step_bytes(self, indices: Tensor) -> None:
        return None  # the processes' memory is their own

    def close(self) -> None:
        for pipe, worker in zip(self.pipes, self.workers, strict=True):
            pipe.send(None)
            worker.join()
            pipe.close()
