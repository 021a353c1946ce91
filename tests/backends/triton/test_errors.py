"""Contents that only a GPU sees: flagged by the kernels, raised by the next call or by `check`.

The interpreter runs the GPU's kernels; the host is made to check no contents.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels.autograd import block_nodes
from noprop_kernels.backends.calls import AddNoiseCall, HeadCall
from noprop_kernels.backends.gpu import checks, errors
from support.blocks import B, D, M, T, assert_same, batch, data, indices, make, snapshot

pytestmark = pytest.mark.triton

CPU = torch.device("cpu")
LABELS = r"labels must be in 0\.\.M-1"
INPUTS = "inputs must be finite"


def name_of(op: str) -> str:
    return errors.TRAINING if op == "train" else op


@pytest.fixture(autouse=True)
def as_on_a_gpu(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """Nothing is looked at by the host."""
    monkeypatch.setattr(checks, "contents_are_checked", lambda device: False)
    with nk.use_backend("triton"):
        yield
    errors._pending.clear()
    errors.owner_of.cache_clear()


def spoiled_x() -> torch.Tensor:
    x, _ = batch()
    x[2, 1] = torch.inf
    return x


def spoiled_y() -> torch.Tensor:
    _, y = batch()
    y[3] = M
    return y


def z() -> torch.Tensor:
    return torch.zeros(B, D)


def loss_alone(blocks: nk.DenoisingBlocks) -> torch.Tensor:
    """The head's call of `loss`, without the drawing of noise, which would flag them first."""
    logits = torch.zeros(T, B, M)
    return block_nodes.Loss.apply(blocks, torch.arange(T), spoiled_y(), None, logits, None)


# by op: a call of an object's with bad contents, and its error
OBJECT: dict[str, tuple[Callable[[nk.DenoisingBlocks], object], str]] = {
    "forward": (lambda blocks: blocks(spoiled_x(), z()), INPUTS),
    "predict": (lambda blocks: blocks.predict(spoiled_x()), INPUTS),
    "add_noise": (lambda blocks: blocks.add_noise(spoiled_y()), LABELS),
    "loss": (lambda blocks: loss_alone(blocks), LABELS),
    "train": (lambda blocks: blocks.train_step(batch()[0], spoiled_y()), LABELS),
}


@pytest.mark.parametrize("op", OBJECT)
def test_the_object_s_check_tells_the_op_and_what_it_met(op: str) -> None:
    call, text = OBJECT[op]
    blocks, other = make(), make()
    before = snapshot(blocks)
    call(blocks)
    other.check()
    with pytest.raises(ValueError, match=f"{name_of(op)}: in an earlier call {text}") as error:
        blocks.check()
    assert "check_device()" in str(error.value)
    assert ("were skipped" in str(error.value)) == (op == "train")
    blocks.check()  # an error is raised once
    after = snapshot(blocks)
    if op == "train":
        assert after.pop("draws").tolist() == [1] * T and before.pop("draws").tolist() == [0] * T
    assert_same(after, before)


@pytest.mark.parametrize("op", OBJECT)
def test_unasked_it_comes_with_the_next_call(op: str) -> None:
    call, text = OBJECT[op]
    blocks, other = make(), make()
    call(blocks)
    other.train_step(*batch())
    before = snapshot(blocks)
    with pytest.raises(ValueError, match=f"{name_of(op)}: in an earlier call {text}"):
        blocks.train_step(*batch())
    assert_same(snapshot(blocks), before)
    blocks.train_step(*batch())
    blocks.check()
    assert blocks.updates.tolist() == [1] * T


def test_a_loss_tells_at_its_own_second_call() -> None:
    blocks = make()
    with pytest.raises(ValueError, match=f"loss: in an earlier call {LABELS}"):
        blocks.loss(batch()[0], spoiled_y())
    blocks.check()


def test_every_call_has_bits_of_its_own_name() -> None:
    for record in (AddNoiseCall, HeadCall):
        (op,) = (field.default for field in dataclasses.fields(record) if field.name == "op")
        assert errors.shift_of(op) > 0


def test_every_op_is_told_at_once() -> None:
    blocks = make()
    for op in ("predict", "train"):  # a call would raise what it finds; these look first
        flags, bit = errors.flags_of(blocks.updates), errors.INPUTS << errors.shift_of(op)
        flags.bitwise_or_(torch.tensor([bit], dtype=torch.int32))
    with pytest.raises(ValueError) as error:
        blocks.check()
    outcome = str(error.value).splitlines()
    assert [line.split(":")[0] for line in outcome[:2]] == [errors.TRAINING, "predict"]


FUNCTIONS = {
    "add_noise": lambda: nk.functional.add_noise(spoiled_y(), 0.5, 0.5, seed=1, num_classes=M),
    "denoising_loss": lambda: nk.DenoisingLoss()(torch.zeros(B, M), spoiled_y()),
}


@pytest.mark.parametrize("op", FUNCTIONS)
def test_functions_are_the_device_s(op: str) -> None:
    FUNCTIONS[op]()
    make().train_step(*batch())  # an object's call has nothing to do with it
    with pytest.raises(ValueError, match=f"^{op}: in an earlier call {LABELS}"):
        nk.check_device("cpu")
    nk.check_device("cpu")
    FUNCTIONS[op]()
    with pytest.raises(ValueError, match=f"^{op}: in an earlier call {LABELS}"):
        nk.functional.add_noise(batch()[1], 0.5, 0.5, seed=1, num_classes=M)
    nk.functional.add_noise(batch()[1], 0.5, 0.5, seed=1, num_classes=M)


def test_operations_of_a_compiled_function_are_the_device_s() -> None:
    from noprop_kernels.autograd import block_ops

    blocks = make()
    x, nothing = spoiled_x().expand(T, B, 7), z().expand(T, B, D)
    block_ops.forward(blocks, {"x": x, "z": nothing}, torch.arange(T))
    blocks.check()
    with pytest.raises(ValueError, match=f"^forward: in an earlier call {INPUTS}"):
        nk.check_device()


@pytest.mark.parametrize("device", [None, "cpu", CPU])
def test_the_device_s_check_is_of_every_object(device) -> None:
    blocks = make()
    blocks.predict(spoiled_x())
    with pytest.raises(ValueError, match=f"predict: in an earlier call {INPUTS}"):
        nk.check_device(device)
    nk.check_device(device)
    blocks.check()


def test_what_is_a_result_or_another_s_input_may_be_anything() -> None:
    """z is a product of the caller's, and a layer passes NaN on as torch's does."""
    blocks = make()
    nan = torch.full((B, D), torch.nan)
    assert blocks(batch()[0], nan).isnan().all()
    assert nk.functional.dense(spoiled_x(), torch.ones(2, 7)).isinf().any()
    blocks.check()
    nk.check_device()


def test_shared_and_own_rows_are_looked_at_to_the_last() -> None:
    blocks = make()
    for shape in ((B, 7), (T, B, 7)):
        x = torch.zeros(shape)
        x.view(-1)[-1] = torch.nan
        blocks(x, z())
        with pytest.raises(ValueError, match=INPUTS):
            blocks.check()


def test_rows_of_a_data_set(kernels: ModuleType) -> None:
    X, Y = data()
    blocks, rows = make(), indices(2, B)
    rows[1, 2] = len(X)
    blocks.train_steps(X, Y, rows)
    with pytest.raises(
        ValueError, match="train_steps or gradients: in an earlier call indices must name rows"
    ):
        blocks.check()
    assert blocks.updates.tolist() == [1] * T and blocks.draws.tolist() == [2] * T


def test_the_head_has_a_check_too() -> None:
    head = nk.OutputHead(M, M, goal=make().goal)
    head.train_step(spoiled_y(), 1)
    with pytest.raises(ValueError, match=f"train_steps or gradients: in an earlier call {LABELS}"):
        head.check()
