"""One of the replicas of a stack as a stack of its own, with the bits of training alone."""

from dataclasses import replace

from torch import Tensor

import noprop_kernels as nk
from noprop_kernels.optimizers import Optimizer


def shared_of(shared: nk.Shared, replica: int) -> nk.Shared:
    """A copy of what a replica's blocks and head share, on its device."""
    tensors, part = shared.state_dict(), slices_of(replica, 1)
    embedding: nk.LearnedEmbedding | Tensor | None = shared.W_embed
    if embedding is not None and shared.learns_embedding:
        M, D = embedding.shape[-2:]
        detach = shared.detach_target
        embedding = nk.LearnedEmbedding(M, D, init="normal", detach_target=detach)
    elif embedding is not None:
        embedding = embedding.cpu()
    whole = () if shared.learns_embedding else ("W_embed",)  # fixed ones are of all replicas
    tensors = {name: it if name in whole else it[part] for name, it in tensors.items()}
    made = nk.Shared(
        shared.goal,
        embedding,
        optimizer=optimizer_of(shared.optimizer, replica, shared.replicas),
        seed=int(tensors["seeds"][0]),
    )
    made.load_state_dict(tensors)
    return made.to(shared.device)


def blocks_of(
    blocks: nk.DenoisingBlocks, replica: int, shared: nk.Shared | None = None
) -> nk.DenoisingBlocks:
    """A copy of a replica's blocks, on their device, which reads `shared_of` what they share."""
    tensors = state_of(blocks, replica, blocks.replicas)
    made = nk.DenoisingBlocks(
        blocks.plan,
        blocks.goal,
        embedding=None if shared is not None else embedding_of(blocks),
        shared=shared,
        optimizer=optimizer_of(blocks.optimizer, replica, blocks.replicas),
        seed=int(tensors["seeds"][0]),
        held=blocks.held,
        precision=blocks.precision,
        backend=blocks.backend,
        blocks_per_launch=blocks.blocks_per_launch,
    )
    made.seeds.copy_(tensors["seeds"])  # a block may have a seed of its own
    made.load_state_dict(tensors)
    return made.to(blocks.device)


def head_of(head: nk.OutputHead, replica: int, shared: nk.Shared | None = None) -> nk.OutputHead:
    """A copy of a replica's head, on its device, which reads `shared_of` what it shares."""
    tensors = state_of(head, replica, len(head))
    made = nk.OutputHead(
        head.D,
        head.M,
        goal=head.goal,
        embedding=None if shared is not None else embedding_of(head),
        shared=shared,
        kind=head.kind,
        sigma=head.sigma,
        optimizer=optimizer_of(head.optimizer, replica, len(head)),
        seed=int(tensors["seeds"][0]),
        precision=head.precision,
        backend=head.backend,
    )
    made.load_state_dict(tensors)
    return made.to(head.device)


def embedding_of(stack: nk.DenoisingBlocks | nk.OutputHead) -> Tensor | None:
    """Of a stack that has embeddings of its own; None: they are one-hot."""
    return None if stack.W_embed is None else stack.W_embed.cpu()


def state_of(
    stack: nk.DenoisingBlocks | nk.OutputHead, replica: int, replicas: int
) -> dict[str, Tensor]:
    """The part of a stack's state that is a replica's; all share the embeddings."""
    part = slices_of(replica, len(stack) // replicas)
    state = stack.state_dict()
    return {name: value if name == "W_embed" else value[part] for name, value in state.items()}


def optimizer_of(optimizer: Optimizer | None, replica: int, replicas: int) -> Optimizer | None:
    """With the weight decays of a replica's slices, where each has its own."""
    if optimizer is None or not isinstance(optimizer.weight_decay, tuple):
        return optimizer
    decays = optimizer.weight_decay
    return replace(optimizer, weight_decay=decays[slices_of(replica, len(decays) // replicas)])


def slices_of(replica: int, each: int) -> slice:
    """The positions of a replica's slices, of which each replica has so many."""
    return slice(replica * each, (replica + 1) * each)
