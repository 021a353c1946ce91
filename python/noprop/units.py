"""The units of a run: its blocks and its head, which learn without each other.

With fixed embeddings a block's step reads the labels, the rows and the block itself, and the head's
the labels alone. So any units can be trained in any place, in any order.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import InputError

HEAD = "head"


@dataclass(frozen=True)
class Units:
    """Some blocks, and the head or not.

    Attributes:
        blocks: their t, ascending.
        head: whether the head is one of them.
    """

    blocks: tuple[int, ...] = ()
    head: bool = False

    @classmethod
    def of(cls, units: Iterable[int | str]) -> "Units":
        """Of t and "head", in any order.

        Raises:
            InputError: one is neither, or is there twice.
        """
        given = list(units)
        for unit in given:
            if unit != HEAD and (type(unit) is not int or unit < 1):
                raise InputError(f'units must be t from 1 on or "{HEAD}", got {unit!r}')
        if len(set(given)) < len(given):
            raise InputError(f"units must be different, got {', '.join(map(str, given))}")
        return cls(tuple(sorted(unit for unit in given if isinstance(unit, int))), HEAD in given)

    @classmethod
    def parse(cls, text: str) -> "Units":
        """Of "3,7-9,head".

        Raises:
            InputError: it is not of that form, or names a unit twice.
        """
        units: list[int | str] = []
        for part in (each.strip() for each in text.split(",")):
            first, dash, last = part.partition("-")
            ends = [first, last] if dash else [first]
            if part == HEAD:
                units.append(HEAD)
            elif all(end.isascii() and end.isdigit() and len(end) < 6 for end in ends):
                units += range(int(first), int(ends[-1]) + 1)
            else:
                raise InputError(f"{text!r} must be like 3,7-9,{HEAD}, got {part!r} in it")
        if not units:
            raise InputError(f"{text!r} must name at least one unit, like 3,7-9,{HEAD}")
        return cls.of(units)

    def __iter__(self) -> Iterator[int | str]:
        yield from self.blocks
        if self.head:
            yield HEAD

    def __len__(self) -> int:
        return len(self.blocks) + self.head

    def __and__(self, other: "Units") -> "Units":
        return Units.of(unit for unit in self if unit in set(other))

    def __or__(self, other: "Units") -> "Units":
        return Units.of({*self, *other})

    def __sub__(self, other: "Units") -> "Units":
        return Units.of(unit for unit in self if unit not in set(other))

    def __str__(self) -> str:
        """Like "blocks 3, 7-9 and the head"."""
        names = []
        if self.blocks:
            names.append(f"block{'s' if len(self.blocks) > 1 else ''} {ranges(self.blocks)}")
        if self.head:
            names.append(f"the {HEAD}")
        return " and ".join(names) or "no unit"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers like "3, 7-9"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


def units_from_json(record: Any) -> Units:
    """
    Raises:
        InputError: it is no list of units.
    """
    if not isinstance(record, list):
        raise InputError(f"a run's units must be a list, got {record!r}")
    return Units.of(record)
