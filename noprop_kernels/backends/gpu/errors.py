"""Deferred errors of contents: a kernel on the GPU sets a bit, a later call raises the error.

A kernel that meets a label or an index out of range, or an input that is not finite, sets a bit,
and in training skips its slice's step. After every call the object's bits are copied to pinned
memory, and the next call that finds the copy complete raises. Only `check` synchronises.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

LABELS, INDICES, INPUTS = 1, 2, 4
TEXTS = {
    LABELS: "labels must be in 0..M-1, got one out of range",
    INDICES: "indices must name rows of the data, got one out of range",
    INPUTS: "inputs must be finite, got NaN or infinity",
}
# public names of the calls; each has WIDTH bits, in this order
OPS = ("train", "forward", "predict", "add_noise", "loss", "denoising_loss")
TRAINING = "train_step, train_steps or gradients"
WIDTH = len(TEXTS)
LATE = (
    "(a GPU tells this late; check() of the object, or noprop_kernels.check_device(), after a call "
    "waits for it and tells whether it was that one)"
)


@dataclass
class PendingErrors:
    flags: Tensor  # (1,) int32 on the device
    copy: Tensor  # (1,) int32, pinned
    sent: torch.cuda.Event | None = None


_pending = WeakTensorKeyDictionary()  # by an object's `updates`


@lru_cache(maxsize=8)
def owner_of(device: torch.device) -> Tensor:
    """The key for calls on a device without an object, such as those of nk.functional."""
    return torch.empty(0, dtype=torch.int64, device=device)


def flags_of(owner: Tensor) -> Tensor:
    """An object's error bits, (1,) int32 on its device; kernels set them."""
    if owner not in _pending:
        flags = torch.zeros(1, dtype=torch.int32, device=owner.device)
        copy = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=owner.is_cuda)
        _pending[owner] = PendingErrors(flags, copy)
    return _pending[owner].flags


def shift_of(op: str) -> int:
    """The first bit of an op; those of "train" are the lowest, since its kernels set them."""
    return WIDTH * OPS.index(op)


def report(owner: Tensor, op: str, bits: Tensor) -> None:
    """Sets the bits that a call has found, given as an integer tensor on the device."""
    flags_of(owner).bitwise_or_(bits.to(torch.int32) << shift_of(op))
    send(owner)


def send(owner: Tensor) -> None:
    """Starts the copy of the bits to the host, after the launches so far; not inside a capture."""
    pending = _pending.get(owner)
    if pending is None or (owner.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    pending.copy.copy_(pending.flags, non_blocking=True)
    if owner.is_cuda:
        pending.sent = torch.cuda.Event()
        pending.sent.record()


def raise_found(owner: Tensor) -> None:
    """Raises, once, the errors of earlier calls whose copies have arrived.

    Args:
        owner: the object's `updates`, or `owner_of` a device.

    Raises:
        ValueError: contents of an earlier call did not fit.
    """
    pending = _pending.get(owner)
    if pending is None or (owner.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    if pending.sent is None or pending.sent.query():
        raise_bits(pending, int(pending.copy))


def devices() -> set[torch.device]:
    """Devices with calls whose contents the host has not validated."""
    return {owner.device for owner in _pending}


def check(device: torch.device, owner: Tensor | None = None) -> None:
    """Synchronises with the device, and raises errors of calls of `owner`, or of any owner
    there."""
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("check: cannot wait while a CUDA graph is captured")
        torch.cuda.synchronize(device)
    owners = [key for key in _pending if key.device == device] if owner is None else [owner]
    for key in owners:
        if key in _pending:
            # reads the bits and not the copy, which steps inside a caller's graph do not send
            raise_bits(_pending[key], int(_pending[key].flags))


def raise_bits(pending: PendingErrors, bits: int) -> None:
    if bits == 0:
        return
    pending.copy.zero_()
    pending.flags.zero_()
    lines = []
    for op in OPS:
        of_op = bits >> shift_of(op)
        found = "; ".join(text for bit, text in TEXTS.items() if of_op & bit)
        outcome = "the steps that met it were skipped" if op == "train" else "its results are wrong"
        if found:
            name = TRAINING if op == "train" else op
            lines.append(f"{name}: in an earlier call {found}; {outcome}")
    raise ValueError("\n".join([*lines, LATE]))
