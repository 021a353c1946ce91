"""Chooses the device of a run, and states the reason."""

import re
from dataclasses import dataclass

import torch

from noprop_kernels import Plan
from noprop_kernels.backends import dispatch

from .model import Model

NAMES = ("auto", "cpu", "cuda", "cuda:N")
OF_GPUS = ("triton", "cuda")  # backends for which auto chooses a GPU, best first


@dataclass(frozen=True)
class Device:
    """The device of a run.

    Args:
        device: with its index, if it is a GPU.
        why: "asked for", or the reason of `auto`.
        aside: a line on a GPU that `auto` leaves aside for the plan alone.
    """

    device: torch.device
    why: str
    aside: str | None = None

    @property
    def name(self) -> str:
        """ "cpu", or "cuda:0" with the GPU's name."""
        if self.device.type != "cuda":
            return str(self.device)
        return f"{self.device} ({torch.cuda.get_device_name(self.device)})"

    def describe(self, model: Model) -> str:
        """Device and backend of a model that was moved here, without the reason.

        Raises:
            BackendError: no backend runs the model.
        """
        versions = model.versions()
        backend, isa = versions["backend"], versions["instruction_set"]
        if self.device.type != "cpu":
            return f"on {self.name}, backend {backend}"
        threads = torch.get_num_threads()
        how = isa if backend == "cpu" else f"backend {backend}"
        return f"on cpu ({how}), {threads} thread{'s' if threads > 1 else ''}"


def is_name(name: str) -> bool:
    return re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is not None


def pick_device(
    name: str,
    backend: str | None = None,
    plan: Plan | None = None,
    *,
    sampled: bool = False,
    head: str | None = None,
) -> Device:
    """The device of one of NAMES; auto chooses a GPU whose kernels run the plan, else the CPU.

    Args:
        name: auto, cpu, cuda (the current GPU) or cuda:N.
        backend: the forced backend, if any.
        plan: of the blocks; None: any.
        sampled: whether the blocks are of a CT or FM, which need a sampler.
        head: the kind of the output head; None: there is none.

    Raises:
        ValueError: no such name, or a GPU that cannot be used; the text has the reason and what to
            use instead.
    """
    if not is_name(name):
        raise ValueError(f"{name!r} is not available, there is: {', '.join(NAMES)}")
    if name == "cpu":
        return Device(torch.device("cpu"), "asked for")
    forced, by = dispatch.forced_backend(backend)
    if name == "auto" and forced not in (None, *OF_GPUS):
        return Device(torch.device("cpu"), f"auto, with {by}")
    asked = torch.device("cuda" if name == "auto" else name)
    able = (forced,) if forced else OF_GPUS
    reasons = {
        kernels: dispatch.gap(kernels, plan, asked, "float32", sampled=sampled, head=head)
        for kernels in able
    }
    gap = dispatch.device_gap(asked)  # reported before anything that the kernels lack
    runs = [kernels for kernels, reason in reasons.items() if reason is None and gap is None]
    if runs:
        index = torch.cuda.current_device() if asked.index is None else asked.index
        why = f"auto: the {runs[0]} kernels run on it" if name == "auto" else "asked for"
        return Device(torch.device("cuda", index), why)
    gaps = gap or "; ".join(f"{kernels}: {reason}" for kernels, reason in reasons.items())
    if name == "auto":
        why = f"auto: {gap or next(iter(reasons.values()))}"
        others = any(dispatch.gap(kernels, None, asked, "float32") is None for kernels in able)
        aside = f"the CPU is used, although there is a GPU: {gaps}" if others else None
        return Device(torch.device("cpu"), why, aside)
    raise ValueError(
        f"{name} cannot be used: {gaps}{f', forced by {by}' if forced else ''}; "
        "use --device cpu, or auto, which takes a GPU where one can be used"
    )
