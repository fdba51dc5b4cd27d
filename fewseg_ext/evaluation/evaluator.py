"""Scoring a model on the episodes of a data set, with every image encoded once."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fewseg_ext import ops
from fewseg_ext.data.episodes import IGNORE_INDEX, EpisodeDataset, EpisodePlan, ImageSource, episode_labels
from fewseg_ext.data.transforms import PairTransform, squash_labels
from fewseg_ext.evaluation.cache import TensorCache, Tensors
from fewseg_ext.evaluation.metrics import SegmentationScore
from fewseg_ext.evaluation.protocol import EvaluationProtocol
from fewseg_ext.models.episode_model import EpisodeModel
from fewseg_ext.models.prototypes import upsample

DEFAULT_CACHE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Scores:
    """One seed at one resolution, in per cent."""

    miou: float
    fb_iou: float
    positive_iou: float  # averaged over images; the other reading, accumulated per class, is the mIoU of 1-way episodes
    class_iou: dict[str, float]  # by class name; NaN for a class that no episode drew


class Evaluator:
    """Scores one model on one source of images.

    Every image goes through the backbone alone and, as long as the cache has room, once: there are far fewer images
    than episodes. The samples of a model that draws some are a function of seed and episode alone. So scores do not
    depend on the cache, nor on the workers, bit for bit.

    Args:
        model: an `EpisodeModel` (BiOpt, PrototypeBaseline, VPI), whose feature maps are kept; or any module that is
            called as
            ``model(support_images, support_masks, query_images)`` with [1,N,S,3,h,w], [1,N,S,h,w], [1,3,h',w'] and
            returns an object with ``logits`` [1,N+1,H,W], whose images are kept. In eval mode during `run`.
        source: the images.
        protocol: how to score.
        device: where the model is.
        num_workers: processes that read images; 0 reads in this one.
        cache_bytes: bound of the memory for features (on ``device``) and labels.
    """

    def __init__(
        self,
        model: nn.Module,
        source: ImageSource,
        protocol: EvaluationProtocol,
        *,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"Evaluator: num_workers must be 0 or more, got {num_workers}")
        self.model = model
        self.source = source
        self.protocol = protocol
        self.device = torch.device(device)
        self.num_workers = num_workers
        self.cache = TensorCache(cache_bytes)
        self.images_encoded = 0
        self._reader = _ImageReader(source)

    @torch.inference_mode()
    def run(
        self, seed: int, progress: Callable[[int, int], None] | None = None, part: tuple[int, int] = (0, 1)
    ) -> dict[str, Scores]:
        """The scores of one seed's episodes, by resolution ("original", "square").

        Args:
            seed: chooses the episodes.
            progress: called as ``progress(episodes_done, episodes_in_total)`` after every episode.
            part: (i, n) runs every n-th episode from the i-th on; n processes of `torch.distributed`, each with its i,
                all get the scores of all episodes.

        Raises:
            ValueError: the source has too few classes or images for the protocol.
        """
        protocol = self.protocol
        episodes = protocol.draw(self.source, seed)
        mine = range(part[0], len(episodes), part[1])
        scores = {
            name: SegmentationScore(len(self.source.class_names)).to(self.device) for name in protocol.resolutions
        }
        loader = DataLoader(
            self._reader,
            sampler=self._missing(episodes, mine),
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            # A loader draws a number when it starts, which must not come from the stream of a training.
            generator=torch.Generator(),
        )
        was_training = self.model.training
        self.model.eval()
        try:
            for done, (index, images) in enumerate(zip(mine, loader, strict=True), start=1):
                plan, samples = episodes.plan(index), sample_generator(seed, index, self.device)
                for name, prediction, target in self._compare(plan, {image.key: image for image in images}, samples):
                    scores[name].update(prediction[None], target[None], torch.tensor([plan.class_ids]))
                if progress is not None:
                    progress(done, len(mine))
        finally:
            self.model.train(was_training)
        return {name: _in_per_cent(score, self.source.class_names) for name, score in scores.items()}

    def _missing(self, episodes: EpisodeDataset, indices: Sequence[int]) -> Iterator[list["_Request"]]:
        """For every episode what of its images is not in the cache. The loader asks some episodes ahead."""
        for index in indices:
            requests = []
            for key, sizes in _images_of(episodes.plan(index), self.protocol):
                name = self.source.image_id(*key)
                unknown = tuple(size for size in sizes if ("maps", name, size) not in self.cache)
                if unknown or ("labels", *key) not in self.cache:
                    requests.append(_Request(key, unknown))
            yield requests

    def _compare(
        self, plan: EpisodePlan, images: dict["_Key", "_Image"], samples: torch.Generator
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Resolution, prediction and truth, both [h,w], of an episode's query."""
        protocol = self.protocol
        *supports, (query, sizes) = _images_of(plan, protocol)
        # Supports of different sizes cannot be stacked; torch says so in words of its own.
        support_features = torch.cat([self._maps(key, side, images)[-1] for key, (side,) in supports])
        support_masks = [
            _resize_labels(episode_labels(self._labels(key, images), plan.class_ids), side) for key, (side,) in supports
        ]
        queries = [self._maps(query, side, images) for side in sizes]
        logits = self._segment(support_features, torch.stack(support_masks), queries, plan, samples)

        truth = episode_labels(self._labels(query, images), plan.class_ids)
        if protocol.ignored == "background":
            truth[truth == IGNORE_INDEX] = 0
        for name in protocol.resolutions:
            target = truth if name == "original" else _resize_labels(truth, protocol.square_size)
            yield name, label_map(logits, (target.shape[0], target.shape[1]))[0], target

    def _segment(
        self, supports: Tensor, masks: Tensor, queries: Sequence[Tensors], plan: EpisodePlan, samples: torch.Generator
    ) -> list[Tensor]:
        """Logits [1,L,N+1,H,W] of every scale, at the resolution that the model gives."""
        ways, shots = len(plan.supports), len(plan.supports[0])
        supports = supports.unflatten(0, (1, ways, shots))
        masks = masks.unflatten(0, (1, ways, shots)).to(self.device)
        if not isinstance(self.model, EpisodeModel):
            return [self.model(supports, masks, image).logits[:, None] for (image,) in queries]
        state = self.model.pool_support(supports, masks)
        # The logits are brought to the scoring resolutions later, so the images' own size is of no use.
        states = [self.model.query_state(maps, (maps[-1].shape[-2], maps[-1].shape[-1])) for maps in queries]
        return [self.model.sample_logits(state, query, generator=samples) for query in states]

    def _maps(self, key: "_Key", size: int | None, images: dict["_Key", "_Image"]) -> Tensors:
        """The feature maps of an image at that size; of any other module the image itself, [1,3,h,w]."""
        name = ("maps", self.source.image_id(*key), size)
        kept = self.cache.get(name)
        if kept is None:
            image = images[key].pixels[size][None].to(self.device)
            kept = self.model.encode(image) if isinstance(self.model, EpisodeModel) else (image,)
            self.images_encoded += 1
            self.cache.put(name, kept)
        return kept

    def _labels(self, key: "_Key", images: dict["_Key", "_Image"]) -> Tensor:
        """The source's labels [h,w] at their own size. They may depend on the class that the image is drawn for."""
        kept = self.cache.get(("labels", *key))
        if kept is None:
            kept = (images[key].labels,)
            self.cache.put(("labels", *key), kept)
        return kept[0]


def sample_generator(seed: int, episode: int, device: torch.device | str) -> torch.Generator:
    """What the samples of an episode are drawn with, one scale of the query after the other."""
    # A string seed is hashed in full, as in `EpisodeDataset`; a generator of the CPU looks at 32 bits only.
    number = random.Random(f"{seed}/{episode}/samples").getrandbits(32)
    return torch.Generator(device).manual_seed(number)


def label_map(logits: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Labels int64 [B,h,w] from each scale's logits [B,L,K,H,W], upsampled.

    The softmax maps of several samples L or several scales are averaged.
    """
    if len(logits) == 1 and logits[0].shape[1] == 1:
        maps = upsample(logits[0][:, 0], size)
    else:
        maps = torch.stack([ops.mc_average(scale, size) for scale in logits]).mean(0)
    best, labels = maps[:, 0], torch.zeros_like(maps[:, 0], dtype=torch.int64)
    # argmax over the planes of a few classes, which PyTorch does hundreds of times slower on the CPU.
    for way in range(1, maps.shape[1]):
        better = maps[:, way] > best
        labels.masked_fill_(better, way)
        best = torch.maximum(best, maps[:, way])
    return labels


# An image as a source knows it: class and index within the class.
_Key = tuple[int, int]


class _Request(NamedTuple):
    key: _Key
    sizes: tuple[int | None, ...]  # at which its pixels are wanted; its labels always are


class _Image(NamedTuple):
    key: _Key
    pixels: dict[int | None, Tensor]  # by size: float32 [3,h,w], normalised
    labels: Tensor  # int16 [h,w], at their own size


class _ImageReader(Dataset[list[_Image]]):
    """Reads the images of an episode; runs in the loader's workers."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __getitem__(self, requests: list[_Request]) -> list[_Image]:
        loaded = []
        for key, sizes in requests:
            image, labels = self.source.read(*key)
            # A transform without random choices: the generator is there because it asks for one.
            pixels = {size: PairTransform(size)(image, labels, random.Random(0))[0] for size in sizes}
            loaded.append(_Image(key, pixels, labels))
        return loaded


def _images_of(plan: EpisodePlan, protocol: EvaluationProtocol) -> list[tuple[_Key, tuple[int | None, ...]]]:
    """An episode's images and the sizes at which they are encoded; the query comes last."""
    supports = [
        ((class_id, index), (protocol.input_size,))
        for class_id, indices in zip(plan.class_ids, plan.supports, strict=True)
        for index in indices
    ]
    return [*supports, ((plan.class_ids[plan.query_way - 1], plan.query), protocol.query_sizes)]


def _resize_labels(labels: Tensor, size: int | None) -> Tensor:
    """uint8 [h,w] squashed to a square; None keeps the size."""
    return labels if size is None else squash_labels(labels, size)


def _in_per_cent(score: SegmentationScore, class_names: Sequence[str]) -> Scores:
    values = score.compute()
    # torchmetrics makes a scalar of a single class's tensor.
    class_iou = (100 * values["class_iou"]).reshape(-1).tolist()
    return Scores(
        miou=100 * float(values["miou"]),
        fb_iou=100 * float(values["fb_iou"]),
        positive_iou=100 * float(values["positive_iou"]),
        class_iou=dict(zip(class_names, class_iou, strict=True)),
    )


def _as_it_is(images: Any) -> Any:
    return images
