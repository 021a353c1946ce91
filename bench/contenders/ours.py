"""Our contenders: noprop_kernels on the problem, through its public names."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels import philox
from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cpu import backend as cpu

from ..machine import gpu
from ..problem.problem import Factors, Problem, Weights
from .contender import PRECISIONS, Contender, Entry, Missing

SEED = 0  # of all blocks of a DT; replicas have 0, 1, ...
OPTIMIZERS = {"sgd": nk.SGD} | dict.fromkeys(("ct", "fm", "coupled", "apart"), nk.Adam)


class Ours(Contender):
    """K steps in one call of train_steps, which gathers the rows itself.

    Attributes:
        backend: the backend that must run it; by default the reference could, which is no
            contender.

    Args:
        blocks_per_launch: as DenoisingBlocks has it.
    """

    backend = "cpu"

    def __init__(
        self,
        problem: Problem,
        threads: int,
        *,
        maths: str | None = None,
        blocks_per_launch: int | None = None,
    ) -> None:
        super().__init__(problem, threads, maths=maths)
        s = self.shape
        make = OPTIMIZERS.get(self.maths, nk.AdamW)
        self.blocks = nk.DenoisingBlocks(
            s.plan,
            self.goal(),
            embedding=None if problem.embedding is None else problem.embedding.cpu(),
            shared=self.shared(),
            optimizer=make(lr=problem.lr, weight_decay=problem.weight_decay),
            seed=list(range(s.T)) if s.timed else SEED,
            precision=problem.precision,
            backend=self.backend,
            blocks_per_launch=blocks_per_launch,
        ).to(self.device)
        params = dict(self.blocks.named_parameters())
        with torch.no_grad():
            for name, value in problem.weights.items():
                params[name].copy_(value)

    def goal(self) -> nk.DT | nk.CT | nk.FM:
        if self.maths in ("ct", "fm"):
            return nk.CT() if self.maths == "ct" else nk.FM()
        return nk.DT(nk.NoiseSchedule.cosine(T=self.shape.T))

    def shared(self) -> nk.Shared | None:
        """What the blocks share with an output head."""
        return None

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        self.refuse(eps)
        return self.blocks.train_steps(self.X, self.Y, indices)

    @staticmethod
    def refuse(eps: Tensor | None) -> None:
        if eps is not None:
            raise ValueError("ours: eps must be None, the noise is a function of the seed")

    def weights(self) -> Weights:
        state = self.blocks.state_dict()
        names = (*self.problem.weights, *self.problem.statistics())
        return {name: state[name].detach().clone() for name in names}

    def check_eps(self, K: int, seed: int) -> tuple[None, Tensor]:
        s, (seeds, block) = self.shape, self.addresses()

        def drawn(draw: int) -> Tensor:
            eps = philox.normal(seeds, philox.STREAM_EPS, 0, draw, block, s.B, s.D)
            if not s.timed:
                return eps
            t = philox.uniform(seeds, philox.STREAM_TIME, 0, draw, block, s.B, 1)
            return torch.cat([eps, t], dim=2)

        return None, torch.stack([drawn(draw) for draw in range(K)])

    def addresses(self) -> tuple[Tensor, Tensor]:
        """The seed and the block's number of each slice, from which its noise has its address."""
        return self.blocks.get_buffer("seeds"), self.blocks.get_buffer("t") - 1

    def check_factors(self, k: int) -> Factors:
        """By the addresses of its numbers: column = pixel * channels + channel."""
        s, plan = self.shape, self.shape.plan
        seeds, blocks = self.addresses()

        def factors(name: str, site: int) -> Tensor:
            (channels, *size), rate = plan.shapes[name], plan.layers[name].dropout
            address = (seeds, philox.STREAM_DROPOUT, site, k, blocks)
            numbers = philox.uniform(*address, s.B, plan.widths[name])
            kept = (numbers >= round(rate * 2**24) / 2**24) / (1 - rate)
            return kept.unflatten(2, (*size, channels)).movedim(-1, 2)

        return {name: factors(name, site) for name, site in plan.dropout_sites().items()}

    def resident(self) -> dict[str, int]:
        """Bytes of the object's own tensors; counters are seeds, draws, updates and the like."""
        buffers = {name: buffer.nbytes for name, buffer in self.blocks.named_buffers()}
        moments = sum(size for name, size in buffers.items() if name.endswith(("_m", "_v")))
        weights = sum(parameter.nbytes for parameter in self.blocks.parameters())
        counters = sum(buffers.values()) - moments
        return {"weights": weights, "optimizer": moments, "counters": counters}

    def gradient_bytes(self) -> int:
        return 0  # a tile's gradient is used in registers, or in the workspace

    def thread_bytes(self, K: int) -> int:
        """One thread's workspace on a CPU, in a call of K steps."""
        s = self.shape
        return cpu.workspace_bytes(s.plan, s.T, s.B, s.D, K, self.problem.precision)

    def step_bytes(self, indices: Tensor) -> int | None:
        if self.backend != "cpu":
            return super().step_bytes(indices)
        s, precision = self.shape, self.problem.precision
        return self.threads * self.thread_bytes(len(indices)) + cpu.packed_bytes(
            s.plan, s.T, s.B, len(indices), precision
        )


class OursTrainStep(Ours):
    """One train_step a step, on rows that torch gathers: a user's own loop."""

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        self.refuse(eps)
        losses = []
        for rows in indices:
            x, y = self.X.index_select(0, rows), self.Y.index_select(0, rows)
            losses.append(self.blocks.train_step(x, y).loss)
        return torch.stack(losses)


class OursOnGPU(Ours):
    """By the Triton kernels: K steps are CUDA graphs, with early launch (PDL) where supported.

    Args:
        pdl: False: without early launch.
    """

    backend = "triton"

    def __init__(
        self,
        problem: Problem,
        threads: int,
        *,
        blocks_per_launch: int | None = None,
        pdl: bool = True,
    ) -> None:
        super().__init__(problem, threads, blocks_per_launch=blocks_per_launch)
        self.pdl = pdl

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        from noprop_kernels import tuning

        with tuning.use(tuning.Launches(pdl=self.pdl)):
            return super().steps(indices, eps)


class OursOnCUDA(Ours):
    """By the persistent CUDA kernel: K steps of all blocks are one launch, long ones a few.

    Raises:
        Missing: the CUDA backend cannot run here, with the reason.
    """

    backend = "cuda"

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        reason = dispatch.gap(self.backend, self.shape.plan, self.device, problem.precision)
        if reason is not None:
            raise Missing(f"the CUDA backend: {reason}")


class OursOnClusters(OursOnCUDA):
    """The same, with a thread-block cluster for each group of thread blocks.

    Raises:
        Missing: the device has none.
    """

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        if self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) < (9, 0):
            raise Missing("thread-block clusters need compute capability 9.0")

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        with patch.dict(os.environ, {"NOPROP_CUDA_CLUSTERS": "1"}):
            return super().steps(indices, eps)


class OursTrainStepOnGPU(OursTrainStep):
    """A user's loop, without a graph."""

    backend = "triton"


class OursByHand(OursTrainStep):
    """The same loop with one train_step captured by the user: rows copied, graph replayed."""

    backend = "triton"

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        self.replay: Callable[[], Tensor] | None = None
        s = self.shape
        self.x = torch.empty(s.B, s.F, device=self.device)
        self.y = torch.empty(s.B, dtype=torch.int64, device=self.device)

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        self.refuse(eps)
        losses = []
        for rows in indices:
            torch.index_select(self.X, 0, rows, out=self.x)
            torch.index_select(self.Y, 0, rows, out=self.y)
            losses.append(self.step().clone())
        return torch.stack(losses)

    def step(self) -> Tensor:
        """The loss of one step on x and y; the first call compiles, the second is captured."""
        if self.replay is None:
            self.replay = self.capture
            return gpu.apart(self.device, self.plain)
        return self.replay()

    def plain(self) -> Tensor:
        return self.blocks.train_step(self.x, self.y).loss

    def capture(self) -> Tensor:
        self.replay = gpu.capture(self.device, self.plain)
        return self.replay()

    def step_bytes(self, indices: Tensor) -> None:
        return None  # the graph's own memory, which no step allocates


class OursSGDOnGPU(OursOnGPU):
    maths = "sgd"


class OursSGD(Ours):
    maths = "sgd"


ON_CPU = ("float32", "bfloat16")  # those of the CPU kernels

OURS = (
    Entry("ours", Ours, precisions=ON_CPU),
    Entry("ours_train_step", OursTrainStep, single=True, precisions=ON_CPU),
    Entry("ours_sgd", OursSGD, slow=True),
)


def on_gpu(name: str, make: Callable[..., Contender], **how: Any) -> Entry:
    return Entry(name, make, precisions=PRECISIONS, **how)


OURS_ON_GPU = (
    on_gpu("ours", OursOnGPU),
    on_gpu("ours_cuda", OursOnCUDA),
    on_gpu("ours_cuda_clusters", OursOnClusters),
    on_gpu("ours_no_pdl", partial(OursOnGPU, pdl=False)),
    on_gpu("ours_train_step", OursTrainStepOnGPU),
    on_gpu("ours_by_hand", OursByHand),
    on_gpu("ours_sgd", OursSGDOnGPU, slow=True),
)
