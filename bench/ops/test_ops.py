"""The operations under pytest-benchmark: `pytest bench/ops --benchmark-only`.

A group is an operation at a shape, with all its contenders; each is checked before it is timed.
"""

import pytest
import torch

from bench.machine import host
from bench.ops.cases import CONTENDERS, start

pytest.importorskip("pytest_benchmark", reason="pip install noprop-kernels[bench]")


@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize(("case", "contender"), CONTENDERS, ids=str)
def test_op(benchmark, case, contender):
    torch.compiler.reset()
    call = start(case, contender).call
    benchmark.group = str(case)
    benchmark.extra_info |= {"threads": torch.get_num_threads(), **host.versions()}
    benchmark(call)
