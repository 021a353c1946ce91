"""`python -m noprop_kernels`: versions, what is built, and which backend runs here."""

import platform
from collections.abc import Iterator

import torch

from . import __version__
from .backends import dispatch
from .backends.cpu import backend as cpu
from .backends.cuda import extension


def main() -> None:
    for line in lines():
        print(line)


def lines() -> Iterator[str]:
    """The output of `python -m noprop_kernels`, line by line."""
    yield (
        f"noprop_kernels {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
    yield "CPU kernels:"
    if reason := cpu.unavailable():
        yield f"  not built: {reason}"
    else:
        dispatch.native_gap()  # applies NOPROP_ISA
        built = dict(cpu.describe())
        isas = built.pop("isas")
        runs = (f"{isa} ({'runs' if here else 'not here'})" for isa, here in isas.items())
        yield f"  isas: {', '.join(runs)}"
        for name, value in built.items():
            yield f"  {name}: {value}"
    yield from f"CUDA kernels: {extension.describe()}".splitlines()
    yield f"Triton: {dispatch.triton_version() or 'not installed'}"
    for device, what in devices():
        yield f"backends on {device}{what}:"
        for name in dispatch.BACKENDS:
            reason = dispatch.gap(name, None, device, "float32")
            yield f"  {name}: {reason or 'runs here'}"


def devices() -> Iterator[tuple[torch.device, str]]:
    """The CPU and each GPU with its name; without a GPU, "cuda" for the reasons."""
    yield torch.device("cpu"), ""
    if not torch.cuda.is_available():
        yield torch.device("cuda"), ""
        return
    for i in range(torch.cuda.device_count()):
        device = torch.device("cuda", i)
        capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
        yield device, f" ({torch.cuda.get_device_name(device)}, compute capability {capability})"


if __name__ == "__main__":
    main()
