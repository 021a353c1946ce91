"""After `pip install .`, the clone's folder does not hide the installed package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import noprop_kernels

PACKAGE = Path(noprop_kernels.__file__).parent
TELL = (
    "import noprop_kernels as nk; "
    "print(nk.__file__, nk.plans.__file__, nk.backends.cpu.extension.C.__file__)"
)

# takes away what installs the package, in place or not, in the environment that runs the tests
ALONE = """
import os, sys
sys.path = [p for p in sys.path if not p or not os.path.isdir(os.path.join(p, "noprop_kernels"))]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
"""
IN_PLACE = """
import sys
from importlib.util import spec_from_file_location
class EditableFinder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "noprop_kernels":
            folder = {!r}
            return spec_from_file_location(
                name, folder + "/__init__.py", submodule_search_locations=[folder]
            )
sys.meta_path.append(EditableFinder)
"""


class Clone:
    def __init__(self, folder: Path) -> None:
        """A clone that is not built, and a package installed elsewhere."""
        self.root, self.site = folder / "clone", folder / "site"
        pattern = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(PACKAGE, self.root / "noprop_kernels", ignore=pattern)
        shutil.copytree(PACKAGE, self.site / "noprop_kernels")

    def run(self, *command: str, site: bool = True) -> subprocess.CompletedProcess[str]:
        # behind the folder that Python itself puts first, as site-packages is
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        env["PYTHONPATH"] = str(self.site) if site else ""
        return subprocess.run(
            [sys.executable, *command], cwd=self.root, env=env, capture_output=True, text=True
        )


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_modules_scripts_and_tests_run_on_the_installed_package(clone: Clone) -> None:
    (clone.root / "script.py").write_text(TELL)
    (clone.root / "test_it.py").write_text(f"def test_it():\n    {TELL}\n")
    for command in (["-c", TELL], ["script.py"]):
        done = clone.run(*command)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert all(path.startswith(str(clone.site)) for path in done.stdout.split()), done.stdout
    done = clone.run("-m", "noprop_kernels")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "CPU kernels:" in done.stdout
    done = clone.run("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "test_it.py")
    assert done.returncode == 0 and str(clone.root / "noprop_kernels") not in done.stdout


def test_other_sources_than_the_installed_are_told(clone: Clone) -> None:
    (clone.root / "noprop_kernels/__init__.py").write_text(
        (clone.root / "noprop_kernels/__init__.py").read_text() + "\nedited = True\n"
    )
    done = clone.run("-c", f"{TELL}; assert not hasattr(nk, 'edited')")
    assert done.returncode == 0
    assert "RuntimeWarning" in done.stderr and "differ from the installed package" in done.stderr


def test_an_install_in_place_of_another_clone_is_used_whole(clone: Clone) -> None:
    folder = str(clone.site / "noprop_kernels")
    done = clone.run("-c", ALONE + IN_PLACE.format(folder) + TELL, site=False)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(folder) for path in done.stdout.split()), done.stdout


def test_a_built_folder_stands_for_itself(clone: Clone) -> None:
    for module in PACKAGE.glob("_C*.so"):
        shutil.copy(module, clone.root / "noprop_kernels")
    done = clone.run("-c", TELL)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(clone.root)) for path in done.stdout.split())


def test_with_nothing_installed_the_error_names_both_ways(clone: Clone) -> None:
    done = clone.run("-c", ALONE + TELL, site=False)
    assert done.returncode != 0
    assert "`pip install .`" in done.stderr and "`pip install -e .`" in done.stderr


def test_the_namespace_shows_what_is_offered() -> None:
    assert set(dir(noprop_kernels)) == {*noprop_kernels.__all__, "__version__"}
    assert all(hasattr(noprop_kernels, name) for name in dir(noprop_kernels))
    assert (PACKAGE / "py.typed").exists()
