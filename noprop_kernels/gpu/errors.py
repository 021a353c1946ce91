"""Contents that only a GPU has seen: flagged there, raised here when the host next comes by.

A kernel that meets a label or an index out of range, or an input that is not finite, skips its
slice's step and sets a bit. The bits of an object are copied to pinned memory behind every call,
and the next call that finds the copy done raises. Nothing ever waits.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

TEXTS = {
    1: "labels must be in 0..M-1, got one out of range",
    2: "indices must name rows of the data, got one out of range",
    4: "inputs must be finite, got NaN or infinity",
}


@dataclass
class Mail:
    flags: Tensor  # (1,) int32 on the device
    copy: Tensor  # (1,) int32, pinned
    sent: torch.cuda.Event | None = None


_mail = WeakTensorKeyDictionary()  # by an object's `updates`


@lru_cache(maxsize=8)
def owner_of(device: torch.device) -> Tensor:
    """Stands for the calls on a device that are no object's: add_noise and head."""
    return torch.empty(0, device=device)


def flags_of(owner: Tensor) -> Tensor:
    """(1,) int32 of an object, on its device; kernels set bits of it."""
    if owner not in _mail:
        flags = torch.zeros(1, dtype=torch.int32, device=owner.device)
        copy = torch.zeros(1, dtype=torch.int32, pin_memory=owner.is_cuda)
        _mail[owner] = Mail(flags, copy)
    return _mail[owner].flags


def report(flag: Tensor) -> None:
    """Sets bits from a tensor on a device, of a call that is no object's."""
    owner = owner_of(flag.device)
    flags_of(owner).bitwise_or_(flag.to(torch.int32))
    send(owner)


def send(owner: Tensor) -> None:
    """Copies the bits towards the host, behind what was launched; not inside a capture."""
    mail = _mail.get(owner)
    if mail is None or (owner.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    mail.copy.copy_(mail.flags, non_blocking=True)
    if owner.is_cuda:
        mail.sent = torch.cuda.Event()
        mail.sent.record()


def raise_found(owner: Tensor, op: str, *, wait: bool = False) -> None:
    """Raises what earlier calls met, once.

    Args:
        owner: the object's `updates`, or `owner_of` a device.
        op: for the text.
        wait: for the last call to end; else only what has already arrived is looked at.

    Raises:
        ValueError: contents of an earlier call did not fit.
    """
    mail = _mail.get(owner)
    if mail is None or (owner.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    if mail.sent is not None:
        if wait:
            mail.sent.synchronize()
        elif not mail.sent.query():
            return
    bits = int(mail.copy)
    if bits:
        mail.copy.zero_()
        mail.flags.zero_()
        found = "; ".join(text for bit, text in TEXTS.items() if bits & bit)
        raise ValueError(f"{op}: in an earlier call {found}; the steps that met it were skipped")
