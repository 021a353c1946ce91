"""`python -m noprop_kernels`: versions, what is built, and which backend runs here."""

import platform

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
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        print(f"backends on {device}:")
        for name in dispatch.BACKENDS:
            reason = dispatch.gap(name, None, torch.device(device), "float32")
            print(f"  {name}: {reason or 'runs here'}")


if __name__ == "__main__":
    main()
