"""What a model answers for some rows."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """The answer of the chain without noise for B rows; each row's depends on that row alone.

    Attributes:
        scores: (B, M) float32, `signal <u_y, z> - signal^2 |u_y|^2 / 2` of the last z, which grows
            with its likelihood under q(z | y). No prior is added: the blocks carry it.
        probs: (B, M) float32. Of DT the mean of the softmaxes of the blocks T // 2 + 1..T: each
            block treats the beliefs of earlier blocks as evidence, so the last one alone is
            overconfident where classes overlap; a softmax of the scores would be even more so. Of
            CT the softmax of the last evaluation. Of FM, whose block has no softmax, that of the
            scores, as if z_1 had the noise of N(0, I) around its embedding: with one-hot embeddings
            a row in the middle of its class then has e / (e + M - 1), and not 1. Where two classes
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
