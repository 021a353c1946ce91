"""Embeddings and the output head to JSON and back, as a saved model describes them."""

from typing import TYPE_CHECKING

from torch import Tensor

import noprop_kernels as nk
from noprop_kernels.gamma_network import NAMES, NORMAL
from noprop_kernels.goal import Goal
from noprop_kernels.output_head import HEADS

from .errors import InputError
from .json_records import Json, field, optimizer_from_json
from .modules.blocks import ModuleBlocks

if TYPE_CHECKING:
    from .model import Model

EMBEDDINGS = ("one-hot", "fixed", "learned", "prototype")
LEARNED = EMBEDDINGS[2:]


def has_first_form(model: "Model") -> bool:
    """Whether the first format can describe it: a DT of one replica that shares nothing, with no
    radial head and no networks of one's own."""
    own_networks = isinstance(model.blocks, ModuleBlocks)
    softmax = model.head is None or model.head.kind == "softmax"
    one = not model.variant.sampled and model.replicas == 1
    return one and model.shared is None and softmax and not own_networks


def is_apart(model: "Model") -> bool:
    """Whether blocks are missing, or their seeds are not all those of inference."""
    seeds = model.blocks.seeds.view(model.replicas, -1)
    return bool(model.missing) or bool((seeds != seeds.new_tensor(model.seeds)[:, None]).any())


def parts_to_json(model: "Model") -> Json:
    """The head, in the second format with its kind, and there the embeddings too."""
    head, shared = model.head, model.shared
    if has_first_form(model):
        return {"head": head is not None}
    learns = shared is not None and shared.learns_embedding
    kind = "one-hot" if model.W_embed is None else "fixed"
    if learns:
        kind = "learned" if model.prototypes is None else "prototype"
    return {
        "head": None if head is None else {"kind": head.kind, "sigma": head.sigma},
        "embedding": {
            "kind": kind,
            "learned": learns,
            "detach_target": shared is not None and shared.detach_target,
            "shared": shared is not None,
            "prototypes": None if model.prototypes is None else list(model.prototypes),
        },
    }


def head_from_json(record: Json) -> Json | None:
    """Kind and sigma of the saved head, as arguments of OutputHead; None: there is none.

    Raises:
        InputError: it is of a kind that this version does not know.
    """
    saved = record.get("head", True)  # early models always had one
    if saved is None or isinstance(saved, bool):
        return {} if saved else None
    if not isinstance(saved, dict) or saved.get("kind") not in HEADS:
        kind = saved.get("kind") if isinstance(saved, dict) else saved
        raise InputError(
            f"a saved head is of kind {kind!r}, this version knows {' and '.join(HEADS)}"
        )
    return {"kind": saved["kind"], "sigma": field(saved, "sigma", float)}


def shared_from_json(record: Json, goal: Goal, tensors: dict[str, Tensor]) -> nk.Shared | None:
    """The nk.Shared of a saved model with its first values, to be given its state; None: it has
    none.

    Raises:
        InputError: the embeddings are of a kind that this version does not know, or a tensor is
            missing or of another size.
    """
    saved = record.get("embedding")  # early models did not carry it
    if saved is None:
        return None
    kind = saved.get("kind") if isinstance(saved, dict) else saved
    if kind not in EMBEDDINGS:
        raise InputError(
            f"a saved embedding is of kind {kind!r}, this version knows {', '.join(EMBEDDINGS)}"
        )
    if not field(saved, "shared", bool):
        return None
    M, D = field(record, "classes", int), field(record, "embed_dim", int)
    R = field({"replicas": 1} | record, "replicas", int)  # recorded where there are several
    sizes: dict[str, tuple[int, ...]] = {"shared.seeds": (R,)}
    embedding: nk.LearnedEmbedding | Tensor | None = None
    if kind in LEARNED:
        sizes["shared.W_embed"] = (1, M, D)
    elif kind == "fixed":
        sizes["shared.W_embed"] = (M, D)
    if isinstance(gamma := getattr(goal, "schedule", None), nk.GammaNetwork):
        hidden = gamma.hidden
        sizes |= {f"shared.gamma.{name}": (1, hidden)[: 1 + (name in NORMAL)] for name in NAMES}
    for name, size in sizes.items():
        if name not in tensors or tuple(tensors[name].shape) != size:
            got = list(tensors[name].shape) if name in tensors else "nothing"
            raise InputError(f"a saved model must have {name} {list(size)}, got {got}")
    if kind in LEARNED:
        detach = field(saved, "detach_target", bool)
        embedding = nk.LearnedEmbedding(M, D, init="normal", detach_target=detach)
    elif kind == "fixed":
        embedding = tensors["shared.W_embed"]
    optimizer = optimizer_from_json(field(record, "optimizers", dict).get("shared"))
    return nk.Shared(goal, embedding, optimizer=optimizer, seed=tensors["shared.seeds"].tolist())


def prototypes_from_json(record: Json) -> list[int] | None:
    """The training rows that the embeddings were at first, where they were."""
    saved = record.get("embedding") or {}
    return None if saved.get("prototypes") is None else field(saved, "prototypes", list)
