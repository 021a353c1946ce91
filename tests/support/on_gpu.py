"""Blocks and data of the tests on a GPU."""

import torch

import noprop_kernels as nk

T, B, F, M = 3, 96, 50, 10
GOAL = nk.DT(nk.NoiseSchedule.cosine(T))
PLANS = {"mlp": nk.plans.mlp(F, M, M, hidden=130), "paper_dt": nk.plans.paper_dt(F, M, M)}
DEVICE = torch.device("cuda")


def make(backend: str, plan: str | nk.Plan = "mlp", **options) -> nk.DenoisingBlocks:
    plan = PLANS[plan] if isinstance(plan, str) else plan
    return nk.DenoisingBlocks(plan, GOAL, backend=backend, **options).to(DEVICE)


def data(rows: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(rows, F, generator=generator)
    return X.to(DEVICE), torch.randint(M, (rows,), generator=generator).to(DEVICE)


def indices(K: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(500, (K, B), generator=generator).to(DEVICE)


def same(a: nk.DenoisingBlocks, b: nk.DenoisingBlocks) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)
