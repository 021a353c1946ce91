"""Ready plans: an MLP, and the dense part of the paper's DT block."""

from .plan import BatchNorm, Dense, Plan


def mlp(in_features: int, embed_dim: int, num_classes: int, hidden: int = 256) -> Plan:
    """A two-stem MLP block: x and z each through a dense layer, joined by a third, then the logits.

    Args:
        in_features: F, width of x.
        embed_dim: D, width of the noisy label embedding z.
        num_classes: M, width of the logits.
        hidden: H, width of the three hidden layers.

    Raises:
        ValueError: a size is below 1.
    """
    return Plan(
        inputs={"x": (in_features,), "z": (embed_dim,)},
        layers={
            "hx": Dense("x", hidden, activation="relu"),
            "hz": Dense("z", hidden, activation="relu"),
            "f": Dense(("hx", "hz"), hidden, activation="relu"),
            "logits": Dense("f", num_classes),
        },
    )


def paper_dt(in_features: int, embed_dim: int, num_classes: int) -> Plan:
    """The dense part of the paper's DT block (arXiv:2503.24322v2, fig. 5): batch norm and a skip.

    x is the output of the block's convolutions: 2048 features for 28 x 28 images, 3200 for 32 x 32.

    Args:
        in_features: F, width of the flattened convolutional features x.
        embed_dim: D, width of the noisy label embedding z.
        num_classes: M, width of the logits.

    Raises:
        ValueError: a size is below 1.
    """
    norm = BatchNorm()
    return Plan(
        inputs={"x": (in_features,), "z": (embed_dim,)},
        layers={
            "hx": Dense("x", 256, norm=norm),
            "hz": Dense("z", 256, norm=norm, activation="relu"),
            "skip": Dense("hz", 256, norm=norm, activation="relu"),
            "sum": Dense("skip", 256, norm=norm, add="hz"),
            "f1": Dense(("hx", "sum"), 256, norm=norm, activation="relu"),
            "f2": Dense("f1", 128, norm=norm, activation="relu"),
            "logits": Dense("f2", num_classes),
        },
    )
