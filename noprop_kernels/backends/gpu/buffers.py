"""Names of a table's buffers: what each holds, and of which layer, input or parameter.

Stages name the buffers that they read and write; a launch finds the caller's tensors and the parts
of the workspace by the same names.
"""

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What a buffer holds; its value begins the text of a buffer, and the order of buffers."""

    # of an input or layer
    RESULT = ""
    PRODUCT = "y:"  # of a layer, before its norm
    KEPT = "act:"  # what the gradient of a layer's activation reads, where that is not its result
    MEAN = "mean:"
    RSTD = "rstd:"
    GRADIENT = "d:"  # of a result
    NORM_OUT_GRADIENT = "dn:"  # behind the activation
    PRODUCT_GRADIENT = "dy:"  # behind the norm, or the activation where there is none
    DATA = "data:"  # a data set, whose rows are gathered
    BAD = "bad:"  # flags of an input's contents

    # of a parameter or statistic
    STATE = "state:"
    PARAMETER_GRADIENT = "grad:"
    NORM_SUM = "sum:"  # the gradient of a norm's parameter
    BATCH = "batch:"  # a statistic of the batch

    # of a call
    GIVEN_LABELS = ":labels"
    LABELS = ":y"  # as the head reads them
    BAD_LABELS = "bad::y"
    DRAW = ":draw"
    EPS = ":eps"
    P = ":p"
    D_U_HAT = ":d_u_hat"
    ERROR = ":error"
    LOSS = ":loss"
    APPLIED = ":applied"
    RATES = ":rates"
    DRAWS = ":draws"
    UPDATES = ":updates"
    D_SIGNAL = ":d_signal"
    D_NOISE = ":d_noise"
    D_W_EMBED = ":d_W_embed"

    def __call__(self, name: str = "") -> "Buffer":
        return Buffer(self, name)


class Buffer(NamedTuple):
    """A buffer of a table; `name` is "" for those of a call."""

    kind: Kind
    name: str = ""

    def __str__(self) -> str:
        return self.kind + self.name
