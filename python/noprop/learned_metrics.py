"""What a run records of its learned embeddings and schedule after each epoch.

The linear layers and the embeddings can both lower the squared error by moving all embeddings to
one point, which the cross entropy of the output head prevents, or not (arXiv:2503.24322v2, section
2.3.2). Two classes whose embeddings are nearer than the noise of the last z are told apart by luck.
"""

from typing import Any

import torch

from .model import Model

POINTS = 41  # of t in [0, 1]
LEAST_NOISE = 0.1  # of an fm, whose last z has none


def learned_metrics(model: Model) -> dict[str, Any]:
    """By name, what the model learns beside its networks, for a line of metrics.jsonl.

    "embedding": least_distance, of two embeddings, its classes, and norms, of all. "schedule":
    gamma and the weight of the loss at POINTS evenly spaced t from 0 to 1.
    """
    shared, record = model.shared, {}
    if shared is not None and shared.learns_embedding:
        record["embedding"] = distances(model)
    if shared is not None and shared.learns_schedule:
        goal: Any = model.goal  # a CT, the only one with a learned schedule
        t = torch.linspace(0, 1, POINTS, dtype=torch.float64, device="cpu")
        gamma, weight = goal.gamma(t), goal.levels(t).weight
        record["schedule"] = {"gamma": gamma.tolist(), "weight": weight.tolist()}
    return record


def distances(model: Model) -> dict[str, Any]:
    W_embed = model.W_embed
    assert W_embed is not None
    W_embed = W_embed.detach().double().cpu()
    apart = torch.cdist(W_embed, W_embed, compute_mode="donot_use_mm_for_euclid_dist")
    apart.fill_diagonal_(torch.inf)
    least = int(apart.argmin())
    return {
        "least_distance": apart.min().item(),
        "classes": [least // len(apart), least % len(apart)],
        "norms": W_embed.norm(dim=1).tolist(),
    }


def line(record: dict[str, Any]) -> str:
    """The figures of an epoch for people, empty where nothing is learned."""
    figures = []
    if embedding := record.get("embedding"):
        norms = embedding["norms"]
        figures.append(
            f"embeddings {embedding['least_distance']:.3g} apart, norms {min(norms):.3g} to "
            f"{max(norms):.3g}"
        )
    if schedule := record.get("schedule"):
        figures.append(f"gamma {schedule['gamma'][0]:.3g} to {schedule['gamma'][-1]:.3g}")
    return "  ".join(figures)


def collapse(model: Model, record: dict[str, Any]) -> str | None:
    """A warning where two embeddings are nearer than the noise of the last z, else None."""
    embedding = record.get("embedding")
    if embedding is None or len(embedding["norms"]) < 2:
        return None
    last = model.goal.last()
    noise = max(last.noise.item(), LEAST_NOISE) / last.signal.item()
    if embedding["least_distance"] >= noise:
        return None
    names = model.classes_ or [str(label) for label in range(model.blocks.M)]
    one, other = (names[label] for label in embedding["classes"])
    return (
        f"the embeddings of {one} and {other} are {embedding['least_distance']:.3g} apart, nearer "
        f"than the noise of the last z, {noise:.3g}: they collapse. --detach-target keeps the "
        "squared error's target from pulling them together, --embed-scale begins further apart"
    )
