"""Ready plans: an MLP, and the blocks of the paper (arXiv:2503.24322v2, fig. 5)."""

import math

from .plan import BatchNorm, Conv2d, Dense, Layer, MaxPool2d, Plan, Shape

TIME_FEATURES = 64  # of the embedding of t


def mlp(
    in_features: int, embed_dim: int, num_classes: int, hidden: int = 256, *, time: bool = False
) -> Plan:
    """A two-stem MLP block: x and z each through a dense layer, joined by a third, then the logits.

    Args:
        in_features: F, width of x.
        embed_dim: D, width of the noisy label embedding z.
        num_classes: M, width of the logits.
        hidden: H, width of the hidden layers.
        time: whether it is a block of CT or FM, which has a third stem for the input "t".

    Raises:
        ValueError: a size is below 1.
    """
    inputs: dict[str, Shape] = {"x": (in_features,), "z": (embed_dim,)}
    if time:
        inputs["t"] = (TIME_FEATURES,)
    stems = {f"h{name}": Dense(name, hidden, activation="relu") for name in inputs}
    join = Dense((*stems,), hidden, activation="relu")
    return Plan(inputs, {**stems, "f": join, "logits": Dense("f", num_classes)})


def paper_dt(
    x_shape: int | Shape,
    embed_dim: int,
    num_classes: int,
    *,
    z_image: bool = False,
    dropout: float = 0.2,
) -> Plan:
    """The paper's DT block (fig. 5): convolutions over x, batch norm behind dense layers, a skip.

    Without x's height and width it is the dense part alone, for x as the convolutions leave it
    (2048 features of a 28 x 28 image, 3200 of 32 x 32). 64 x 64 pixels get a fourth convolution.

    Args:
        x_shape: an image (C, H, W), or F, the number of features.
        embed_dim: D, width of the noisy label embedding z.
        num_classes: M, width of the logits.
        z_image: whether z is an image like x, as prototypes are, with convolutions of its own
            in place of the skip.
        dropout: behind each convolution.

    Raises:
        ValueError: a size does not fit.
    """
    norm = BatchNorm()
    shape = image_or_features(x_shape)
    layers, features = encoder("c", "x", shape, dropout)
    layers["hx"] = Dense(features, 256, norm=norm)
    z_shape: Shape = (embed_dim,)
    if z_image:
        z_shape = image_of("paper_dt", shape, embed_dim)
        more, features = encoder("d", "z", z_shape, dropout)
        layers |= more | {"hz": Dense(features, 256, norm=norm)}
    else:
        layers |= {
            "hz": Dense("z", 256, norm=norm, activation="relu"),
            "skip": Dense("hz", 256, norm=norm, activation="relu"),
            "sum": Dense("skip", 256, norm=norm, add="hz"),
        }
    layers |= {
        "f1": Dense(("hx", "hz" if z_image else "sum"), 256, norm=norm, activation="relu"),
        "f2": Dense("f1", 128, norm=norm, activation="relu"),
        "logits": Dense("f2", num_classes),
    }
    return Plan({"x": shape, "z": z_shape}, layers)


def paper_ct(
    x_shape: int | Shape,
    embed_dim: int,
    num_classes: int,
    *,
    z_image: bool = False,
    dropout: float = 0.2,
) -> Plan:
    """The paper's block of CT and FM: convolutions over x, and an embedding of t; no batch norm.

    Args:
        x_shape, embed_dim, num_classes, z_image, dropout: as of `paper_dt`; the input "t" has
            TIME_FEATURES features.

    Raises:
        ValueError: a size does not fit.
    """
    shape = image_or_features(x_shape)
    layers, features = encoder("c", "x", shape, dropout)
    layers["hx"] = Dense(features, 256, activation="relu")
    z_shape: Shape = (embed_dim,)
    features = "z"
    if z_image:
        z_shape = image_of("paper_ct", shape, embed_dim)
        more, features = encoder("d", "z", z_shape, dropout)
        layers |= more
    layers |= {
        "hz": Dense(features, 256, activation="relu"),
        "ht": Dense("t", 256, activation="relu"),
        "f1": Dense(("hx", "hz", "ht"), 256, activation="relu"),
        "f2": Dense("f1", 128, activation="relu"),
        "logits": Dense("f2", num_classes),
    }
    return Plan({"x": shape, "z": z_shape, "t": (TIME_FEATURES,)}, layers)


def image_or_features(x_shape: int | Shape) -> Shape:
    return tuple(x_shape) if isinstance(x_shape, tuple | list) else (x_shape,)


def image_of(op: str, shape: Shape, embed_dim: int) -> Shape:
    """The shape of z as an image like x."""
    if len(shape) != 3 or math.prod(shape) != embed_dim:
        raise ValueError(
            f"{op}: embed_dim must be x's C H W where z is an image, got {embed_dim} for {shape}"
        )
    return shape


def encoder(name: str, source: str, shape: Shape, dropout: float) -> tuple[dict[str, Layer], str]:
    """The paper's convolutions over an image, and the name of their result; none over features."""
    layers: dict[str, Layer] = {}
    if len(shape) == 3:
        pooled = [(32, True), (64, False), (128, True)]
        if min(shape[1:]) >= 64:
            pooled.append((256, True))
        for i, (channels, pools) in enumerate(pooled, 1):
            pool = MaxPool2d() if pools else None
            layers[f"{name}{i}"] = Conv2d(
                source, channels, activation="relu", pool=pool, dropout=dropout
            )
            source = f"{name}{i}"
    return layers, source
