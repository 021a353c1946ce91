"""JSON by its standard, which lacks NaN and infinities: they are written as null."""

import json
import math
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """json.dumps of `finite(value)`."""
    return json.dumps(finite(value), allow_nan=False, **options)


def finite(value: Any) -> Any:
    """`value` with None in place of every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value
