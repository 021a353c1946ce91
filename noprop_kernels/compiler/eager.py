"""Calls that torch.compile does not compile, with the reason."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
Result = TypeVar("Result")


def eager_only(function: Callable[P, Result]) -> Callable[P, Result]:
    """Wraps `function`: it breaks the graph of a compiled caller, and raises with
    fullgraph=True."""

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> Result:
        if torch.compiler.is_compiling():
            from .hooks import interrupted

            return interrupted(function, *arguments, **options)
        return function(*arguments, **options)

    return call
