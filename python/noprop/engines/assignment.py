"""Which worker trains which units."""

from collections.abc import Mapping, Sequence

Unit = int | str  # a block's t, or "head"


def even_parts(units: Sequence[Unit], workers: int) -> list[list[Unit]]:
    """The units in at most so many parts, neighbours together, whose sizes differ by at most one.

    Raises:
        ValueError: workers is less than 1.
    """
    if workers < 1:
        raise ValueError(f"engine: workers must be at least 1, got {workers}")
    count = min(workers, len(units))
    ends = [len(units) * i // count for i in range(count + 1)] if count else [0]
    return [list(units[first:last]) for first, last in zip(ends, ends[1:], strict=False)]


def quotas(
    held: Mapping[int, Sequence[Unit]], left: Sequence[Unit], workers: Sequence[int]
) -> dict[int, int]:
    """How many units each worker should have: as many as any other, or one more, which those get
    that have most, so that none gives up a unit to be given another.

    Args:
        held: the units of each worker.
        left: all units that are not trained to their end.
        workers: those that can train.
    """
    if not workers:
        return {}
    each, more = divmod(len(left), len(workers))
    order = sorted(workers, key=lambda worker: -len(still(held, worker, left)))
    return {worker: each + (place < more) for place, worker in enumerate(order)}


def still(held: Mapping[int, Sequence[Unit]], worker: int, left: Sequence[Unit]) -> list[Unit]:
    """The units of a worker that are not trained to their end."""
    return [unit for unit in held.get(worker, ()) if unit in left]


def next_units(
    worker: int, held: Mapping[int, Sequence[Unit]], left: Sequence[Unit], workers: Sequence[int]
) -> list[Unit]:
    """What a worker between two turns should train next: units that it has had, which need no
    reading, then units that nobody has.

    Args:
        worker: the one that is free.
        held, left, workers: as of `quotas`.
    """
    own = still(held, worker, left)
    taken = {unit for units in held.values() for unit in units}
    free = [unit for unit in left if unit not in taken]
    return (own + free)[: quotas(held, left, workers)[worker]]


def to_end(
    held: Mapping[int, Sequence[Unit]], left: Sequence[Unit], workers: Sequence[int]
) -> int | None:
    """The worker that has most above its part, to be asked to end its turn; None: nobody has."""
    parts = quotas(held, left, workers)
    above = {worker: len(still(held, worker, left)) - part for worker, part in parts.items()}
    most = max(above, key=lambda worker: above[worker], default=None)
    return most if most is not None and above[most] > 0 else None
