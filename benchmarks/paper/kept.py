"""VPI on a frozen backbone: every photo goes through it once, before the training."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fewseg_ext.data.episodes import EpisodeDataset, ImageSource, episode_labels
from fewseg_ext.data.transforms import PairTransform
from fewseg_ext.training.data import EPISODES


class KeptPyramids(nn.Module):
    """In place of a frozen backbone: a "photo" is the number of one whose maps are kept, [..., 1, 1, 1]."""

    def __init__(self, maps: Sequence[Tensor]) -> None:
        super().__init__()
        # A list in a list, so that they are no part of the module: checkpoints are to hold what was trained.
        self.maps = [list(maps)]
        self.pyramid_channels = tuple(one.shape[1] for one in maps)
        self.out_channels = self.pyramid_channels[-1]

    def pyramid(self, numbers: Tensor) -> tuple[Tensor, ...]:
        chosen = numbers.flatten().long()
        return tuple(one[chosen] for one in self.maps[0])


class NumberedPhotos:
    """The photos of a source, squashed to a square, as they are and mirrored: their maps, and their masks.

    Photo ``index`` of class ``class_id`` has the number ``number(class_id, index)``, mirrored the next one.
    """

    @torch.no_grad()
    def __init__(self, source: ImageSource, backbone: nn.Module, size: int) -> None:
        self.source, self.size = source, size
        self.first = [0]
        maps: list[tuple[Tensor, ...]] = []
        masks: list[Tensor] = []
        transform = PairTransform(size)
        for class_id in range(len(source.class_names)):
            for index in range(source.num_images(class_id)):
                image, labels = transform(*source.read(class_id, index), random.Random(0))
                mask = episode_labels(labels, [class_id])
                both = torch.stack([image, image.flip(-1)])
                maps.append(backbone.pyramid(both))  # type: ignore[operator]
                masks += [mask, mask.flip(-1)]
            self.first.append(self.first[-1] + 2 * source.num_images(class_id))
        self.backbone = KeptPyramids([torch.cat(level) for level in zip(*maps, strict=True)])
        self.masks = torch.stack(masks)

    def number(self, class_id: int, index: int) -> int:
        return self.first[class_id] + 2 * index


class NumberedEpisodes(Dataset[dict[str, Tensor]]):
    """1-way 1-shot episodes of numbers, each photo mirrored with probability one half where ``flip`` says so."""

    def __init__(self, photos: NumberedPhotos, seed: int, episodes: int = EPISODES, flip: bool = True) -> None:
        self.photos, self.seed, self.flip = photos, seed, flip
        self.plans = EpisodeDataset(photos.source, episodes, seed=seed)

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        plan, rng = self.plans.plan(index), random.Random(f"{self.seed}/{index}/flips")
        (class_id,) = plan.class_ids
        support, query = (
            self.photos.number(class_id, image) + int(self.flip and rng.random() < 0.5)
            for image in (plan.supports[0][0], plan.query)
        )
        return {
            "support_images": torch.full((1, 1, 1, 1, 1), float(support)),
            "support_masks": self.photos.masks[support][None, None],
            "query_images": torch.full((1, 1, 1), float(query)),
            "query_masks": self.photos.masks[query],
            "class_ids": torch.tensor(plan.class_ids),
        }
