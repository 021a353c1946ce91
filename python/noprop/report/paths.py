"""Ways of z_t to the embeddings of the classes: without noise, as an answer goes, and drawn."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import noprop_kernels as nk

from ..evaluation import drawn_z_0
from ..model import Model

SHOWN_STEPS = 20  # of CT's and FM's samplers
DRAWN_STEPS = 100  # that their drawn ways take; SHOWN_STEPS divides it
DRAWS = 3  # of each row


@dataclass(frozen=True)
class Paths:
    """z_t of some rows from z_0 to the last.

    Attributes:
        t: (n + 1,) of the z: 0..T of DT, 0..1 of CT and FM.
        quiet: (n + 1, rows, D) float64, without noise from z_0 = 0.
        drawn: (n + 1, rows, DRAWS, D) float64, from z_0 ~ N(0, I), by the sampler of the paper's
            protocol.
        W_embed: (M, D) float64.
    """

    t: Tensor
    quiet: Tensor
    drawn: Tensor
    W_embed: Tensor

    @classmethod
    def of(cls, model: Model, x: Any) -> "Paths":
        """The ways of the rows x under a model of one replica."""
        blocks, features = model.blocks, model.features(x)
        several = features.repeat_interleave(DRAWS, 0)  # a row's noise is that of its place
        seed = model.seeds[0]
        quiet, drawn = model.sampler, model.paper_sampler
        if isinstance(model.goal, nk.DT):
            t = torch.arange(blocks.T + 1, dtype=torch.float64, device="cpu")
            z = blocks.predict(features, noise=False, keep="all").z
            noisy = blocks.predict(several, seed=seed, keep="all").z
        else:
            t = torch.linspace(0, 1, SHOWN_STEPS + 1, dtype=torch.float64, device="cpu")
            z = blocks.predict(
                features, noise=False, sampler=quiet.kind, steps=SHOWN_STEPS, keep="all"
            ).z
            noisy = blocks.predict(
                several, sampler=drawn.kind, steps=DRAWN_STEPS, seed=seed, keep=SHOWN_STEPS
            ).z
        z_0 = drawn_z_0(model, len(several), seed, 0)
        W_embed = model.W_embed
        if W_embed is None:
            W_embed = torch.eye(blocks.M, dtype=torch.float64, device="cpu")
        return cls(
            t,
            _with_first(z[:, 0, 0], torch.zeros_like(z[0, 0, 0])),
            _with_first(noisy[:, 0, 0], z_0).unflatten(1, (-1, DRAWS)),
            W_embed.detach().double().cpu(),
        )

    def distances(self) -> Tensor:
        """(n + 1, rows, M): |z_t - u_y| of the ways without noise."""
        return torch.cdist(self.quiet, self.W_embed, compute_mode="donot_use_mm_for_euclid_dist")

    def drawn_distances(self) -> Tensor:
        """(n + 1, rows, DRAWS, M): those of the drawn ways."""
        return torch.cdist(self.drawn, self.W_embed, compute_mode="donot_use_mm_for_euclid_dist")

    def plane(self) -> Tensor:
        """(D, 2) orthonormal columns onto which the ways are projected, those of `principal`."""
        return principal(self.W_embed)


def _with_first(z: Tensor, first: Tensor) -> Tensor:
    return torch.cat([first[None].to(z), z]).double().cpu()


def principal(W_embed: Tensor) -> Tensor:
    """(D, 2): two principal axes of embeddings (M, D).

    Those of one-hot embeddings have equal variances, so that any two would do: here the ones that
    put the classes on a circle, in their order.
    """
    M, D = W_embed.shape
    if M > 2 and torch.equal(W_embed, torch.eye(M, dtype=W_embed.dtype, device="cpu")):
        angle = 2 * math.pi * torch.arange(M, dtype=torch.float64, device="cpu") / M
        return torch.stack([angle.cos(), angle.sin()], 1) * (2 / M) ** 0.5
    axes = torch.linalg.svd(W_embed - W_embed.mean(0), full_matrices=False).Vh[:2].T
    return torch.nn.functional.pad(axes, (0, 2 - axes.shape[1]))  # of a D of 1
