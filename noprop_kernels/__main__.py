"""`python -m noprop_kernels`: versions, what is built, and which backend runs here."""

import platform
from collections.abc import Iterator

import torch

from . import __version__, dispatch, native
from .cuda_kernels import extension


def main() -> None:
    print(
        f"noprop_kernels {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
    print("CPU kernels:")
    if reason := native.unavailable():
        print(f"  not built: {reason}")
    else:
        dispatch.native_gap()  # applies NOPROP_ISA
        built = dict(native.describe())
        isas = built.pop("isas")
        print(
            "  isas:",
            ", ".join(f"{isa} ({'runs' if runs else 'not here'})" for isa, runs in isas.items()),
        )
        for name, value in built.items():
            print(f"  {name}: {value}")
    print(f"CUDA kernels: {extension.describe()}")
    print(f"Triton: {dispatch.triton_version() or 'not installed'}")
    for device, what in devices():
        print(f"backends on {device}{what}:")
        for name in dispatch.BACKENDS:
            reason = dispatch.gap(name, None, device, "float32")
            print(f"  {name}: {reason or 'runs here'}")


def devices() -> Iterator[tuple[torch.device, str]]:
    """The CPU and each GPU, with what it is; where there is none, "cuda" for the reasons."""
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
