"""The rows of a batch, as a stage of the CUDA kernel on the host."""

import pytest
import torch
from torch import Tensor

from support.stages import buffer, run_stage

pytestmark = pytest.mark.cuda_host
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.uint8: "uint8"}


def make_data(rows: int, F: int, dtype: torch.dtype, offset: int = 0) -> Tensor:
    """(rows, F) that begins `offset` entries behind an aligned address."""
    generator = torch.Generator().manual_seed(rows + F)
    data = 100 * torch.rand(rows * F + offset, generator=generator)
    return data.to(dtype)[offset:].view(rows, F)


def run(stages, B: int, n: int, K: int, fields: dict, seed: int = 0) -> None:
    run_stage(stages, "gather", fields, n=n, K=K, B=B, tiles=-(-B // 16), seed=seed)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("B, F, offset", [(1, 1, 0), (7, 33, 0), (129, 200, 0), (20, 132, 1)])
def test_gather(stages, B: int, F: int, offset: int, dtype: torch.dtype, scaled: bool) -> None:
    n, K, R, rows = 3, 2, 2, 50
    generator = torch.Generator().manual_seed(B)
    data = make_data(rows, F, dtype, offset)
    indices = torch.randint(rows, (K, R, B), generator=generator)
    replica = torch.tensor([0, 1, 1])
    mean, scale = torch.rand(2, F, generator=generator) - 0.5
    out = torch.full((K, n, B, F), torch.nan)
    bad = torch.full((K, n, -(-B // 16)), -1, dtype=torch.int32)
    fields = {
        "out": buffer(out, steps=True),
        "bad": buffer(bad, steps=True),
        "data": {"data": data},
        "rows": {"indices": indices, "replica": replica, "replicas": R, "rows": rows},
        "type": TYPES[dtype],
        "F": F,
    }
    fields |= {"mean": mean, "scale": scale} if scaled else {}
    for seed in range(4):
        out.fill_(torch.nan)
        run(stages, B, n, K, fields, seed)
        x = data[indices[:, replica]].float()
        assert torch.equal(out, (x - mean) * scale if scaled else x)
        assert not bad.any()


def test_what_is_wrong_with_the_rows_is_flagged_in_their_tile(stages) -> None:
    n, B, F, rows = 2, 40, 12, 9
    data = make_data(rows, F, torch.float32)
    data[7, 11], data[8, 0] = torch.nan, -torch.inf
    indices = torch.randint(7, (1, 2, B), generator=torch.Generator().manual_seed(0))
    indices[0, 0, 39], indices[0, 0, 3] = 7, 8
    indices[0, 1, 16], indices[0, 1, 17], indices[0, 1, 39] = 9, 7, -1
    out, bad = torch.full((n, B, F), torch.nan), torch.full((n, 3), -1, dtype=torch.int32)
    replica = torch.arange(2)
    fields = {
        "out": buffer(out),
        "bad": buffer(bad),
        "data": {"data": data},
        "rows": {"indices": indices, "replica": replica, "replicas": 2, "rows": rows},
        "F": F,
    }
    run(stages, B, n, 1, fields)
    assert bad.tolist() == [[4, 0, 4], [0, 6, 2]]
    read = torch.where((indices < 0) | (indices >= rows), 0, indices)[0]
    torch.testing.assert_close(out, data[read], rtol=0, atol=0, equal_nan=True)


def test_rows_of_a_callers_own_are_only_looked_at(stages) -> None:
    n, B, F = 2, 20, 33
    x = torch.rand(n, B, F)
    x[1, 19, 32] = torch.inf
    bad = torch.full((n, 2), -1, dtype=torch.int32)
    run(stages, B, n, 1, {"bad": buffer(bad), "data": buffer(x), "F": F})
    assert bad.tolist() == [[0, 0], [0, 4]]
