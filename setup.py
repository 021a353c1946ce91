import os
from tempfile import TemporaryDirectory

from setuptools import setup

# where CMake finds no Ninja, make would compile one file after the other
os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(len(os.sched_getaffinity(0))))

# a build of its own each time: what an earlier one left behind would get into the wheel
with TemporaryDirectory(prefix="noprop-kernels-") as folder:
    setup(cmake_source_dir=".", options={"build": {"build_base": folder}})
