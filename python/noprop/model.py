"""A NoProp model: blocks, head, normalisation, and what inference must know about them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import noprop_kernels as nk
from noprop_kernels.batches import scale_and_shift

from . import checkpoint, description, export
from .description import Json, field
from .errors import InputError

Normalize = tuple[Tensor, Tensor]
SAMPLER = {"kind": "ancestral", "equation": "arXiv:2503.24322v2, eq. 3", "from": "N(0, I)"}
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Answer:
    """The head's logits of S samples of the chain.

    Attributes:
        logits: (S, B, M) float32.
    """

    logits: Tensor

    @property
    def probs(self) -> Tensor:
        """(B, M): softmax(logits), averaged over the samples."""
        return torch.softmax(self.logits, -1).mean(0)

    @property
    def labels(self) -> Tensor:
        """(B,) int64: the most probable class."""
        return self.probs.argmax(-1)


class Model:
    """T blocks and the output head: y_hat = argmax softmax(f_out(z_T)), z_T by the chain of eq. 3.

    Args:
        blocks: all T of them, one replica.
        head: reads z_T.
        encoder: None, or a module from normalised x (B, F) to features (B, F'), which is used as
            it is: `fit` trains what comes after it.
        normalize: mean and std of x, each (channels,) float32, where x is made of that many equal
            runs of features; None until `fit` measures them.

    Raises:
        ValueError: blocks are missing, or blocks and head do not fit.
    """

    def __init__(
        self,
        blocks: nk.DenoisingBlocks,
        head: nk.OutputHead,
        encoder: nn.Module | None = None,
        *,
        normalize: Normalize | None = None,
    ) -> None:
        T = blocks.goal.T
        if list(blocks.held) != list(range(1, T + 1)):
            raise ValueError(f"Model: blocks must hold all of 1..{T}, got {list(blocks.held)}")
        if blocks.replicas != 1 or len(head) != 1:
            raise ValueError(
                f"Model: blocks and head must have one replica, got {blocks.replicas} and "
                f"{len(head)}"
            )
        if (head.D, head.M) != (blocks.D, blocks.M):
            raise ValueError(
                f"Model: head must be for D, M = {blocks.D}, {blocks.M}, got {head.D}, {head.M}"
            )
        self.blocks, self.head, self.encoder, self.normalize = blocks, head, encoder, normalize

    @property
    def device(self) -> torch.device:
        return self.blocks.device

    def to(self, device: torch.device | str) -> "Model":
        """Moves blocks, head and encoder; returns itself."""
        for part in (self.blocks, self.head, self.encoder):
            if part is not None:
                part.to(device)
        return self

    def num_parameters(self) -> int:
        """Parameters of all blocks and the head."""
        return sum(p.numel() for part in (self.blocks, self.head) for p in part.parameters())

    def features(self, x: Tensor) -> Tensor:
        """What the blocks read of x: normalised, then through the encoder if there is one.

        Args:
            x: (B, F) uint8, counted as x / 255, or float32.

        Returns:
            (B, F') float32 on the model's device.
        """
        x = x.to(self.device)
        scale, shift = scale_and_shift("predict", self.normalize, x)
        x = x.float()
        if scale is not None and shift is not None:
            x = x * scale + shift
        if self.encoder is None:
            return x
        was_training = self.encoder.training
        self.encoder.eval()
        with torch.no_grad():
            parts = [self.encoder(part) for part in x.split(ROWS_AT_ONCE)]
        self.encoder.train(was_training)
        return torch.cat(parts)

    def predict(
        self, x: Tensor, *, noise: bool = False, samples: int = 1, seed: int | None = None
    ) -> Answer:
        """Classes of x; no label is asked for.

        Args:
            x: (B, F) uint8 or float32, of any B: how rows are batched changes no result.
            noise: the paper's chain, with noise in every step (eq. 3); else only z_0 is random.
            samples: S, how often the chain is drawn.
            seed: of the draws; None is the model's own.

        Raises:
            ValueError: an argument does not fit.
        """
        parts = [
            self._logits(rows, first_row, noise=noise, samples=samples, seed=seed)
            for first_row, rows in in_parts(x, ROWS_AT_ONCE)
        ]
        if not parts:
            return Answer(self.blocks._numbers.new_empty(samples, 0, self.blocks.M))
        return Answer(torch.cat(parts, 1))

    def _logits(
        self, x: Tensor, first_row: int, *, noise: bool, samples: int, seed: int | None
    ) -> Tensor:
        chain = self.blocks.predict(
            self.features(x), noise=noise, samples=samples, seed=seed, first_row=first_row
        )
        return self.read(chain.z[:, 0])

    def read(self, z: Tensor) -> Tensor:
        """The head's logits (..., M) of embeddings z (..., D)."""
        with torch.no_grad():
            logits = self.head.forward(z.reshape(-1, z.shape[-1]))[0]
        return logits.view(*z.shape[:-1], -1)

    def to_module(self, *, noise: bool = False) -> fx.GraphModule:
        """Inference as one plain nn.Module: normalisation, encoder, T blocks, head, probabilities.

        It is called as module(x), x (B, F) uint8 or float32, and returns softmax(logits) (B, M). It
        has tensors of its own, is in eval mode, runs with PyTorch alone (an encoder needs its own
        code), and goes through torch.export and torch.onnx. Without noise every row starts from
        the same z_0, the buffer `z_0` (1, D), so that a row's answer does not depend on its place:
        it is what `predict` answers for that row alone. `predict` gives the rows of a batch one
        z_0 each; assign them, (B, D), to module.z_0 to get the same.

        Args:
            noise: draw z_0 and the noise of every step by torch.randn_like, in each call anew.

        Raises:
            ValueError: the plan has other inputs than "z" and one more.
        """
        return export.chain(self, noise)

    def save(self, folder: str | Path, training: Json | None = None) -> None:
        """Writes the model, optimizer state and counters included, into `folder` (checkpoint.py).

        Args:
            folder: made where it is missing.
            training: what a trainer wants to find again.

        Raises:
            ImportError: safetensors is not installed.
            OSError: the disk refuses.
        """
        content = {
            "model": {
                "plan": description.plan_to_json(self.blocks.plan),
                "goal": description.goal_to_json(self.blocks.goal),
                "order": list(self.blocks.held),
                "sampler": SAMPLER,
                "normalisation": None
                if self.normalize is None
                else {"mean": self.normalize[0].tolist(), "std": self.normalize[1].tolist()},
                "encoder": self.encoder is not None,
                "optimizers": {
                    "blocks": description.optimizer_to_json(self.blocks.optimizer),
                    "head": description.optimizer_to_json(self.head.optimizer),
                },
                "precision": {"blocks": self.blocks.precision, "head": self.head.precision},
                "classes": self.blocks.M,
                "embed_dim": self.blocks.D,
            },
            "versions": self.versions(),
            "training": training,
        }
        checkpoint.save(Path(folder), content, self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes, and the embeddings, by name."""
        parts: dict[str, Any] = {"blocks": self.blocks, "head": self.head}
        if self.encoder is not None:
            parts["encoder"] = self.encoder
        return {
            f"{part}.{name}": value
            for part, module in parts.items()
            for name, value in module.state_dict().items()
        }

    def versions(self) -> dict[str, str | None]:
        """What the bits of a training step depend on, beside the settings."""
        return checkpoint.versions(self.blocks)


def in_parts(x: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """(first_row, rows of x) for each part of at most `rows` rows."""
    return ((start, x[start : start + rows]) for start in range(0, len(x), rows))


def load(
    folder: str | Path, encoder: nn.Module | None = None, *, backend: str | None = None
) -> Model:
    """The model that `save` wrote, ready to predict or to train on.

    Args:
        folder: the run's folder.
        encoder: a module like the one that was saved; it gets its weights.
        backend: forces a backend.

    Raises:
        InputError: a file is missing or corrupt, or the model does not carry its plan, schedule,
            order of t, sampler or normalisation.
        ImportError: safetensors is not installed.
    """
    content, tensors = checkpoint.load(Path(folder))
    return from_checkpoint(content, tensors, encoder, backend=backend)


def from_checkpoint(
    content: Json,
    tensors: dict[str, Tensor],
    encoder: nn.Module | None = None,
    *,
    backend: str | None = None,
) -> Model:
    """The model of a loaded checkpoint. Arguments and errors as `load`."""
    record = field(content, "model", dict)
    try:
        plan = description.plan_from_json(field(record, "plan", dict))
        goal = description.goal_from_json(field(record, "goal", dict))
        optimizers = field(record, "optimizers", dict)
        precision = {"blocks": "float32", "head": "float32"} | record.get("precision", {})
        if field(record, "sampler", dict) != SAMPLER:
            raise InputError(f"a saved model must have the sampler {SAMPLER}")
        if field(record, "order", list) != list(range(1, goal.T + 1)):
            raise InputError(f"a saved model must have the blocks 1..{goal.T}, in this order")
        if "normalisation" not in record:
            raise InputError("a saved model must carry its normalisation, got nothing")
        normal = record["normalisation"]
        embedding = tensors.get("blocks.W_embed")
        blocks = nk.DenoisingBlocks(
            plan,
            goal,
            embedding=embedding,
            optimizer=description.optimizer_from_json(optimizers.get("blocks")),
            seed=int(tensors["blocks.seeds"][0]),
            precision=precision["blocks"],
            backend=backend,
        )
        head = nk.OutputHead(
            field(record, "embed_dim", int),
            field(record, "classes", int),
            goal=goal,
            embedding=embedding,
            optimizer=description.optimizer_from_json(optimizers.get("head")),
            seed=int(tensors["head.seeds"][0]),
            precision=precision["head"],
            backend=backend,
        )
        blocks.load_state_dict(_part(tensors, "blocks."))
        head.load_state_dict(_part(tensors, "head."))
        if field(record, "encoder", bool):
            if encoder is None:
                raise InputError("this model was saved with an encoder: give one like it")
            encoder.load_state_dict(_part(tensors, "encoder."))
        elif encoder is not None:
            raise InputError("this model was saved without an encoder: give none")
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"this is no model that this version can load: {error}") from error
    normalize = None
    if normal is not None:
        mean = torch.tensor(normal["mean"], dtype=torch.float32, device="cpu")
        std = torch.tensor(normal["std"], dtype=torch.float32, device="cpu")
        normalize = (mean, std)
    return Model(blocks, head, encoder, normalize=normalize)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
