from tempfile import TemporaryDirectory

from setuptools import setup

# a build of its own each time: what an earlier one left behind would get into the wheel
with TemporaryDirectory(prefix="noprop-kernels-") as folder:
    setup(cmake_source_dir=".", options={"build": {"build_base": folder}})
