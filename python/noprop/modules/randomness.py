"""torch's random numbers inside a network, such as dropout's, as a function of (seed, block, step).

Every network runs behind a seed of torch's generator that is made of these, and the generator's
state is put back afterwards: neither interruptions, nor other blocks, nor other code change a
network's draws.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from noprop_kernels import philox


def torch_seeds(seeds: Tensor, stream: int, draw: Tensor | int, block: Tensor | int) -> list[int]:
    """A seed of torch's generators for each of seeds (n,), in [0, 2^62)."""
    words = philox.words(seeds, stream, 0, draw, block, 1, 2)[:, 0]
    return (words[:, 0] >> 2 << 32 | words[:, 1]).tolist()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's generators of the CPU and of this device begin at `seed`, and come back as they
    were."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else [], device_type="cuda"):
        # torch.manual_seed would seed every GPU, also those whose state is not put back
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def made(
    make: Callable[[int], nn.Module], seeds: Tensor, T: int, device: torch.device
) -> list[nn.Module]:
    """make(t) for t = 1..T of each of seeds (R,), each behind its own seed of torch."""
    networks = []
    for one in seeds.split(1):
        for t in range(1, T + 1):
            (number,) = torch_seeds(one, philox.STREAM_INITIALISATION, 0, t - 1)
            with seeded(number, device):
                networks.append(make(t))
    return networks
