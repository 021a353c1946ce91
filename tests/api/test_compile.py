"""torch.compile takes what it can whole and says why not elsewhere; the operations are sound.

The compiler's backend is aot_eager: it traces and runs the same graphs without minutes of g++.
"""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import noprop_kernels as nk
from noprop_kernels.autograd import block_ops, chain, dense_ops, label_ops
from noprop_kernels.compiler import plan_texts
from support.blocks import GOAL, PLANS, B, D, F, M, T, batch, make, make_images, snapshot
from support.linear import linear

# torch's own compiler looks at the .grad of a tensor inside the graph where it is interrupted
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def compiled(function, fullgraph=True):
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=fullgraph)


def rows(*shape, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).requires_grad_(grad)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_functions_compile_whole(backend, activation):
    """Losses and gradients are bit for bit those of eager code."""
    leaves = {"x": rows(B, F, grad=True), "w": rows(M, F, grad=True), "b": rows(M, grad=True)}
    leaves |= {"W_embed": rows(M, 3, grad=True), "signal": torch.rand(B, requires_grad=True)}
    y = batch()[1]

    def losses(x, w, b, W_embed, signal):
        z, eps = nk.functional.add_noise(y, signal, 0.3, seed=3, draw=1, W_embed=W_embed)
        logits = nk.functional.dense(x, w, b, activation=activation)
        loss = nk.functional.denoising_loss(
            logits, y, signal, W_embed=W_embed, head="linear", flow=1.0, eps=eps
        )
        return loss + z.sum(-1)

    want, got = losses(*leaves.values()), compiled(losses)(*leaves.values())
    assert torch.equal(got, want)
    grads = [torch.autograd.grad(value.sum(), leaves.values()) for value in (got, want)]
    for name, mine, eager in zip(leaves, *grads, strict=True):
        assert torch.equal(mine, eager), name


def test_loss_module_compiles_whole(backend):
    loss, logits = nk.DenoisingLoss(nn.Parameter(rows(M, 3))), rows(B, M, seed=1, grad=True)
    losses = compiled(loss)(logits, batch()[1], 0.5)
    assert torch.equal(losses, loss(logits, batch()[1], 0.5))
    losses.sum().backward()
    assert loss.W_embed.grad is not None and logits.grad is not None


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_update_compiles_whole(backend, bias):
    optimizer = nk.AdamW(lr=0.01)

    def update(x, d_y, w, b, state):
        return nk.functional.dense_update_(
            x, d_y, w, b, optimizer=optimizer, state=state, input_grad=True
        )

    results = []
    for run in (update, compiled(update)):
        w, b, state = rows(M, F, seed=1), rows(M, seed=2) if bias else None, {}
        for k in range(2):
            applied, d_x = run(rows(B, F), rows(B, M, seed=k), w, b, state)
        results.append([w, *([b] if bias else []), *state.values(), applied, d_x])
    for want, got in zip(*results, strict=True):
        assert torch.equal(got, want)


# every two of a backend, a plan and a mode
FORWARDS = [
    (("cpu", "reference")[(p + training) % 2], plan, bool(training))
    for p, plan in enumerate(PLANS)
    for training in (0, 1)
]


@pytest.mark.parametrize("backend, plan, training", FORWARDS, indirect=["backend"])
def test_blocks_forward_compiles_whole(backend, plan, training):
    """Logits, gradients and running statistics are bit for bit those of eager code."""
    blocks, twin = (make(plan, seed=[0, 1]).train(training) for _ in range(2))
    x, z = rows(B, F, grad=True), rows(2, B, D, seed=1, grad=True)
    if plan == "two_inputs":
        x = {"x": x, "t": rows(B, 4, seed=2)}

    def forward(stack):
        return lambda x, z: stack(x, z, blocks=2)

    got, want = compiled(forward(blocks))(x, z), forward(twin)(x, z)
    assert torch.equal(got, want)
    d_logits = rows(*got.shape, seed=3)
    tensors = [x["x"] if isinstance(x, dict) else x, z]
    mine = torch.autograd.grad(got, [*tensors, *blocks.parameters()], d_logits)
    eager = torch.autograd.grad(want, [*tensors, *twin.parameters()], d_logits)
    assert all(map(torch.equal, mine, eager))
    for name, value in snapshot(twin).items():
        assert torch.equal(snapshot(blocks)[name], value), name


def test_output_head_compiles_whole(backend):
    head = nk.OutputHead(M, M, goal=GOAL)
    assert torch.equal(compiled(head)(rows(B, M)), head(rows(B, M)))


# every two of a backend, a plan and options
PREDICTS = [
    (("cpu", "reference")[(p + o) % 2], plan, options)
    for p, plan in enumerate(("mlp", "norm"))
    for o, options in enumerate(
        ({}, {"noise": False, "seed": 5}, {"samples": 2, "keep": "all"}, {"replica": 1})
    )
]


@pytest.mark.parametrize("backend, plan, options", PREDICTS, indirect=["backend"])
def test_predict_compiles_whole(backend, plan, options):
    blocks = make(plan, seed=[0, 1])

    def predict(x):
        result = blocks.predict(x, **options)
        return result.probs, result.u_hat, result.z

    x = rows(B, F)
    assert all(map(torch.equal, compiled(predict)(x), predict(x)))


def test_linear_compiles_whole_where_it_updates_nothing(backend):
    layer, x = linear(F, M), rows(B, F, grad=True)
    with torch.no_grad():
        assert torch.equal(compiled(layer)(x), layer(x))
    layer.eval()
    (d_x,) = torch.autograd.grad(compiled(layer)(x).sum(), x)
    assert torch.equal(d_x, torch.autograd.grad(layer(x).sum(), x)[0])
    plain = nk.Linear(F, M, optimizer=None)
    compiled(plain)(x).sum().backward()
    assert plain.weight.grad is not None


def test_linear_interrupts_a_graph_and_updates_as_ever(backend):
    models = [nn.Sequential(linear(F, 6), nn.ReLU(), linear(6, M)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for run in (compiled(models[0], fullgraph=False), models[1]):
        for k in range(2):
            run(rows(B, F, seed=k)).square().sum().backward()
    for got, want in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(got, want)
    assert models[0][0].updates.tolist() == [2]


@pytest.mark.parametrize(
    "call",
    [
        lambda layer, blocks, x, y: blocks.train_step(x, y),
        lambda layer, blocks, x, y: blocks.train_steps(x, y, torch.zeros(1, 2, dtype=torch.int64)),
        lambda layer, blocks, x, y: blocks.gradients(x, y),
        lambda layer, blocks, x, y: blocks.loss(x, y),
        lambda layer, blocks, x, y: blocks.add_noise(y),
        lambda layer, blocks, x, y: layer(x),
    ],
    ids=["train_step", "train_steps", "gradients", "loss", "add_noise", "Linear"],
)
def test_what_does_not_compile_says_why(call):
    arguments = (linear(F, M), make(), *batch())
    with pytest.raises(
        torch._dynamo.exc.Unsupported, match="reads labels and counters on the host"
    ):
        compiled(call)(*arguments)


def test_training_in_a_compiled_function_is_that_of_eager_code(backend):
    blocks, twin = make(), make()
    x, y = batch()
    got = compiled(lambda x, y: 2 * blocks.train_step(2 * x, y).loss, fullgraph=False)(x, y)
    assert torch.equal(got, 2 * twin.train_step(2 * x, y).loss)


# the operations


def index():
    return torch.tensor([2, 0])


def block_arguments(plan, grad=True):
    blocks = make_images() if plan == "images" else make(plan)
    params = [value.detach().clone().requires_grad_(grad) for value in blocks.parameters()]
    stats = [blocks.get_buffer(name).clone() for name in blocks.layout.stats]
    inputs = [
        rows(2, B, width, grad=grad)
        for width in (blocks.plan.widths[n] for n in blocks.plan.inputs)
    ]
    return inputs, params, stats, plan_texts.text_of(blocks.plan)


def address(plan):
    """Of dropout."""
    numbers = (torch.tensor([5, 6]), torch.tensor([[3, 4]]), torch.tensor([[2, 0]]))
    return [*numbers] if plan == "images" else []


def gradient_arguments(plan, training):
    *tensors, text = block_arguments(plan, grad=False)
    wanted = [True, True, False]
    tensors = (rows(2, B, M), *tensors, index(), address(plan))
    return (*tensors, wanted, text, training, "float32", None)


def forward_arguments(plan, training):
    *tensors, text = block_arguments(plan)
    return (*tensors, index(), address(plan), text, training, "float32", None)


def predict_arguments():
    inputs, params, stats, text = block_arguments("norm", grad=False)
    once = torch.ones(T)  # DT's chain: weight 1, keep 0, every evaluation ends a step
    numbers = [*torch.rand(3, T), once, 0 * once, 0 * once, once > 0]
    tensors = (params, stats, torch.arange(T), [inputs[0][:1]], torch.tensor([4]), numbers, None)
    return (*tensors, "softmax", D, 0, True, T, 2, text, "float32", None)


def update_arguments():
    optimizer = nk.AdamW()
    moments = [torch.zeros(M, F), torch.zeros(M)] * 2
    return (
        *(rows(B, F), rows(B, M), rows(M, F), rows(M)),
        *([value.clone() for value in moments], torch.zeros(1, dtype=torch.int64)),
        *(*dense_ops.describe(optimizer), 0.01, 0.1, True, "float32", None),
    )


OPERATIONS = {
    "dense": lambda: (
        dense_ops.dense_op,
        (
            rows(2, B, F, grad=True),
            rows(M, F, grad=True),
            rows(M, grad=True),
            "relu",
            "float32",
            None,
        ),
    ),
    "dense, no bias": lambda: (
        dense_ops.dense_op,
        (rows(B, F, grad=True), rows(M, F, grad=True), None, None, "float32", None),
    ),
    "dense_gradients": lambda: (
        dense_ops.dense_gradients_op,
        (
            *(rows(B, M), rows(B, F), rows(M, F), rows(M)),
            [True, False, True],
            None,
            "float32",
            None,
        ),
    ),
    "denoising_error": lambda: (
        label_ops.error_op,
        (rows(B, M, grad=True), batch()[1], rows(M, 3, grad=True), rows(B, 3), "linear", 1.0, None),
    ),
    "add_noise": lambda: (
        label_ops.noise_op,
        (
            *(batch()[1], rows(B, grad=True), rows(B, grad=True), rows(M, 3, grad=True)),
            *(3, 4, 5, 6, 7, 0.1, None),
        ),
    ),
    "dense_update_": lambda: (dense_ops.dense_update_op, update_arguments()),
    "blocks_forward": lambda: (block_ops.forward_op, forward_arguments("mlp", True)),
    "blocks_forward, norm": lambda: (block_ops.forward_op, forward_arguments("norm", True)),
    "blocks_forward, dropout": lambda: (block_ops.forward_op, forward_arguments("images", True)),
    "blocks_forward, eval": lambda: (block_ops.forward_op, forward_arguments("norm", False)),
    "blocks_gradients": lambda: (block_ops.gradients_op, gradient_arguments("norm", True)),
    "blocks_gradients, dropout": lambda: (
        block_ops.gradients_op,
        gradient_arguments("images", True),
    ),
    "blocks_predict": lambda: (chain.predict_op, predict_arguments()),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_pass_opcheck(name):
    operation, arguments = OPERATIONS[name]()
    opcheck(operation, arguments)


class Seen(TorchDispatchMode):
    """Names of the operations that pass through torch's dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def test_eager_code_does_not_pass_through_the_operations(backend):
    x, y = batch()
    blocks, layer = make(), linear(F, M)
    with Seen() as seen:
        logits = layer(x)
        nk.DenoisingLoss()(logits, y).sum().backward()
        w = rows(M, F, grad=True)
        nk.functional.dense(x, w).sum().backward()
        nk.functional.add_noise(y, 0.1, 0.2, seed=0, num_classes=M)
        nk.functional.dense_update_(x, logits, w, optimizer=nk.SGD(), state={})
        blocks(x, blocks.add_noise(y)).sum().backward()
        blocks.predict(x)
        blocks.train_step(x, y)
    assert seen.names and not any("noprop" in name for name in seen.names)


def test_importing_does_not_import_the_compiler():
    code = "import sys, noprop_kernels; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
