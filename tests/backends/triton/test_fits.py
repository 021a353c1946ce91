"""State that Python changed is refused before a kernel takes its address."""

import pytest
import torch

import noprop_kernels as nk


def made() -> tuple[nk.DenoisingBlocks, torch.Tensor, torch.Tensor]:
    plan = nk.plans.mlp(6, 3, 3, hidden=8)
    blocks = nk.DenoisingBlocks(plan, nk.DT(nk.NoiseSchedule.cosine(T=2)), backend="triton")
    return blocks, torch.rand(4, 6), torch.tensor([0, 1, 2, 0])


def test_weights_that_changed_their_shape_before_backward() -> None:
    blocks, x, y = made()
    loss = blocks.loss(x, y).sum()
    blocks.hx.weight.data = torch.zeros(1)
    with pytest.raises(ValueError, match="backward: hx.weight must lie where the forward read it"):
        loss.backward()


@pytest.mark.parametrize("updates", [torch.zeros(1, dtype=torch.int64), torch.zeros(2)])
def test_counters_that_do_not_fit(updates: torch.Tensor) -> None:
    blocks, x, y = made()
    before = blocks.hx.weight.detach().clone()
    blocks.updates = updates
    with pytest.raises(ValueError):
        blocks.train_step(x, y)
    assert torch.equal(blocks.hx.weight, before)


@pytest.mark.parametrize("index", [[0, 0], [0, 2]])
def test_gradients_of_slices_that_are_not_there(index: list[int]) -> None:
    blocks, x, y = made()
    grads = blocks.gradients(x, y)
    grads.index = torch.tensor(index)
    with pytest.raises(ValueError):
        blocks.update(grads)
