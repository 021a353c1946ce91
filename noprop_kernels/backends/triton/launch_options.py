"""Launch options in place of the static configurations; none changes a bit.

Warps and pipeline stages of the products, and early launch (PDL), can be chosen. Tiles cannot,
since they change the order of sums; nor warps of kernels that sum over lanes; nor fewer than a
warpgroup's four, since a product would use another matrix instruction.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

# kernels whose sums are products alone may have other warps; the update also sums biases
WARPS = {"dense_kernel": (4, 8), "result_gradient_kernel": (4, 8), "update_kernel": ()}
STAGES = (1, 2, 3, 4)


@dataclass(frozen=True)
class Launches:
    """A choice of launch configurations.

    Args:
        pdl: False: a launch waits for the end of the previous one; True: it need not, where the
            device supports that.
        warps: by kernel, "dense_kernel" | "result_gradient_kernel": 4 | 8.
        stages: by kernel, those and "update_kernel": 1..4, how far loads run ahead in a product.

    Raises:
        ValueError: a kernel or a number is none of these.
    """

    pdl: bool = True
    warps: dict[str, int] = field(default_factory=dict)
    stages: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        allowed = {"warps": WARPS, "stages": dict.fromkeys(WARPS, STAGES)}
        for name, known in allowed.items():
            for kernel, count in getattr(self, name).items():
                if count not in known.get(kernel, ()):
                    choices = {kernel: counts for kernel, counts in known.items() if counts}
                    raise ValueError(
                        f"Launches: {name} must be among {choices}, got {{{kernel!r}: {count!r}}}"
                    )

    def key(self) -> tuple:
        """The part of a CUDA graph's key that these options fix."""
        return self.pdl, *sorted(self.warps.items()), None, *sorted(self.stages.items())

    def changed(self, kernel: str, warps: int | None, stages: int) -> "Launches":
        """These options with one kernel's changed."""
        more = {} if warps is None else {kernel: warps}
        return replace(self, warps=self.warps | more, stages=self.stages | {kernel: stages})


_current: ContextVar[Launches] = ContextVar("noprop_kernels_launches", default=Launches())  # noqa: B039


def current() -> Launches:
    return _current.get()


@contextmanager
def use(launches: Launches) -> Iterator[None]:
    """Launches kernels with these options inside the `with`."""
    token = _current.set(launches)
    try:
        yield
    finally:
        _current.reset(token)
