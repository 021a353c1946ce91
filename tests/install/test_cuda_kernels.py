"""The CUDA kernels are built where they can be; they end no build that did not ask for them."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.cmake import Build

Put = Callable[[str], None]
DRIVER = 'extern "C" int cuInit(unsigned) { return 100; }'  # no device: a driver all the same
STUB = 'extern "C" int cuInit(unsigned) { return 34; }'
HAS_DRIVER = Path("/proc/driver/nvidia/version").exists()

VERSION = 'if [ "$1" = --version ]; then echo "tools, release 13.0, V13.0.88"; exit 0; fi\n'
REFUSAL = "host_config.h:132:2: error: #error -- unsupported GNU version! gcc later than 11"
BROKEN = {
    "says nothing": ("exit 1", "nothing was said"),
    "no such program": ("exec /nowhere/nvcc", "not found"),
    "garbage": ('printf \'\\377\\376 ;[]) "x" ${y}\\n)noprop"\'', '?? ;[]) "x" ${y}'),
    "killed": ("kill -9 $$", "named no release"),
    "old": ("echo release 11.8", "nvcc must be 12.1 or later, got 11.8"),
    "refuses the host compiler": (f"{VERSION}echo '{REFUSAL}' >&2; exit 1", REFUSAL),
    "crashes": (f"{VERSION}kill -11 $$", "runtime.cu ended with"),
    "hangs": (f"{VERSION}sleep 1000", "timeout"),
    "makes nothing": (f"{VERSION}exit 0", "made nothing"),
}


@pytest.fixture(scope="module")
def looked_around(tmp_path_factory: pytest.TempPathFactory) -> Build:
    build = Build(tmp_path_factory.mktemp("cuda") / "a folder")
    build.options.append("-UNOPROP_CUDA*")  # nothing that an earlier call said
    assert build.configure("-DNOPROP_CUDA=OFF").returncode == 0
    return build


@pytest.fixture
def build(looked_around: Build) -> Build:
    """As new, but CMake has found the compiler, which takes it longer than all the rest."""
    build = copy.copy(looked_around)
    build.env = {**looked_around.env}
    shutil.rmtree(build.folder / "cuda", ignore_errors=True)
    (build.folder / "cuda_left_out.cpp").unlink(missing_ok=True)
    return build


@pytest.mark.skipif(HAS_DRIVER, reason="an NVIDIA driver is here")
@pytest.mark.parametrize("driver", [None, STUB])
def test_without_a_driver_nvcc_is_not_even_asked(
    build: Build, with_driver: Put, with_nvcc: Put, tmp_path: Path, driver: str | None
) -> None:
    if driver:
        with_driver(driver)
    with_nvcc(f"touch '{tmp_path}/asked'; exit 1")
    done = build.configure()
    assert done.returncode == 0, done.stderr
    assert "no NVIDIA driver was found" in build.left_out()
    assert "NOPROP_CUDA=ON" in build.left_out()
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_nvcc_ends_only_a_build_that_asked(
    build: Build, with_driver: Put, with_nvcc: Put, what: str
) -> None:
    script, words = BROKEN[what]
    with_driver(DRIVER)
    with_nvcc(script)
    patience = f"-DNOPROP_CUDA_PATIENCE={3 if what == 'hangs' else 100}"
    done = build.configure(patience)
    assert done.returncode == 0, done.stderr
    outcome = build.left_out()
    assert words in outcome, outcome
    assert outcome.isascii() and len(outcome) < 5000
    assert build.build("noprop_cuda_left_out").returncode == 0

    done = build.configure(patience, "-DNOPROP_CUDA=ON")
    assert done.returncode != 0 and "NOPROP_CUDA=ON" in done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is missing")
def test_a_driver_and_nvcc_are_enough_and_a_late_failure_is_told(
    build: Build, with_driver: Put, with_nvcc: Put
) -> None:
    with_driver("")  # a library without cuInit is no stub
    failing = "case \"$*\" in *train.cu*) echo 'train.cu: fatal error: no' >&2; exit 1;; esac"
    with_nvcc(f'{failing}\nexec {shutil.which("nvcc")} "$@"')
    done = build.configure("-DNOPROP_CUDA_ARCHITECTURES=80-real")
    assert done.returncode == 0, done.stderr
    assert not (build.folder / "cuda_left_out.cpp").exists(), done.stdout  # the build decides

    done = build.build("noprop_cuda_left_out")
    assert done.returncode == 0, done.stderr
    assert "train.cu: fatal error: no" in build.left_out()

    assert build.configure("-DNOPROP_CUDA=ON").returncode == 0
    done = build.build("noprop_cuda_left_out")
    assert done.returncode != 0 and "NOPROP_CUDA=ON" in done.stdout + done.stderr


def test_off_is_told(build: Build) -> None:
    assert build.configure("-DNOPROP_CUDA=OFF").returncode == 0
    assert build.left_out() == "the build was told NOPROP_CUDA=OFF"
    done = build.configure("-DNOPROP_CUDA=yes")
    assert done.returncode != 0 and "must be AUTO, ON or OFF, got yes" in done.stderr
