"""Chooses the backend: the best that can run, the forced one, or an error with every reason.

A backend is forced by `use_backend`, else by an object's `backend=`, else by NOPROP_BACKEND.
NOPROP_ISA forces the instruction set of the CPU kernels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from importlib import import_module, metadata
from types import ModuleType

import torch

from .. import settings
from ..plan import Conv2d, Dense, Plan
from .cpu import backend as cpu
from .cuda import extension
from .gpu import errors
from .warn import warn_once

# by device; on other devices only the reference runs, where it is forced
ORDER = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}
BACKENDS = {  # modules by name, each imported on first use
    "cpu": "cpu.backend",
    "triton": "triton.backend",
    "cuda": "cuda.backend",
    "reference": "reference.backend",
}
KINDS = dict.fromkeys(BACKENDS, (Dense,)) | {  # of layers, by backend
    name: (Dense, Conv2d) for name in ("cpu", "reference")
}
SAMPLERS = ("cpu", "reference")  # backends that have them
HEADS = {"radial": ("cpu", "reference")}  # the backends of a head that not all have
KNOWN_PRECISIONS = ("float32", "tf32", "bfloat16")
PRECISIONS = {
    "cpu": ("float32", "bfloat16"),
    "triton": KNOWN_PRECISIONS,
    "cuda": KNOWN_PRECISIONS,
    "reference": KNOWN_PRECISIONS,
}
OLDEST_TRITON = (3, 6)
INSTEAD = 'use .to("cpu") instead, or .to("cuda") where there is an NVIDIA or AMD GPU'

_forced: ContextVar[str | None] = ContextVar("noprop_kernels_backend", default=None)


class BackendError(RuntimeError):
    """No backend can run the call; the text has the reason for each candidate."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces a backend inside the `with`: it runs or raises BackendError.

    Args:
        name: "cpu", "triton", "cuda" or "reference".

    Raises:
        ValueError: no backend has this name.
    """
    token = _forced.set(check_name("use_backend", name))
    try:
        yield
    finally:
        _forced.reset(token)


def check_name(op: str, name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{op}: backend must be one of {tuple(BACKENDS)}, got {name!r}")
    return name


def check_options(op: str, precision: str, backend: str | None) -> None:
    if precision not in KNOWN_PRECISIONS:
        raise ValueError(f"{op}: precision must be one of {KNOWN_PRECISIONS}, got {precision!r}")
    if backend is not None:
        check_name(op, backend)


def choose(
    plan: Plan,
    device: torch.device,
    precision: str = "float32",
    backend: str | None = None,
    *,
    sampled: bool = False,
    head: str | None = None,
) -> ModuleType:
    """The backend's module that runs `plan` on `device`; sampled: in a sampler of CT or FM;
    head: of a call that computes a loss.

    Raises:
        BackendError: none can, or the forced one cannot.
    """
    forced, by = forced_backend(backend)
    if forced in (None, "cpu") and native_gap() is None:
        if runs_natively(plan, device, precision, sampled, head):  # the usual case, not searched
            return cpu
    if forced is None and device.type == "cpu" and (isa := settings.isa()):
        forced, by = "cpu", f"NOPROP_ISA={isa}"  # only the CPU kernels can honour it
    reasons: dict[str, str] = {}
    for name in candidates(device, forced):
        reason = gap(name, plan, device, precision, sampled=sampled, head=head)
        if reason is None:
            if name == "reference" and not forced:
                warn_once(f"the reference backend runs, slowly: {'; '.join(reasons.values())}")
            return load(name)
        reasons[name] = reason
    lines = [f"no backend can run this plan on {device} in {precision}"]
    lines += [f"  {name}: {reason}" for name, reason in reasons.items()]
    if forced:
        lines.append(f"  forced by {by}")
    if device.type not in ORDER:
        slow = forced is None and device_gap(device) is None
        lines.append(f"  no kernels for {device.type}")
        lines.append(INSTEAD + (', or force backend="reference", which is slow' if slow else ""))
    lines.append("see `python -m noprop_kernels` for what is built")
    raise BackendError("\n".join(lines))


def candidates(device: torch.device, forced: str | None) -> tuple[str, ...]:
    """The backends that may run there, best first."""
    return (forced,) if forced else ORDER.get(device.type, ())


@cache
def load(name: str) -> ModuleType:
    """A backend's module."""
    return import_module(f".{BACKENDS[name]}", __package__)


def name_of(module: ModuleType) -> str:
    """The name of a backend that `choose` gave."""
    return next(
        name for name, path in BACKENDS.items() if module.__name__ == f"{__package__}.{path}"
    )


def forcing() -> tuple[str | None, str | None]:
    """What a choice depends on beside its arguments."""
    return _forced.get(), settings.backend()


def forced_backend(backend: str | None) -> tuple[str | None, str]:
    """The forced backend, if any, and what forces it."""
    if name := _forced.get():
        return name, f'use_backend("{name}")'
    if backend is not None:
        return check_name("call", backend), f'backend="{backend}"'
    if name := settings.backend():
        return check_name("NOPROP_BACKEND", name), f"NOPROP_BACKEND={name}"
    return None, ""


def gap(
    name: str,
    plan: Plan | None,
    device: torch.device,
    precision: str,
    *,
    sampled: bool = False,
    head: str | None = None,
) -> str | None:
    """Why backend `name` cannot run `plan` (None: any) on `device`, or None if it can."""
    if sampled and name not in SAMPLERS:
        return f"has no kernels for the samplers of CT and FM, which {' and '.join(SAMPLERS)} have"
    if head in HEADS and name not in HEADS[head]:
        return f"has no kernels for the {head} head, which {' and '.join(HEADS[head])} have"
    for layer in plan.layers.values() if plan else ():
        if type(layer) not in KINDS[name]:
            able = [known for known, kinds in KINDS.items() if type(layer) in kinds]
            which = f", which {' and '.join(able)} can run" if able else ""
            return f"has no kernels for {type(layer).__name__} layers{which}"
    if name == "cpu":
        if reason := native_gap():
            return reason
        if device.type != "cpu":
            return f"runs on the CPU only, the parameters are on {device}"
        if plan is not None and (reason := cpu.plan_gap(plan)):
            return reason
    if name == "triton" and (reason := triton_gap(device)):
        return reason
    if name == "reference" and (reason := device_gap(device)):
        return reason
    if name == "cuda" and (reason := cuda_gap(plan, device)):
        return reason
    if precision not in PRECISIONS[name]:
        return f"precision must be one of {PRECISIONS[name]}, got {precision!r}"
    return None


@lru_cache(maxsize=256)
def runs_natively(
    plan: Plan, device: torch.device, precision: str, sampled: bool, head: str | None
) -> bool:
    """Whether the CPU kernels, where they can be used, run such a call."""
    return gap("cpu", plan, device, precision, sampled=sampled, head=head) is None


@cache
def native_gap() -> str | None:
    """Why the CPU kernels cannot run, or None; the first call applies NOPROP_ISA."""
    if reason := cpu.unavailable():
        return reason
    if isa := settings.isa():
        try:
            cpu.set_isa(isa)
        except ValueError as error:
            return str(error)
    return None


def device_gap(device: torch.device) -> str | None:
    """Why PyTorch cannot compute on `device`, or None."""
    if device.type == "meta":
        return "tensors on meta have no contents"
    if device.type == "mps":
        return "rates of the optimizers are formed in float64, which mps does not have"
    if device.type != "cuda":
        return None
    if not torch.cuda.is_available():
        if torch.version.cuda is None and torch.version.hip is None:
            return f"no GPU that PyTorch can use: torch {torch.__version__} is built for CPUs alone"
        return "no GPU that PyTorch can use"
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        return f"no GPU {device}, there are {count}"
    return None


@cache
def triton_version() -> str | None:
    """The installed Triton's version, without importing it."""
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


def triton_gap(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on `device`, or None."""
    version = triton_version()
    if version is None:
        return "Triton is not installed; the extra noprop-kernels[triton] brings it"
    if tuple(map(int, version.split(".")[:2])) < OLDEST_TRITON:
        return f"needs Triton {'.'.join(map(str, OLDEST_TRITON))} or later, found {version}"
    interpreted = settings.interprets_triton()
    if device.type == "cpu":
        return None if interpreted else "runs on a CPU only where TRITON_INTERPRET=1 is set"
    if device.type != "cuda":
        return f"runs on NVIDIA and AMD GPUs, the parameters are on {device}"
    if interpreted:
        return "TRITON_INTERPRET=1 is set, which is for tensors on the CPU"
    return gpu_gap(device)


def cuda_gap(plan: Plan | None, device: torch.device) -> str | None:
    """Why the CUDA kernels cannot run `plan` (None: any) on `device`, or None."""
    if reason := extension.unavailable():
        return reason
    if extension.on_host():  # built for tests
        if device.type != "cpu":
            return f"is built for the host and runs on the CPU, the parameters are on {device}"
    elif device.type != "cuda":
        return f"runs on NVIDIA GPUs, the parameters are on {device}"
    elif torch.version.hip is not None:
        return "runs on NVIDIA GPUs, this PyTorch is for AMD's"
    elif reason := gpu_gap(device):
        return reason
    if plan is None:
        return None
    from .cuda import limits  # asks the extension for the kernels' sizes

    return limits.plan_gap(plan)


def gpu_gap(device: torch.device) -> str | None:
    """Why kernels cannot run on a GPU, or None."""
    if reason := device_gap(device):
        return reason
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        found = "{}.{}".format(*torch.cuda.get_device_capability(device))
        return f"needs a GPU of compute capability 8.0 or later, found {found}"
    return None


def check_device(device: str | torch.device | None = None) -> None:
    """Synchronises with a GPU, and raises errors that its kernels found in earlier calls.

    A kernel flags a label or an index out of range, or an input that is not finite. Without this
    function a later call of the same object raises the error, or for nk.functional a later call on
    the same device. On the CPU contents are checked before a call: there is nothing to find.

    Args:
        device: a GPU; None: every GPU that calls were made on.

    Raises:
        ValueError: an earlier call's contents did not fit; the text names the op and the cause. Or
            there is no such GPU.
    """
    if device is not None:
        device = torch.device(device)
        if device.type == "cuda" and (reason := device_gap(device)):
            raise ValueError(f"check_device: device must be a GPU that is there, got {reason}")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
    for known in errors.devices() if device is None else (device,):
        errors.check(known)
