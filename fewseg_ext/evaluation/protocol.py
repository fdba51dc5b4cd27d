"""What a score depends on, besides model and data."""

import math
from dataclasses import dataclass
from typing import Literal

from fewseg_ext.data.episodes import EpisodeDataset, EveryImageOnce, ImageSource
from fewseg_ext.data.transforms import PairTransform

# The papers' input size, and the side of the square at which some of them score.
PAPER_SIZE = 417
MULTI_SCALE = (0.7, 1.0, 1.3)


@dataclass(frozen=True)
class EvaluationProtocol:
    """How scores are measured; ``str`` gives the line that goes with every number.

    Raises:
        ValueError: a field out of range; the message names it.
    """

    episodes: int | None = 1000  # per seed; None: every image is the query once, as on FSS-1000
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    ways: int = 1
    shots: int = 1
    input_size: int | None = PAPER_SIZE  # side to which images are squashed for the model; None keeps their size
    scales: tuple[float, ...] = (1.0,)  # of the query; the softmax maps of several are averaged
    square_size: int | None = PAPER_SIZE  # side of the second scoring resolution, beside the original; None: no second
    ignored: Literal["removed", "background"] = "removed"  # what pixels labelled 255 are in the scores

    def __post_init__(self) -> None:
        for name in ("episodes", "ways", "shots", "input_size", "square_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"EvaluationProtocol: {name} must be at least 1, got {value}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"EvaluationProtocol: seeds must be one or more different numbers, got {self.seeds}")
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ValueError(f"EvaluationProtocol: scales must be one or more positive numbers, got {self.scales}")
        if self.episodes is None and self.ways != 1:
            raise ValueError(f"EvaluationProtocol: every image once means 1-way episodes, got {self.ways} ways")
        if self.input_size is None and self.scales != (1.0,):
            raise ValueError("EvaluationProtocol: scales need an input_size")
        if self.ignored not in ("removed", "background"):
            raise ValueError(f'EvaluationProtocol: ignored must be "removed" or "background", got {self.ignored!r}')

    def draw(self, source: ImageSource, seed: int, transform: PairTransform | None = None) -> EpisodeDataset:
        """The episodes of one seed.

        Raises:
            ValueError: the source has too few classes or images.
        """
        if self.episodes is None:
            return EveryImageOnce(source, self.shots, seed, transform)
        return EpisodeDataset(source, self.episodes, self.ways, self.shots, seed, transform)

    @property
    def query_sizes(self) -> tuple[int | None, ...]:
        """The side of the query at every scale."""
        return tuple(None if self.input_size is None else max(round(self.input_size * s), 1) for s in self.scales)

    @property
    def resolutions(self) -> dict[str, str]:
        """Where predictions are compared with the truth: name -> words."""
        words = {"original": "original size"}
        if self.square_size is not None:
            words["square"] = f"{self.square_size} x {self.square_size}"
        return words

    def __str__(self) -> str:
        side = self.input_size
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        square = "" if self.square_size is None else f" and, beside it, at {self.resolutions['square']}"
        episodes = "every image the query once" if self.episodes is None else f"{self.episodes} episodes"
        return "; ".join(
            [
                f"{episodes} for each seed of {', '.join(map(str, self.seeds))}",
                f"{self.ways}-way {self.shots}-shot",
                "images at their own size" if side is None else f"images squashed to {side} x {side}",
                "single scale" if len(self.scales) == 1 else f"query at scales {scales}, softmax maps averaged",
                f"logits upsampled to the original size and scored there{square}",
                f"pixels labelled 255 {'removed' if self.ignored == 'removed' else 'counted as background'}",
                "IoU summed per class over a seed's episodes and divided once, mIoU = mean over classes",
            ]
        )
