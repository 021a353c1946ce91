"""A NoProp model: blocks, an optional head, normalisation, and the data for inference."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn

import noprop_kernels as nk

from . import checkpoint, export, replicas, sampling, saving
from .inference import Inference, Normalize
from .inputs import InputFormat
from .json_records import Json
from .modules.blocks import ModuleBlocks
from .variants import variant_of

Learner = nk.DenoisingBlocks | ModuleBlocks | nk.OutputHead


class Model(Inference):
    """Blocks and their chain without noise, which predicts the likeliest class given its last z.

    Of DT the chain is T blocks (eq. 3), of CT and FM a sampler over the one block of all t.

    model(x) returns the probabilities. A model predicts with running statistics and trains with
    those of the batch, whatever its mode: `eval` and `train` change nothing.

    A model of R replicas is R models of different seeds that are trained together and give separate
    answers: a call that needs one asks which, `replica(r)` is a copy of one, and a mean of several
    answers is the caller's own.

    With fixed embeddings no block needs another, so that a model may have some of them, or its head
    alone: `fit` trains it, and what asks for an answer names the blocks that are missing.

    Args:
        blocks: all T of them, in each replica, or some: nk.DenoisingBlocks, or a ModuleBlocks of
            networks of one's own, which has all. The nk.Shared that they read, if any, is part of
            the model: its embeddings and schedule are saved, and where it learns them `fit` trains
            it, of one replica.
        head: None, or the head that reads the last z in the paper's protocol (`predict_paper`), of
            as many replicas; `fit` trains it beside the blocks. No answer depends on it. An FM has
            none but where it learns its embeddings, by the head's loss; it reads classes without it
            all the same.
        encoder: None, or a frozen module from normalised x (B, F) to features (B, F'): `fit` trains
            only the blocks and the head.
        normalize: mean and std of x, each (channels,), where x is made of that many equal runs of
            features; None until `fit` measures them.
        classes: names of the M classes, in their order; None until `fit` sees labels.
        inputs: the format of a row of x; None until `fit` sees one.
        sampler: kind and steps of the answer, which draws nothing; None: of DT the chain, of CT
            ("ddim", 20), of FM ("euler", 20).
        paper_sampler: of the paper's protocol; None: of DT the chain, of CT ("ancestral", 1000), of
            FM ("euler", 1000).
        prototypes: the training rows whose features the learned embeddings were at first, by class;
            None: they were none.
        seeds: of the noise in inference, one for each replica; None: those of the first block held.
        alone: the model is its head alone: `blocks` give plan and goal, and none is a part of it.

    Raises:
        ValueError: blocks are missing where something shared is learned, or head, classes, a
            sampler, seeds or prototypes do not fit them.
    """

    def __init__(
        self,
        blocks: nk.DenoisingBlocks | ModuleBlocks,
        head: nk.OutputHead | None = None,
        encoder: nn.Module | None = None,
        *,
        normalize: Normalize | None = None,
        classes: Sequence[str] | None = None,
        inputs: InputFormat | None = None,
        sampler: tuple[str, int] | None = None,
        paper_sampler: tuple[str, int] | None = None,
        prototypes: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
        alone: bool = False,
    ) -> None:
        goal, T, shared = blocks.goal, blocks.T, blocks.shared
        variant = variant_of("Model", goal)
        quiet = sampling.check_pair("Model", "sampler", sampler)
        noisy = sampling.check_pair("Model", "paper_sampler", paper_sampler)
        self.sampler = sampling.answer_sampler("Model", goal, *quiet)
        self.paper_sampler = sampling.paper_sampler("Model", goal, *noisy)
        if head is not None and head.shared is not shared:
            raise ValueError(
                "Model: head must be made with the blocks' shared=, got "
                f"{'none' if head.shared is None else 'another'}"
            )
        self.held = () if alone else blocks.held
        if shared is not None and shared.learns and len(self.held) < T:
            raise ValueError(
                f"Model: blocks must hold all of 1..{T} where something shared is learned, which "
                f"learns from each of them, got {list(self.held)}"
            )
        if alone and head is None:
            raise ValueError("Model: head must be given where it is alone, got None")
        if seeds is not None and len(seeds) != blocks.replicas:
            raise ValueError(
                f"Model: seeds must be one per replica, {blocks.replicas}, got {len(seeds)}"
            )
        if shared is not None and shared.learns and blocks.replicas > 1:
            raise ValueError(
                "Model: blocks must have one replica where something shared is learned, whose "
                f"steps give one batch to all replicas, got {blocks.replicas}; make a model for "
                "each seed"
            )
        learns_embedding = shared is not None and shared.learns_embedding
        if head is not None and not variant.softmax and not learns_embedding:
            raise ValueError(
                "Model: head must be None of an FM with fixed embeddings, whose classes are read "
                "by the nearest one"
            )
        if prototypes is not None and not (learns_embedding and len(prototypes) == blocks.M):
            raise ValueError(
                f"Model: prototypes must be a row for each of {blocks.M} classes of learned "
                f"embeddings, got {len(prototypes)}"
                f"{'' if learns_embedding else ' of fixed ones'}"
            )
        if head is not None and len(head) != blocks.replicas:
            raise ValueError(
                f"Model: head must have as many replicas as the blocks, {blocks.replicas}, got "
                f"{len(head)}"
            )
        if head is not None and (head.D, head.M) != (blocks.D, blocks.M):
            raise ValueError(
                f"Model: head must be for D, M = {blocks.D}, {blocks.M}, got {head.D}, {head.M}"
            )
        self.blocks, self.head, self.encoder, self.normalize = blocks, head, encoder, normalize
        first = blocks.seeds[:: len(blocks.held)].tolist()
        self.seeds: list[int] = first if seeds is None else list(seeds)
        self.classes_ = None if classes is None else tuple(classes)
        self.inputs = inputs
        self.prototypes = None if prototypes is None else tuple(prototypes)
        if classes is not None and not len(set(classes)) == len(classes) == blocks.M:
            raise ValueError(
                f"Model: classes must be {blocks.M} different names, got {len(set(classes))} in "
                f"{len(classes)}"
            )

    def replica(self, replica: int) -> "Model":
        """A copy of one replica: a model with the bits of one that was trained alone, which may be
        trained further. It has this model's encoder itself.

        Raises:
            ValueError: there is no such replica.
        """
        replica = self._which("replica", replica)
        shared = None if self.shared is None else replicas.shared_of(self.shared, replica)
        if isinstance(self.blocks, ModuleBlocks):
            blocks = self.blocks.replica(replica)
        else:
            blocks = replicas.blocks_of(self.blocks, replica, shared)
        return Model(
            blocks,
            None if self.head is None else replicas.head_of(self.head, replica, shared),
            self.encoder,
            normalize=self.normalize,
            classes=self.classes_,
            inputs=self.inputs,
            sampler=self.sampler,
            paper_sampler=self.paper_sampler,
            prototypes=self.prototypes,
            seeds=[self.seeds[replica]],
            alone=not self.held,
        )

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The existing modules, by their names in a checkpoint."""
        encoder = {} if self.encoder is None else {"encoder": self.encoder}
        return {**self.optimized, **encoder}

    @property
    def optimized(self) -> dict[str, Learner | nk.Shared]:
        """The learners, and what they share: all that has an optimizer of its own."""
        shared = {} if self.shared is None else {"shared": self.shared}
        return {**self.learners, **shared}

    @property
    def learners(self) -> dict[str, Learner]:
        """The networks that are trained: the blocks, and the head if there is one."""
        blocks = {"blocks": self.blocks} if self.held else {}
        head = {} if self.head is None else {"head": self.head}
        return {**blocks, **head}

    def __repr__(self) -> str:
        blocks = self.blocks
        sampled = {"goal": type(self.goal).__name__, "sampler": self.sampler}
        parts = {
            **({} if self.replicas == 1 else {"replicas": self.replicas}),
            **(sampled if self.variant.sampled else {"T": blocks.T}),
            **({"missing": str(self.missing)} if self.missing else {}),
            **{name: list(shape) for name, shape in blocks.plan.inputs.items()},
            "classes": blocks.M,
            "parameters": f"{self.num_parameters():,}",
            "head": self.head is not None,
            "encoder": None if self.encoder is None else type(self.encoder).__name__,
            "device": self.device,
        }
        return f"Model({', '.join(f'{name}={value}' for name, value in parts.items())})"

    def to(self, device: torch.device | str) -> "Model":
        """Moves blocks, head and encoder; returns itself."""
        for part in (self.blocks, *self.parts.values()):
            part.to(device)
        return self

    def eval(self) -> "Model":
        """Itself, unchanged."""
        return self

    def train(self, mode: bool = True) -> "Model":
        """Itself, unchanged; use `noprop.fit` to train."""
        return self

    def num_parameters(self) -> int:
        """Parameters of all blocks, of the head if there is one, and of what is shared, in all
        replicas."""
        return sum(p.numel() for part in self.optimized.values() for p in part.parameters())

    def to_module(self, *, noise: bool = False, steps: int | None = None) -> fx.GraphModule:
        """Inference as one plain nn.Module, from x to labels and probabilities.

        It is called as module(x), x (B, F) uint8 or float32, and returns the results of `predict`:
        labels (B,) int64 and probs (B, M) float32, in the order of ONNX's classifiers. It has its
        own tensors, is in eval mode, runs with PyTorch alone (an encoder needs its own code), and
        can be exported by torch.export and torch.onnx, with output_names=["labels", "probs"].
        torch.export treats a size of 1 as a constant: for a variable B its example x must have at
        least two rows; torch.onnx.export accepts one.

        Args:
            noise: use the paper's protocol instead, with a new draw by torch.randn_like in each
                call: probs are the softmax of what `read` gives, labels their argmax.
            steps: of a CT's or FM's sampler, at most 100, since each is unrolled; None: the
                answer's own, also with noise. A DT's are its T blocks.

        Raises:
            ValueError: the plan has inputs other than "z" and one more (and "t" of CT and FM),
                steps do not fit, `noise` is true and the model has no head, or it has several
                replicas.
        """
        self.check_single("to_module")
        self.check_whole("to_module")
        if noise:
            self._check_reads("to_module")
        return export.chain(self, noise, steps)

    def save(self, folder: str | Path, training: Json | None = None) -> Path:
        """Writes the model, optimizer state and counters included, into `folder` (checkpoint.py),
        and returns that.

        Args:
            folder: created if it is missing.
            training: the trainer's own record, stored with the model.

        Raises:
            ImportError: safetensors is not installed.
            OSError: the disk refuses the write.
        """
        content, format = saving.content_of(self, training)
        folder = Path(folder)
        checkpoint.save(folder, content, self.tensors(), format)
        return folder

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that training changes, and the embeddings, by name. Each has its own memory,
        as a checkpoint demands: a tensor with two names (tied weights) is copied.

        Raises:
            ValueError: the encoder's state contains something that a checkpoint cannot hold.
        """
        return saving.tensors_of(self.parts)

    def versions(self) -> dict[str, str | None]:
        """Versions and backend: what a training step's bits depend on beside the settings."""
        return checkpoint.versions(self.blocks)
