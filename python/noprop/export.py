"""A model's inference as one torch.fx graph of torch's own parts, which runs without this library.

    h = encoder((x - mean) * scale);  z = 0
    z = a_t softmax(block_t(h, z)) @ W_embed + b_t z     for t = 1..T (eq. 3 without noise)
    labels = argmax over y of signal <u_y, z> - signal^2 |u_y|^2 / 2
    probs = mean of softmax(block_t) over t = T // 2 + 1..T

or of a CT or FM the evaluations of its sampler, each with the embedding of its t, where what
depends on x alone is computed once; or, by the paper's protocol, with z = eps and + sqrt(c_t) eps,
and the head's softmax and argmax. It is a graph and no class, since unpickling a class needs its
package.
"""

import copy
from operator import add, mul, sub
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

import noprop_kernels as nk
from noprop_kernels.stack import plain_modules
from noprop_kernels.stack.call_arguments import check_draws_z

from . import sampling
from .modules.blocks import ModuleBlocks
from .modules.networks import time_input
from .normalisation import Normalisation
from .sampling import Sampler

if TYPE_CHECKING:
    from .model import Model

MOST_STEPS = 100


def chain(model: "Model", with_noise: bool, steps: int | None) -> fx.GraphModule:
    """The graph of `Model.to_module`, with tensors of its own."""
    blocks = model.blocks
    sampler = sampler_of(model, with_noise, steps)
    if isinstance(blocks, nk.DenoisingBlocks):
        check_draws_z(blocks, "to_module")
        inputs = list(blocks.plan.inputs)
        if len([name for name in inputs if name != "t" or not blocks.goal.timed]) != 2:
            raise ValueError(f'to_module: plan must have "z" and one more input, got {inputs}')
    writer = Writer()
    h = features(writer, model)
    z, probs = evaluations(writer, model, sampler, h, with_noise)
    if with_noise and model.head is not None and model.variant.softmax:
        scores = head_scores(writer, model, model.head, z)
    else:
        scores = written_scores(writer, model, z)
    if with_noise or not model.variant.softmax:
        probs = writer.call(torch.softmax, scores, -1)
    writer.graph.output((writer.call(torch.argmax, scores, -1), probs))
    module = fx.GraphModule(writer.root, writer.graph, class_name="Classifier")
    return module.eval().requires_grad_(False)


def sampler_of(model: "Model", with_noise: bool, steps: int | None) -> Sampler:
    """
    Raises:
        ValueError: steps do not fit.
    """
    steps = model.sampler.steps if steps is None else steps
    if steps > MOST_STEPS and model.variant.sampled:
        raise ValueError(
            f"to_module: steps must be at most {MOST_STEPS}, got {steps}: each is written out as "
            "a part of the graph, and its exporters need time and memory for every one"
        )
    choose = sampling.paper_sampler if with_noise else sampling.answer_sampler
    kind = model.paper_sampler.kind if with_noise else model.sampler.kind
    return choose("to_module", model.goal, kind, steps)


class Writer:
    """A graph that is being written.

    Attributes:
        root: its modules and tensors, by name.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.root: dict[str, nn.Module | Tensor] = {}

    def part(self, name: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        self.root[name] = module
        return self.graph.call_module(name, args)

    def buffer(self, name: str, value: Tensor) -> fx.Node:
        # contiguous, as files of torch.export keep tensors
        self.root[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return self.graph.get_attr(name)

    def call(self, function: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(function, args)

    def method(self, name: str, *args: Any) -> fx.Node:
        return self.graph.call_method(name, args)

    def sum(self, terms: list[fx.Node]) -> fx.Node:
        total = terms[0]
        for term in terms[1:]:
            total = self.call(add, total, term)
        return total

    def scaled(self, value: fx.Node, factor: float) -> list[fx.Node]:
        """factor * value as a term of a sum; none where the factor is 0."""
        if factor == 0:
            return []
        return [value if factor == 1 else self.call(mul, value, factor)]

    def inline(
        self, name: str, module: fx.GraphModule, given: dict[str, fx.Node], kept: dict, x: str
    ) -> fx.Node:
        """A copy of a module's graph, called with `given` by the names of its inputs.

        Args:
            name: of the module's parts in the root.
            module: the block.
            given: its inputs.
            kept: what depends on input `x` alone, by node; filled by the first copy.
            x: the input that does not change from copy to copy.
        """
        values, still = dict(kept), set(kept)
        for node in module.graph.nodes:
            if node in values:
                continue
            if node.op == "output":
                return values[node.args[0]]
            if node.op == "placeholder":
                values[node] = given[node.target]
                steady = node.target == x
            else:
                values[node] = made = self.graph.node_copy(node, values.__getitem__)
                if node.op == "call_module":
                    made.target = f"{name}.{node.target}"
                    self.root[made.target] = module.get_submodule(node.target)
                steady = all(source in still for source in node.all_input_nodes)
            if steady:
                still.add(node)
                kept[node] = values[node]
        raise AssertionError("a graph has an output")


def features(writer: Writer, model: "Model") -> fx.Node:
    """The blocks' input, normalised and encoded."""
    x = writer.graph.placeholder("x")
    numbers = affine(model)
    mean, scale = (writer.buffer(*item) for item in numbers.items())
    if model.inputs is None:
        # without training data x's dtype decides whether x is bytes, as in `predict`; by
        # torch.select, since unpickling traces the graph, and only torch's functions take a proxy
        kind = writer.call(mul, writer.method("is_floating_point", x), 1)
        mean, scale = (writer.call(torch.select, v, 0, kind) for v in (mean, scale))
    wide = model.inputs is not None and model.inputs.kind == "numbers"
    channels = numbers["mean"].shape[-2]
    h = writer.method("flatten", writer.method("double" if wide else "float", x), 1)
    h = writer.method("unflatten", h, 1, (channels, -1))
    h = writer.call(mul, writer.call(sub, h, mean), scale)
    h = writer.method("float", writer.method("flatten", h, 1))
    if model.encoder is not None:
        h = writer.part("encoder", copy.deepcopy(model.encoder), h)
    return h


class WrittenBlocks:
    """The library's blocks in a graph; of a CT or FM with what x alone reaches written once.

    Args:
        h: the graph's x.
        t: of each evaluation, where the goal draws it.
    """

    def __init__(
        self, writer: Writer, blocks: nk.DenoisingBlocks, h: fx.Node, t: Tensor | None
    ) -> None:
        self.writer, self.plan, self.h = writer, blocks.plan, h
        self.modules = blocks.to_modules()
        self.kept: dict[fx.Node, fx.Node] = {}
        self.t = None
        if t is not None:
            times = nk.embed_time(t, self.plan.widths["t"])
            self.t = writer.buffer("t", times.to(blocks.device))

    def logits(self, e: int, z: fx.Node, rows: fx.Node) -> fx.Node:
        """Those of evaluation e."""
        writer, inputs, h = self.writer, self.plan.inputs, self.h
        if self.t is None:
            given = (z if name == "z" else h for name in inputs)
            return writer.part(f"block_{e + 1}", self.modules[e], *given)
        at = writer.method("expand", writer.call(torch.select, self.t, 0, e), rows, -1)
        x = next(name for name in inputs if name not in ("z", "t"))
        return writer.inline("block", self.modules[0], {x: h, "z": z, "t": at}, self.kept, x)


class WrittenNetworks:
    """Networks of one's own in a graph, which calls copies of them; each encoder runs once.

    Args:
        h, t: as of WrittenBlocks.
    """

    def __init__(self, writer: Writer, blocks: ModuleBlocks, h: fx.Node, t: Tensor | None) -> None:
        self.writer, self.blocks = writer, blocks
        self.h = h if blocks.x_shape is None else writer.method("unflatten", h, 1, blocks.x_shape)
        self.t = None
        if t is not None:
            self.t = writer.buffer("t", time_input(t, blocks.time_width).to(blocks.device))
        self.read: dict[int, fx.Node] = {}  # by encoder
        self.copies: dict[int, nn.Module] = {}

    def logits(self, e: int, z: fx.Node, rows: fx.Node) -> fx.Node:
        """Those of evaluation e."""
        writer, blocks = self.writer, self.blocks
        i = e % blocks.T
        encoder = 0 if blocks.share_encoder else i
        if encoder not in self.read:
            read = self.h
            if len(blocks.encoders):
                module = copy.deepcopy(blocks.encoders[encoder])
                read = writer.part(f"encoder_{encoder + 1}", module, read)
            self.read[encoder] = read
        given = [self.read[encoder], z]
        if self.t is not None:
            sizes = (rows,) if blocks.time_width is None else (rows, -1)
            at = writer.call(torch.select, self.t, 0, e)
            given.append(writer.method("expand", at, *sizes))
        if i not in self.copies:
            self.copies[i] = copy.deepcopy(blocks.networks[i])
        return writer.part(f"network_{i + 1}", self.copies[i], *given)


def evaluations(
    writer: Writer, model: "Model", sampler: Sampler, h: fx.Node, with_noise: bool
) -> tuple[fx.Node, fx.Node]:
    """The last z, and the mean of the later blocks' softmaxes, of a CT or FM of the last one."""
    blocks, goal = model.blocks, model.goal
    table, rows = goal.table(*sampler), writer.method("size", h, 0)
    z = writer.method("new_zeros", h, (rows, blocks.D))
    if with_noise:
        z = writer.call(torch.randn_like, z)
    W = model.W_embed
    W_embed = None if W is None else writer.buffer("W_embed", W)
    own = isinstance(blocks, ModuleBlocks)
    t = table.t if goal.timed else None
    written = WrittenNetworks(writer, blocks, h, t) if own else WrittenBlocks(writer, blocks, h, t)
    base, terms, later = z, [], []
    for e, ends in enumerate(table.ends.tolist()):
        a, b, sqrt_c, weight, onward, keep = (
            value[e].item()
            for value in (table.a, table.b, table.sqrt_c, table.weight, table.next, table.keep)
        )
        logits = written.logits(e, z, rows)
        linear = goal.head == "linear"
        p = logits if linear else writer.call(torch.softmax, logits, -1)
        u_hat = p if W_embed is None else writer.call(torch.matmul, p, W_embed)
        k = writer.sum([*writer.scaled(u_hat, a), *writer.scaled(z, b)])
        terms += writer.scaled(k, weight)
        if not ends:
            z = writer.sum([base, *writer.scaled(k, onward)])
            continue
        terms += writer.scaled(base, keep)
        if with_noise and sqrt_c != 0:
            terms += writer.scaled(writer.call(torch.randn_like, z), sqrt_c)
        z = base = writer.sum(terms)
        terms = []
        later.append(p)
    later = later[-1:] if goal.timed else later[blocks.T // 2 :]
    return z, writer.call(mul, writer.sum(later), 1 / len(later))


def written_scores(writer: Writer, model: "Model", z: fx.Node) -> fx.Node:
    """The scores (B, M); of one-hot embeddings column y of z, since every |u_y| is 1."""
    W = model.W_embed
    if W is None:
        return z
    weight, bias = sampling.score_weights(W, *model.variant.last_signal(model.goal))
    scores = writer.call(torch.matmul, z, writer.buffer("score_weight", weight.T))
    return writer.call(add, scores, writer.buffer("score_bias", bias))


def head_scores(writer: Writer, model: "Model", head: nk.OutputHead, z: fx.Node) -> fx.Node:
    """The head's logits (B, M), of a radial head those of its distances."""
    logits = writer.part("head", plain_modules.copied_module(head, 0), z)
    if head.kind != "radial":
        return logits
    p = writer.call(torch.softmax, logits, -1)
    W = model.W_embed
    if W is None:  # |u_tilde - u_m|^2 = |p|^2 - 2 p_m + 1
        return writer.call(mul, p, 1 / head.sigma**2)
    near = writer.buffer("head_W_embed", W)
    u_tilde = writer.call(torch.matmul, p, near)
    apart = writer.call(sub, writer.method("unsqueeze", u_tilde, -2), near)
    squares = writer.method("sum", writer.call(mul, apart, apart), -1)
    return writer.call(mul, squares, -1 / (2 * head.sigma**2))


def affine(model: "Model") -> dict[str, Tensor]:
    """Mean and scale (channels, 1); without training data (2, channels, 1), those of bytes
    first."""
    normalisation = Normalisation.of(model.normalize)
    kinds = {"bytes": torch.uint8, "numbers": torch.float64}
    wanted = [*kinds.values()] if model.inputs is None else [kinds[model.inputs.kind]]
    made = [normalisation.mean_and_scale(kind, len(normalisation.mean)) for kind in wanted]
    if len(made) == 1:
        mean, scale = (value[:, None] for value in made[0])
    else:
        pairs = zip(*made, strict=True)
        mean, scale = (torch.stack([v.float() for v in pair])[..., None] for pair in pairs)
    return {"mean": mean.to(model.device), "scale": scale.to(model.device)}
