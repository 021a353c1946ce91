"""What the launches of a call share in both backends."""

from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from ..calls import Rule, Slices, TrainCall


@dataclass
class Context:
    """A call's slices and records.

    Args:
        index: positions of the slices, on the tensors' device.
        call: of a training call, whose records the stages of its noise, head and data read.
        rule: None where no parameter moves.
        errors: (1,) int32; None: contents need no check.
    """

    slices: Slices
    index: Tensor
    B: int
    _: KW_ONLY
    call: TrainCall | None = None
    rule: Rule | None = None
    training: bool = True
    errors: Tensor | None = None

    @property
    def training_call(self) -> TrainCall:
        assert self.call is not None
        return self.call
