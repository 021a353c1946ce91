"""The paper's DT block (arXiv:2503.24322v2, fig. 5) in the plainest PyTorch: the twin's network."""

from torch import Tensor, cat
from torch.nn.functional import batch_norm, conv2d, linear, max_pool2d

from .problem import Factors, Weights


def logits(w: Weights, factors: Factors, t: int, x: Tensor, z: Tensor) -> Tensor:
    """(B, M) of block t (counted from 0), of images x (B, C, H, W) and z (B, D).

    `w` has the running statistics too, which are updated; `factors` are those of dropout.
    """

    def convolution(name: str, x: Tensor, pooled: bool) -> Tensor:
        y = conv2d(x, w[f"{name}.weight"][t], w[f"{name}.bias"][t]).relu()
        return (max_pool2d(y, 2) if pooled else y) * factors[name][t]

    def dense(name: str, *inputs: Tensor) -> Tensor:
        return linear(cat(inputs, dim=1), w[f"{name}.weight"][t], w[f"{name}.bias"][t])

    def normed(name: str, *inputs: Tensor) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        return batch_norm(
            dense(name, *inputs), *(w[f"{name}.norm.{part}"][t] for part in parts), training=True
        )

    for name in ("c1", "c2", "c3"):
        x = convolution(name, x, pooled=name != "c2")
    hx, hz = normed("hx", x.flatten(1)), normed("hz", z).relu()
    hz = hz + normed("sum", normed("skip", hz).relu())
    return dense("logits", normed("f2", normed("f1", hx, hz).relu()).relu())
