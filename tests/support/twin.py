"""An independent twin of one slice in torch.nn.functional and autograd: the reference's truth."""

import torch
from torch.nn import functional as F

from noprop_kernels import philox
from noprop_kernels.plan import Conv2d
from support.calls import PLANS, make_train_call

F64 = torch.float64
TIGHT = {"rtol": 1e-9, "atol": 1e-11}

# every kind of number and head at least once
VARIANTS = {
    "dt": {"head": "softmax"},
    "one-hot": {"head": "softmax", "one_hot": True},
    "ct": {"head": "softmax", "per_row": True, "first_row": 7, "rows": 50},
    "fm": {"head": "linear", "flow": 1.0, "per_row": True},
    "fm, sigma": {"head": "linear", "flow": 1.0, "sigma": 0.3, "per_row": True, "one_hot": True},
    "softmax, flow": {"head": "softmax", "flow": 0.7, "sigma": 0.2},
    "cross entropy": {"head": "cross_entropy"},
    "radial": {"head": "radial", "radius": 0.7, "per_row": True},
    "radial on one-hot": {"head": "radial", "radius": 0.5, "one_hot": True},
    "radial, features": {"head": "radial", "radius": 1.0, "z_features": True, "D": 3},
    "features": {"head": "softmax", "z_features": True, "D": 3},
    "features, flow": {"head": "linear", "flow": 1.0, "z_features": True, "per_row": True, "D": 9},
}


def make(name, n=3, B=6, K=1, **options):
    D, M = 5, 5 if options.get("one_hot") else 4
    return make_train_call(PLANS[name](7, D, M), n + 1, n, B, K, **options)


class Twin:
    """One slice of a training call in torch.nn.functional, its leaves made for autograd."""

    def __init__(self, call, i):
        at = call.slices.index[i]
        self.call, self.i, self.plan = call, i, call.slices.plan
        params = call.slices.params.items()
        self.params = {name: value[at].clone().requires_grad_() for name, value in params}
        self.stats = {name: value[at].clone() for name, value in call.slices.stats.items()}

    def logits(self, inputs, training=True, step=0):
        found = dict(inputs)
        for name, layer in self.plan.layers.items():
            if isinstance(layer, Conv2d):
                found[name] = y = self.convolved(name, layer, found, step if training else None)
                continue
            x = torch.cat([found[source] for source in layer.sources], dim=-1)
            y = F.linear(x, self.params[f"{name}.weight"], self.params[f"{name}.bias"])
            if layer.norm is not None:
                key = f"{name}.norm."
                y = F.batch_norm(
                    y,
                    *(self.stats[key + "running_mean"], self.stats[key + "running_var"]),
                    *(self.params[key + "weight"], self.params[key + "bias"]),
                    training,
                    layer.norm.momentum,
                    layer.norm.eps,
                )
            if layer.activation is not None:
                y = {"relu": F.relu, "gelu": F.gelu}[layer.activation](y)
            found[name] = y + found[layer.add] if layer.add else y
        return y if not layer.add else found[name]

    def convolved(self, name, layer, found, step):
        """A convolution's features; its dropout keeps what philox keeps, without a step nothing
        is dropped."""
        x = found[layer.inputs].unflatten(-1, self.plan.shapes[layer.inputs])
        y = F.conv2d(x, self.params[f"{name}.weight"], self.params[f"{name}.bias"])
        y = F.relu(y) if layer.activation else y
        y = F.max_pool2d(y, layer.pool.kernel_size) if layer.pool else y
        if layer.dropout > 0 and step is not None:
            numbers, i, site = self.call.noise, self.i, self.plan.dropout_sites()[name]
            address = (philox.STREAM_DROPOUT, site, numbers.draw[step, i], numbers.block[step, i])
            uniform = philox.uniform(
                numbers.seeds[i : i + 1],
                *(*address, self.call.B, self.plan.widths[name]),
                first_row=numbers.first_row,
            )[0]
            kept = uniform.unflatten(-1, (-1, layer.channels)).mT >= layer.dropout  # by pixel
            y = y * kept.view_as(y) / (1 - layer.dropout)
        y = y.flatten(1)
        return y + found[layer.add] if layer.add else y

    def draw(self, stream, step):
        numbers, i = self.call.noise, self.i
        return philox.normal(
            numbers.seeds[i : i + 1],
            *(stream, 0, numbers.draw[step, i], numbers.block[step, i]),
            *(self.call.B, self.call.embedding.D),
            first_row=numbers.first_row,
            dtype=F64,
        )[0]

    def loss(self, step=0):
        """Loss and error of a step; everything that may want a gradient becomes an attribute."""
        call, i = self.call, self.i
        noising, objective, embedding = call.noising, call.objective, call.embedding
        y = call.y[step, i]
        W = (
            torch.eye(embedding.D, dtype=F64)
            if embedding.W_embed is None
            else embedding.W_embed.clone()
        )
        self.W_embed = W.requires_grad_()
        self.signal = noising.signal[step, i].clone().requires_grad_()
        self.noise = noising.noise[step, i].clone().requires_grad_()
        self.inputs = {k: v[step, i].clone().requires_grad_() for k, v in call.inputs.items()}
        eps = self.draw(call.noise.stream, step)
        u_y = W[y]
        if call.z is None:
            z = self.signal[:, None] * u_y + self.noise[:, None] * eps
            z = z + noising.sigma * self.draw(1, step)
        else:
            z = self.inputs["z"] = call.z[i].clone().requires_grad_()
        logits = self.logits(self.inputs | {"z": z}, step=step)
        if objective.head == "cross_entropy":
            error = F.cross_entropy(logits, y, reduction="none")
        elif objective.head == "radial":
            u_hat = F.softmax(logits, -1) @ W
            squared = (u_hat[:, None] - W).square().sum(-1)
            error = F.cross_entropy(-squared / (2 * objective.radius**2), y, reduction="none")
        else:
            u_hat = (logits if objective.head == "linear" else F.softmax(logits, -1)) @ W
            error = F.mse_loss(u_hat, u_y - objective.flow * eps, reduction="none").sum(-1)
        return (objective.weight[step, i] * error).sum() / objective.rows, error


def torch_step(twin, optimizer, step, lr):
    """The twin's loss of a step, after torch.optim's update at this rate."""
    optimizer.param_groups[0]["lr"] = float(lr)
    optimizer.zero_grad()
    loss, _ = twin.loss(step)
    loss.backward()
    for name, layer in twin.plan.dense.items():
        if layer.norm is not None:  # its gradient is zero, torch has rounding noise
            twin.params[f"{name}.bias"].grad.zero_()
    optimizer.step()
    return loss.detach()


def gradient(leaf):
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
