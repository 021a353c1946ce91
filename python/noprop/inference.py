"""What a model answers: by its chain without noise, and by the paper's protocol."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import noprop_kernels as nk
from noprop_kernels.check import check_integer, check_positive
from noprop_kernels.goal import Goal

from . import sampling
from .answer import Answer
from .errors import InputError
from .inputs import InputFormat
from .modules.blocks import ModuleBlocks
from .normalisation import Normalisation
from .sampling import Sampler
from .units import Units
from .variants import Variant, variant_of

Normalize = tuple[Tensor, Tensor]
ROWS_AT_ONCE = 1024


class Inference:
    """The answers of blocks, a head and an encoder; attributes are the arguments of `Model`."""

    blocks: nk.DenoisingBlocks | ModuleBlocks
    head: nk.OutputHead | None
    encoder: nn.Module | None
    normalize: Normalize | None
    inputs: InputFormat | None
    classes_: tuple[str, ...] | None
    sampler: Sampler
    paper_sampler: Sampler
    seeds: list[int]
    held: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        return self.blocks.device

    @property
    def replicas(self) -> int:
        """R, the number of models of different seeds in this one."""
        return self.blocks.replicas

    @property
    def units(self) -> Units:
        """The blocks and the head that it has."""
        return Units(self.held, self.head is not None)

    @property
    def missing(self) -> Units:
        """The blocks that it has not."""
        return Units(tuple(range(1, self.blocks.T + 1))) - self.units

    @property
    def variant(self) -> Variant:
        """What the trainer does for the goal's variant."""
        return variant_of("Model", self.blocks.goal)

    @property
    def goal(self) -> Goal:
        """The variant, whose schedule has its present values where it is learned."""
        shared = self.shared
        # where a schedule is learned there is one replica
        return self.blocks.goal if shared is None else shared.present_goal(replica=0)

    @property
    def shared(self) -> nk.Shared | None:
        """What blocks and head share, and may learn."""
        return self.blocks.shared

    @property
    def W_embed(self) -> Tensor | None:
        """(M, D), the present embeddings; None: one-hot."""
        shared = self.shared
        return self.blocks.W_embed if shared is None else shared.table(self.device)

    def check_whole(self, op: str) -> None:
        """
        Raises:
            InputError: blocks are missing.
        """
        if self.missing:
            raise InputError(
                f"{op}: the model must have all of its {self.blocks.T} blocks, missing: "
                f"{self.missing}; noprop merge makes one run of those that have them"
            )

    def check_single(self, op: str) -> None:
        """
        Raises:
            ValueError: there are several replicas.
        """
        if self.replicas > 1:
            raise ValueError(
                f"{op}: model must have one replica, got {self.replicas}: model.replica(r) is one"
            )

    def __call__(self, x: Any, *, replica: int | None = None) -> Tensor:
        """Probabilities (B, M) of x; arguments and errors as `predict`."""
        return self.predict(x, replica=replica).probs

    def predict(self, x: Any, *, steps: int | None = None, replica: int | None = None) -> Answer:
        """Predicts classes of x by the chain without noise, from z_0 = 0; it needs no labels, and
        nothing is random.

        The chain with noise is `predict_paper`, or `blocks.predict(noise=True)` for its z_t.

        Args:
            x: (B, F) or of the shape that training took: a tensor, an array, a table of pandas or
                lists, of any B. The batch and the position of a row change no result. Values count,
                not types: for a model that was trained on uint8 every number is a byte 0..255.
            steps: of the sampler; None: those of `sampler`, which a DT's always are.
            replica: which of several replicas answers; needed where there are several.

        Raises:
            ValueError: x, steps or replica do not fit, or blocks are missing.
        """
        self.check_whole("predict")
        replica = self._which("predict", replica)
        blocks, rows = self.blocks, self.format_of(x).array(x)
        probs = torch.empty(len(rows), blocks.M, dtype=torch.float32, device=blocks.device)
        scores = torch.empty_like(probs)
        for part, own, logits in self.beliefs(rows, steps=steps, replica=replica):
            scores[part], probs[part] = own, logits.softmax(-1).mean(0)
        return Answer(scores, probs, self.classes_ or tuple(map(str, range(blocks.M))))

    def beliefs(
        self, rows: Any, *, steps: int | None = None, replica: int | None = None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """What `predict` answers from, for parts of the rows: the part, `Answer.scores` (B, M), and
        the logits (E, B, M) whose softmaxes are averaged: of DT the later blocks', of CT the last
        evaluation's, of FM the scores.
        """
        blocks = self.blocks
        kind, steps = self.sampler_of(steps)
        for first, part in in_parts(rows, ROWS_AT_ONCE):
            chain = blocks.predict(
                self.features(part, first),
                noise=False,
                sampler=kind,
                steps=steps,
                keep=1 if self.variant.sampled else "all",
                replica=replica,
            )
            scores = self.scores(chain.z[-1, 0, 0])
            softmax = self.variant.softmax
            logits = chain.logits[blocks.T // 2 :, 0, 0] if softmax else scores[None]
            yield slice(first, first + len(part)), scores, logits

    def sampler_of(self, steps: int | None) -> Sampler:
        """The answer's sampler, with other steps where they are given.

        Raises:
            ValueError: they do not fit.
        """
        if steps is None:
            return self.sampler
        return sampling.answer_sampler("predict", self.goal, self.sampler.kind, steps)

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

    def predict_paper(
        self, x: Any, samples: int = 5, seed: int | None = None, *, replica: int | None = None
    ) -> Tensor:
        """The head's logits of the last z by the paper's protocol, from z_0 ~ N(0, I), S times.

        Of DT and CT there is noise in every step. Of FM, which reads no class by a head, they are
        the scores, whose argmax is the nearest embedding.

        Args:
            x: B rows, as in `predict`. The noise of a row depends on its position.
            samples: S, the number of draws of the chain.
            seed: of the draws; None is the model's own.
            replica: as in `predict`.

        Returns:
            (S, B, M) float32.

        Raises:
            ValueError: the model has no head, an argument does not fit, or blocks are missing.
        """
        self.check_whole("predict_paper")
        self._check_reads("predict_paper")
        replica = self._which("predict_paper", replica)
        seed = self.seeds[replica] if seed is None else seed
        check_positive("predict_paper", "samples", samples)
        rows = self.format_of(x).array(x)
        logits = torch.empty(
            samples, len(rows), self.blocks.M, dtype=torch.float32, device=self.blocks.device
        )
        for first, part in in_parts(rows, ROWS_AT_ONCE):
            chain = self.blocks.predict(
                self.features(part, first),
                sampler=self.paper_sampler.kind,
                steps=self.paper_sampler.steps,
                samples=samples,
                seed=seed,
                first_row=first,
                replica=replica,
            )
            logits[:, first : first + len(part)] = self.read(chain.z[:, 0], replica=replica)
        return logits

    def scores(self, z: Tensor, t: float | None = None) -> Tensor:
        """`Answer.scores` (..., M) of the last z (..., D), or of z_t of a CT or FM."""
        if t is None or not self.variant.sampled:
            levels = self.variant.last_signal(self.goal)
        else:
            levels = sampling.signal_at(self.goal, t)
        return sampling.scores(self.W_embed, z, *levels, backend=self.blocks.backend)

    @property
    def reads(self) -> bool:
        """Whether the paper's protocol can read a class: by a head, or of an FM in any case."""
        return self.head is not None or not self.variant.softmax

    def read(self, z: Tensor, *, replica: int | None = None) -> Tensor:
        """The head's logits (..., M) of embeddings z (..., D), of a radial head log-probabilities;
        of an FM the scores.

        Raises:
            ValueError: the model has no head, or several and `replica` does not say which.
        """
        self._check_reads("read")
        replica = self._which("read", replica)
        if self.head is None or not self.variant.softmax:
            return self.scores(z)
        rows = z.reshape(-1, z.shape[-1])
        with torch.no_grad():
            radial = self.head.kind == "radial"
            logits = (self.head.log_probs(rows) if radial else self.head.forward(rows))[replica]
        return logits.view(*z.shape[:-1], -1)

    def _which(self, op: str, replica: int | None) -> int:
        """The replica of a call; where there is one, nobody need name it."""
        if replica is not None or self.replicas == 1:
            replica = 0 if replica is None else replica
            return check_integer(op, "replica", replica, 0, self.replicas - 1)
        raise ValueError(
            f"{op}: replica must say which of {self.replicas} answers, 0..{self.replicas - 1} of "
            f"the seeds {', '.join(map(str, self.seeds))}, got None"
        )

    def _check_reads(self, op: str) -> None:
        if not self.reads:
            raise ValueError(
                f"{op}: the model must have a head, which the paper's protocol reads z_T with, got "
                "none; `predict` needs none"
            )


def in_parts(x: Any, rows: int) -> Iterator[tuple[int, Any]]:
    """(first_row, rows of x) for each part of at most `rows` rows."""
    return ((start, x[start : start + rows]) for start in range(0, len(x), rows))
