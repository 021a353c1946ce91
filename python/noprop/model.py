"""A NoProp model: blocks, an optional head, normalisation, and the data for inference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

import noprop_kernels as nk
from noprop_kernels import functional
from noprop_kernels.check import check_positive

from . import checkpoint, export, json_records
from .inputs import InputFormat
from .json_records import Json
from .normalisation import Normalisation

Normalize = tuple[Tensor, Tensor]
SAMPLER = {"kind": "ancestral", "equation": "arXiv:2503.24322v2, eq. 3", "from": "N(0, I)"}
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Answer:
    """The answer of the chain without noise for B rows; each row's depends on that row alone.

    Attributes:
        scores: (B, M) float32, `sqrt(alpha_bar_T) <u_y, z_T> - alpha_bar_T |u_y|^2 / 2`, which
            grows with the likelihood of z_T under q(z_T | y). No prior is added: the blocks carry
            it.
        probs: (B, M) float32, the mean of the softmaxes of the blocks T // 2 + 1..T. Each block
            treats the beliefs of earlier blocks as evidence, so the last one alone is overconfident
            where classes overlap; a softmax of the scores would be even more so. Where two classes
            are close, the argmax of probs may differ from the label.
        classes: names of the M classes.
    """

    scores: Tensor
    probs: Tensor
    classes: tuple[str, ...]

    @property
    def labels(self) -> Tensor:
        """(B,) int64: argmax of the scores."""
        return self.scores.argmax(-1)

    @property
    def names(self) -> list[str]:
        """The class names of the labels."""
        return [self.classes[label] for label in self.labels.tolist()]


class Model:
    """T blocks and their chain, which predicts the likeliest class given z_T (eq. 3 without noise).

    model(x) returns the probabilities. A model predicts with running statistics and trains with
    those of the batch, whatever its mode: `eval` and `train` change nothing.

    Args:
        blocks: all T of them, one replica.
        head: None, or the head that reads z_T in the paper's protocol (`predict_paper`); `fit`
            trains it beside the blocks. No answer depends on it.
        encoder: None, or a frozen module from normalised x (B, F) to features (B, F'): `fit` trains
            only the blocks and the head.
        normalize: mean and std of x, each (channels,), where x is made of that many equal runs of
            features; None until `fit` measures them.
        classes: names of the M classes, in their order; None until `fit` sees labels.
        inputs: the format of a row of x; None until `fit` sees one.

    Raises:
        ValueError: blocks are missing, or head or classes do not fit them.
    """

    def __init__(
        self,
        blocks: nk.DenoisingBlocks,
        head: nk.OutputHead | None = None,
        encoder: nn.Module | None = None,
        *,
        normalize: Normalize | None = None,
        classes: Sequence[str] | None = None,
        inputs: InputFormat | None = None,
    ) -> None:
        goal, T = blocks.goal, blocks.T
        if not isinstance(goal, nk.DT):
            raise ValueError(f"Model: blocks must have a DT as goal, got {type(goal).__name__}")
        self.goal = goal
        if list(blocks.held) != list(range(1, T + 1)):
            raise ValueError(f"Model: blocks must hold all of 1..{T}, got {list(blocks.held)}")
        if blocks.replicas != 1:
            raise ValueError(f"Model: blocks must have one replica, got {blocks.replicas}")
        if head is not None and len(head) != 1:
            raise ValueError(f"Model: head must have one replica, got {len(head)}")
        if head is not None and (head.D, head.M) != (blocks.D, blocks.M):
            raise ValueError(
                f"Model: head must be for D, M = {blocks.D}, {blocks.M}, got {head.D}, {head.M}"
            )
        self.blocks, self.head, self.encoder, self.normalize = blocks, head, encoder, normalize
        self.classes_ = None if classes is None else tuple(classes)
        self.inputs = inputs
        if classes is not None and not len(set(classes)) == len(classes) == blocks.M:
            raise ValueError(
                f"Model: classes must be {blocks.M} different names, got {len(set(classes))} in "
                f"{len(classes)}"
            )

    @property
    def device(self) -> torch.device:
        return self.blocks.device

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The existing modules, by their names in a checkpoint."""
        encoder = {} if self.encoder is None else {"encoder": self.encoder}
        return {**self.learners, **encoder}

    @property
    def learners(self) -> dict[str, nk.DenoisingBlocks | nk.OutputHead]:
        """The trained modules: the blocks, and the head if there is one."""
        head = {} if self.head is None else {"head": self.head}
        return {"blocks": self.blocks, **head}

    def __repr__(self) -> str:
        blocks = self.blocks
        parts = {
            "T": blocks.T,
            **{name: list(shape) for name, shape in blocks.plan.inputs.items()},
            "classes": blocks.M,
            "parameters": f"{self.num_parameters():,}",
            "head": self.head is not None,
            "encoder": None if self.encoder is None else type(self.encoder).__name__,
            "device": self.device,
        }
        return f"Model({', '.join(f'{name}={value}' for name, value in parts.items())})"

    def __call__(self, x: Any) -> Tensor:
        """Probabilities (B, M) of x; arguments and errors as `predict`."""
        return self.predict(x).probs

    def to(self, device: torch.device | str) -> "Model":
        """Moves blocks, head and encoder; returns itself."""
        for part in self.parts.values():
            part.to(device)
        return self

    def eval(self) -> "Model":
        """Itself, unchanged."""
        return self

    def train(self, mode: bool = True) -> "Model":
        """Itself, unchanged; use `noprop.fit` to train."""
        return self

    def num_parameters(self) -> int:
        """Parameters of all blocks, and of the head if there is one."""
        return sum(p.numel() for part in self.learners.values() for p in part.parameters())

    def features(self, x: Any, first_row: int = 0) -> Tensor:
        """The blocks' input for x: normalised, then encoded if there is an encoder.

        Args:
            x: rows as `predict` takes them.
            first_row: the number that errors give to the first row.

        Returns:
            (B, F') float32 on the model's device.

        Raises:
            InputError: x does not fit.
        """
        x = self.format_of(x).rows(x, "predict", first_row=first_row)
        x = Normalisation.of(self.normalize).apply(x).to(self.device)
        if self.encoder is None:
            return x
        was_training = self.encoder.training
        self.encoder.eval()
        try:
            with torch.no_grad():
                parts = [self.encoder(part) for part in x.split(ROWS_AT_ONCE)]
        finally:
            self.encoder.train(was_training)
        return torch.cat(parts)

    def format_of(self, x: Any) -> InputFormat:
        """The format of a row of x: that of training, or before training that of x itself."""
        return self.inputs or InputFormat.of(x, "predict")

    def predict(self, x: Any) -> Answer:
        """Predicts classes of x by the chain without noise; it needs no labels, and nothing is
        random.

        The chain with noise is `predict_paper`, or `blocks.predict(noise=True)` for its z_t.

        Args:
            x: (B, F) or of the shape that training took: a tensor, an array, a table of pandas or
                lists, of any B. The batch and the position of a row change no result. Values count,
                not types: for a model that was trained on uint8 every number is a byte 0..255.

        Raises:
            ValueError: x does not fit.
        """
        blocks, rows = self.blocks, self.format_of(x).array(x)
        probs = torch.empty(len(rows), blocks.M, dtype=torch.float32, device=blocks.device)
        scores = torch.empty_like(probs)
        for first, part in in_parts(rows, ROWS_AT_ONCE):
            chain = blocks.predict(self.features(part, first), noise=False, keep="all")
            last = first + len(part)
            probs[first:last] = chain.logits[blocks.T // 2 :, 0, 0].softmax(-1).mean(0)
            scores[first:last] = self.scores(chain.z[-1, 0, 0])
        return Answer(scores, probs, self.classes_ or tuple(map(str, range(blocks.M))))

    def predict_paper(self, x: Any, samples: int = 5, seed: int | None = None) -> Tensor:
        """The head's logits of z_T by the paper's protocol: noise in every step, S times.

        Args:
            x: B rows, as in `predict`. The noise of a row depends on its position.
            samples: S, the number of draws of the chain.
            seed: of the draws; None is the model's own.

        Returns:
            (S, B, M) float32.

        Raises:
            ValueError: the model has no head, or an argument does not fit.
        """
        self._head("predict_paper")
        check_positive("predict_paper", "samples", samples)
        rows = self.format_of(x).array(x)
        logits = torch.empty(
            samples, len(rows), self.blocks.M, dtype=torch.float32, device=self.blocks.device
        )
        for first, part in in_parts(rows, ROWS_AT_ONCE):
            chain = self.blocks.predict(
                self.features(part, first), samples=samples, seed=seed, first_row=first
            )
            logits[:, first : first + len(part)] = self.read(chain.z[:, 0])
        return logits

    def scores(self, z: Tensor) -> Tensor:
        """`Answer.scores` (..., M) of z_T (..., D)."""
        alpha_bar, W = float(self.goal.schedule.alpha_bar[-1]), self.blocks.W_embed
        if W is None:  # <u_y, z> is column y of z
            return alpha_bar**0.5 * z - alpha_bar / 2
        weight, bias = alpha_bar**0.5 * W, -alpha_bar / 2 * W.square().sum(1)
        return functional.dense(z, weight, bias, backend=self.blocks.backend)

    def read(self, z: Tensor) -> Tensor:
        """The head's logits (..., M) of embeddings z (..., D).

        Raises:
            ValueError: the model has no head.
        """
        head = self._head("read")
        with torch.no_grad():
            logits = head.forward(z.reshape(-1, z.shape[-1]))[0]
        return logits.view(*z.shape[:-1], -1)

    def _head(self, op: str) -> nk.OutputHead:
        if self.head is None:
            raise ValueError(
                f"{op}: the model must have a head, which the paper's protocol reads z_T with, got "
                "none; `predict` needs none"
            )
        return self.head

    def to_module(self, *, noise: bool = False) -> fx.GraphModule:
        """Inference as one plain nn.Module, from x to labels and probabilities.

        It is called as module(x), x (B, F) uint8 or float32, and returns the results of `predict`:
        labels (B,) int64 and probs (B, M) float32, in the order of ONNX's classifiers. It has its
        own tensors, is in eval mode, runs with PyTorch alone (an encoder needs its own code), and
        can be exported by torch.export and torch.onnx, with output_names=["labels", "probs"].
        torch.export treats a size of 1 as a constant: for a variable B its example x must have at
        least two rows; torch.onnx.export accepts one.

        Args:
            noise: use the paper's protocol instead, with a new draw by torch.randn_like in each
                call: probs are the head's softmax, labels their argmax.

        Raises:
            ValueError: the plan has inputs other than "z" and one more, or `noise` is true and the
                model has no head.
        """
        if noise:
            self._head("to_module")
        return export.chain(self, noise)

    def save(self, folder: str | Path, training: Json | None = None) -> None:
        """Writes the model, optimizer state and counters included, into `folder` (checkpoint.py).

        Args:
            folder: created if it is missing.
            training: the trainer's own record, stored with the model.

        Raises:
            ImportError: safetensors is not installed.
            OSError: the disk refuses the write.
        """
        content = {
            "model": {
                "plan": json_records.plan_to_json(self.blocks.plan),
                "goal": json_records.goal_to_json(self.goal),
                "order": list(self.blocks.held),
                "sampler": SAMPLER,
                "normalisation": None
                if self.normalize is None
                else Normalisation.of(self.normalize).to_json(),
                "inputs": None if self.inputs is None else self.inputs.to_json(),
                "class_names": None if self.classes_ is None else list(self.classes_),
                "encoder": self.encoder is not None,
                "head": self.head is not None,
                "optimizers": {
                    name: json_records.optimizer_to_json(part.optimizer)
                    for name, part in self.learners.items()
                },
                "precision": {name: part.precision for name, part in self.learners.items()},
                "classes": self.blocks.M,
                "embed_dim": self.blocks.D,
            },
            "versions": self.versions(),
            "training": training,
        }
        checkpoint.save(Path(folder), content, self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that training changes, and the embeddings, by name. Each has its own memory,
        as a checkpoint demands: a tensor with two names (tied weights) is copied.

        Raises:
            ValueError: the encoder's state contains something that a checkpoint cannot hold.
        """
        values, seen = {}, set()
        for part, module in self.parts.items():
            for name, value in module.state_dict().items():
                values[f"{part}.{name}"] = value = _savable(f"{part}.{name}", value)
                memory = value.untyped_storage().data_ptr()
                if value.numel() and memory in seen:
                    values[f"{part}.{name}"] = value.detach().clone()
                seen.add(memory)
        return values

    def versions(self) -> dict[str, str | None]:
        """Versions and backend: what a training step's bits depend on beside the settings."""
        return checkpoint.versions(self.blocks)


def in_parts(x: Any, rows: int) -> Iterator[tuple[int, Any]]:
    """(first_row, rows of x) for each part of at most `rows` rows."""
    return ((start, x[start : start + rows]) for start in range(0, len(x), rows))


def _savable(name: str, value: Any) -> Tensor:
    """`value` of a state_dict, after checking that a checkpoint can hold it."""
    plain = isinstance(value, Tensor) and not is_lazy(value)
    if not plain or value.layout != torch.strided or value.is_quantized:
        raise ValueError(
            f"save: {name} must be a dense tensor, which a checkpoint can hold, got "
            f"{type(value).__name__}"
        )
    return value
