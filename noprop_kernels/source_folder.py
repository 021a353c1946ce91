"""A source folder without the compiled extension must not hide an installed package.

`python -m`, scripts and pytest put the folder in which they run first on sys.path. After `pip
install .` in a clone that is the clone, whose package is not built, while the installed one is.
"""

import sys
import warnings
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

NAME = "noprop_kernels"


def hand_over() -> bool:
    """Imports the installed package in place of this one if this one is not built; returns whether
    it did."""
    here = Path(__file__).resolve().parent
    if _is_built(here):
        return False
    places = [*(Path(entry).resolve() / NAME for entry in sys.path), *_in_place()]
    folder = next((place for place in places if place != here and _is_built(place)), None)
    if folder is None:
        return False
    if _sources(here) != _sources(folder):
        warnings.warn(
            f"{NAME}: the sources in {here} are not built and differ from the installed package in "
            f"{folder}, which is used. `pip install .` installs these; `pip install -e .` builds "
            "them in place",
            RuntimeWarning,
            stacklevel=2,
        )
    spec = spec_from_file_location(
        NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    for name in [name for name in sys.modules if name.startswith(f"{NAME}.")]:
        del sys.modules[name]
    sys.modules[NAME] = module  # the import system then uses it
    spec.loader.exec_module(module)
    return True


def _in_place() -> Iterator[Path]:
    """The package of another clone's `pip install -e .`, which is found by a finder and not on
    sys.path."""
    for finder in sys.meta_path:
        if finder is not PathFinder and hasattr(finder, "find_spec"):
            spec = finder.find_spec(NAME, None)
            if spec is not None and spec.origin is not None:
                yield Path(spec.origin).resolve().parent


def _is_built(folder: Path) -> bool:
    return any((folder / f"_C{suffix}").exists() for suffix in EXTENSION_SUFFIXES)


def _sources(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.py")}
