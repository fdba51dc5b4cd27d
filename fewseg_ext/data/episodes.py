"""Episodes: few-shot tasks drawn from a data set of images with class labels."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewseg_ext.data.transforms import SOURCE_IGNORE as SOURCE_IGNORE
from fewseg_ext.data.transforms import PairTransform

IGNORE_INDEX = 255


class ImageSource(Protocol):
    """Images grouped by class, as `FSS1000` offers them."""

    class_names: list[str]

    def num_images(self, class_id: int) -> int:
        """How many images show the class."""

    def image_id(self, class_id: int, index: int) -> str:
        """The photo's name: the same string wherever the same photo is meant, in whichever class."""

    def read(self, class_id: int, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 [3,h,w] and labels int16 [h,w]: 0 background, c + 1 for class c, -1 ignore."""


@dataclass(frozen=True)
class EpisodePlan:
    """Which images an episode is made of."""

    class_ids: tuple[int, ...]  # of ways 1..N
    supports: tuple[tuple[int, ...], ...]  # N times S indices of images within the way's class
    query: int  # index within the class of the query's way
    query_way: int  # 1..N


class Episode(TypedDict):
    """One task: N ways, S shots, one query."""

    support_images: Tensor  # float32 [N,S,3,h,w], normalised
    support_masks: Tensor  # uint8 [N,S,h,w]: 0 background, n for way n (1..N), 255 ignore
    query_images: Tensor  # float32 [3,h,w]
    query_masks: Tensor  # uint8 [h,w], labelled like the support
    class_ids: Tensor  # int64 [N], the classes of ways 1..N
    query_way: Tensor  # int64 scalar, 1..N: the way whose image the query is


class EpisodeDataset(Dataset[Episode]):
    """Seeded N-way K-shot episodes.

    Episode i is a function of the seed and i alone: the same for every number of workers and every order. Supports do
    not repeat and never contain the query.

    Args:
        source: where images come from.
        episodes: how many there are.
        ways: N, classes per episode.
        shots: K, support images per class.
        seed: chooses the episodes.
        transform: applied to every image and its labels; None means normalisation only.
        query_transform: applied to the query in place of ``transform``; None means the same.

    Raises:
        ValueError: fewer than N classes, a class (named) with fewer than K + 1 images, or a count below 1.
    """

    def __init__(
        self,
        source: ImageSource,
        episodes: int = 1000,
        ways: int = 1,
        shots: int = 1,
        seed: int = 0,
        transform: PairTransform | None = None,
        query_transform: PairTransform | None = None,
    ) -> None:
        for name, value in (("episodes", episodes), ("ways", ways), ("shots", shots)):
            if value < 1:
                raise ValueError(f"EpisodeDataset: {name} must be at least 1, got {value}")
        if ways >= IGNORE_INDEX:
            raise ValueError(f"EpisodeDataset: ways must be below {IGNORE_INDEX}, the ignore label, got {ways}")
        if len(source.class_names) < ways:
            raise ValueError(
                f"EpisodeDataset: {ways}-way episodes need {ways} classes, the data has {len(source.class_names)}"
            )
        for class_id, name in enumerate(source.class_names):
            if source.num_images(class_id) < shots + 1:
                raise ValueError(
                    f"EpisodeDataset: {shots}-shot episodes need {shots + 1} images per class (the query is one more), "
                    f"class {name!r} has {source.num_images(class_id)}"
                )
        self.source = source
        self.episodes = episodes
        self.ways = ways
        self.shots = shots
        self.seed = seed
        self.transform = transform or PairTransform()
        self.query_transform = query_transform or self.transform

    def __len__(self) -> int:
        return self.episodes

    def plan(self, index: int) -> EpisodePlan:
        """Which images episode ``index`` is made of: a function of the seed and the index alone."""
        return self._plan(index, self._rng(index))

    def __getitem__(self, index: int) -> Episode:
        rng = self._rng(index)
        plan = self._plan(index, rng)
        images: list[Tensor] = []
        masks: list[Tensor] = []
        for class_id, supports in zip(plan.class_ids, plan.supports, strict=True):
            for image_index in supports:
                image, mask = self._load(class_id, image_index, plan.class_ids, rng, self.transform)
                images.append(image)
                masks.append(mask)
        query_image, query_mask = self._load(
            plan.class_ids[plan.query_way - 1], plan.query, plan.class_ids, rng, self.query_transform
        )
        if any(image.shape != query_image.shape for image in images):
            raise ValueError("EpisodeDataset: the images differ in size; give a PairTransform with a size")
        shape = (self.ways, self.shots)
        return Episode(
            support_images=torch.stack(images).unflatten(0, shape),
            support_masks=torch.stack(masks).unflatten(0, shape),
            query_images=query_image,
            query_masks=query_mask,
            class_ids=torch.tensor(plan.class_ids),
            query_way=torch.tensor(plan.query_way),
        )

    def _rng(self, index: int) -> random.Random:
        if not 0 <= index < self.episodes:
            raise IndexError(f"episode {index} of {self.episodes}")
        # A string seed is hashed in full, so neighbouring seeds and indices give unrelated streams.
        return random.Random(f"{self.seed}/{index}")

    def _plan(self, index: int, rng: random.Random) -> EpisodePlan:
        class_ids = rng.sample(range(len(self.source.class_names)), self.ways)
        query_way = rng.randint(1, self.ways)
        # One image more than the shots in every class, though only one is the query.
        picked = [rng.sample(range(self.source.num_images(class_id)), self.shots + 1) for class_id in class_ids]
        return EpisodePlan(
            class_ids=tuple(class_ids),
            supports=tuple(tuple(indices[: self.shots]) for indices in picked),
            query=picked[query_way - 1][-1],
            query_way=query_way,
        )

    def _load(
        self, class_id: int, index: int, class_ids: Sequence[int], rng: random.Random, transform: PairTransform
    ) -> tuple[Tensor, Tensor]:
        """An image and its episode label map."""
        image, labels = transform(*self.source.read(class_id, index), rng)
        return image, episode_labels(labels, class_ids)


class EveryImageOnce(EpisodeDataset):
    """1-way episodes in which every image of the source is the query once, class by class: how FSS-1000 is scored.

    Args:
        source: where images come from.
        shots: K, support images, drawn from the other images of the class.
        seed: chooses the supports.
        transform: see `EpisodeDataset`.

    Raises:
        ValueError: see `EpisodeDataset`.
    """

    def __init__(
        self, source: ImageSource, shots: int = 1, seed: int = 0, transform: PairTransform | None = None
    ) -> None:
        self.queries = [(c, i) for c in range(len(source.class_names)) for i in range(source.num_images(c))]
        super().__init__(source, len(self.queries), 1, shots, seed, transform)

    def _plan(self, index: int, rng: random.Random) -> EpisodePlan:
        class_id, query = self.queries[index]
        others = [i for i in range(self.source.num_images(class_id)) if i != query]
        return EpisodePlan((class_id,), (tuple(rng.sample(others, self.shots)),), query, query_way=1)


def episode_labels(labels: Tensor, class_ids: Sequence[int]) -> Tensor:
    """A source's labels as an episode's: uint8, 0 background, n for class ``class_ids[n - 1]``, 255 ignore."""
    mask = torch.zeros(labels.shape, dtype=torch.uint8)
    for way, way_class in enumerate(class_ids, start=1):
        mask[labels == way_class + 1] = way
    mask[labels == SOURCE_IGNORE] = IGNORE_INDEX
    return mask
