"""What all workers must have in common so that the bits are those of one process."""

import platform
import socket
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch

import noprop_kernels as nk
from noprop_kernels import settings
from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cpu import backend as cpu

from ..errors import InputError


@dataclass(frozen=True)
class Machine:
    """What the bits of a worker's training depend on.

    Attributes:
        host: its name, for messages.
        isas: the instruction sets that run there, the best first.
        noprop, torch, processor, compiler: versions and builds.
    """

    host: str
    isas: tuple[str, ...]
    noprop: str
    torch: str
    processor: str
    compiler: str


def this_machine() -> Machine:
    """This process; where NOPROP_ISA forces an instruction set, it has no other.

    Raises:
        InputError: the CPU kernels do not run here.
    """
    if reason := dispatch.native_gap():
        raise InputError(f"{socket.gethostname()} cannot train: {reason}")
    built = cpu.describe()
    forced = settings.isa()
    isas = tuple(isa for isa, runs in built["isas"].items() if runs and forced in (None, isa))
    return Machine(
        socket.gethostname(),
        isas,
        nk.__version__,
        torch.__version__,
        platform.machine(),
        built["compiler"],
    )


def common_isa(machines: Sequence[Machine]) -> str:
    """The best instruction set that runs on all machines.

    Raises:
        InputError: there is none.
    """
    first, *others = machines
    for isa in first.isas:
        if all(isa in machine.isas for machine in others):
            return isa
    each = "; ".join(f"{machine.host} has {', '.join(machine.isas)}" for machine in machines)
    raise InputError(f"the workers have no instruction set in common: {each}")


def refusal(machine: Machine, like: Machine, isa: str) -> str | None:
    """Why a worker's bits would not be those of `like` with this instruction set, or None."""
    lacks = [] if isa in machine.isas else [f"it has no {isa}, but {', '.join(machine.isas)}"]
    there, here = asdict(machine), asdict(like)
    lines = lacks + [
        f"{name} is {there[name]}, not {here[name]}"
        for name in ("noprop", "torch", "processor", "compiler")
        if there[name] != here[name]
    ]
    return "; ".join(lines) or None


def use_isa(isa: str) -> None:
    """Selects an instruction set for all later calls of this process, the best of its own where it
    lacks this one: whoever gives it to such a worker has asked for that."""
    mine = this_machine().isas
    cpu.set_isa(isa if isa in mine else mine[0])


def hosts(machines: Iterable[Machine]) -> str:
    return ", ".join(sorted({machine.host for machine in machines}))
