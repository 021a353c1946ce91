"""Coupled blocks, head and what they share, of every goal."""

import torch

import noprop_kernels as nk

from .blocks import NORM, F, M

WIDTH = 4  # D, of learned embeddings
SGD = nk.SGD(lr=0.01, momentum=0.5)  # whose moment holds the gradient
NOISY = nk.NoiseSchedule(torch.tensor([0.15, 0.4, 0.7, 0.95]))  # so that DT has a prior
GOALS = {
    "dt": nk.DT(NOISY, eta=0.3),
    "dt huge": nk.DT(NOISY, eta=1e37),
    "ct": nk.CT(nk.GammaNetwork(hidden=9), eta=0.05),
    "ct fixed": nk.CT(eta=0.05),
    "ct uniform": nk.CT(nk.GammaNetwork(hidden=9), weight="uniform", stratified=True),
    "fm": nk.FM(),
    "fm sigma": nk.FM(sigma=0.3),
}


def make_plan(timed: bool, D: int = WIDTH) -> nk.Plan:
    """Every input reaches every logit through a batch norm and a smooth activation."""
    inputs = {"x": (F,), "z": (D,)} | ({"t": (6,)} if timed else {})
    return nk.Plan(
        inputs,
        {
            "h": nk.Dense(tuple(inputs), 8, norm=NORM, activation="gelu"),
            "logits": nk.Dense("h", M),
        },
    )


def make(
    goal: str,
    order: str = "paper",
    *,
    embedding: object = "learned",
    detach_target: bool = False,
    optimizer: nk.SGD | nk.Adam = SGD,
    seed: int = 3,
) -> nk.Coupled:
    if embedding == "learned":
        embedding = nk.LearnedEmbedding(M, WIDTH, "normal", 0.8, detach_target)
    options = {"optimizer": optimizer, "seed": seed}
    shared = nk.Shared(GOALS[goal], embedding, **options)
    D = M if shared.W_embed is None else WIDTH
    options["shared"] = shared
    blocks = nk.DenoisingBlocks(make_plan(GOALS[goal].timed, D), GOALS[goal], **options)
    learns = shared.learns_embedding
    head = None
    if learns or GOALS[goal].flow == 0:
        head = nk.OutputHead(D, M, goal=GOALS[goal], **options)
    return nk.Coupled(blocks, head, shared, order=order)
