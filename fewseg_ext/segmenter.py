"""Segment one's own photos: label one or a few, and the rest is segmented."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewseg_ext import ops
from fewseg_ext.data.photos import MASK_IGNORE
from fewseg_ext.data.transforms import normalize, squash_labels
from fewseg_ext.models.biopt import BiOpt, PrototypeModel, QueryState, SupportState
from fewseg_ext.models.vpi import VPI, GaussianState, PyramidState
from fewseg_ext.segment.inputs import Labelled, Mask, Photo, open_photo, photo_key, photo_name, read_support
from fewseg_ext.segment.result import SegmentationResult
from fewseg_ext.training.checkpoint import load_model

# The side of the square to which photos are squashed for the model, the BiOpt paper's.
SIZE = 417
# Beyond, a single photo takes tens of gigabytes.
LARGEST_SIZE = 8192


@dataclass(frozen=True)
class Fitted:
    """What ``fit`` learns of the labelled photos, independent of their number."""

    state: SupportState | GaussianState
    class_names: list[str]
    values: list[int]  # what masks call each class


class Segmenter:
    """A few-shot model with its support: ``fit`` on labelled photos, ``predict`` on others.

    Photos are squashed to ``size`` x ``size`` for the model, as in training and evaluation, and the results brought
    back to the photo's own size. A segmenter is not for use by several threads at a time.

    Attributes:
        kept_photos: of so many photos, the last that ``predict`` saw, the features are kept, for another number of
            steps or another support.

    Args:
        model: BiOpt, VPI or PrototypeBaseline.
        device: where it runs.
        size: side in pixels of what the model sees; smaller is faster, and small objects need a large one. A model
            works best at the size that it was trained at.

    Raises:
        ValueError: a size below 1 or above 8192, or a GPU that is not there.
        TypeError: another kind of model.

    Example:
        >>> import numpy as np, fewseg_ext
        >>> segmenter = fewseg_ext.Segmenter(fewseg_ext.BiOpt("conv4"), size=64)
        >>> photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        >>> mask = np.zeros((48, 64), bool)
        >>> mask[10:30, 20:50] = True
        >>> segmenter.fit([photo], [mask]).predict(photo).mask.shape
        (48, 64)
    """

    def __init__(self, model: PrototypeModel | VPI, device: torch.device | str = "cpu", size: int = SIZE) -> None:
        if not isinstance(model, PrototypeModel | VPI):
            raise TypeError(f"model: expected BiOpt, VPI or PrototypeBaseline, got {type(model).__name__}")
        if not 1 <= size <= LARGEST_SIZE:
            raise ValueError(f"size: expected 1 to {LARGEST_SIZE} pixels, got {size}")
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device: {device} asked for, but torch sees no GPU")
        # Channels-last: MobileNetV2 at 417 pixels takes 0.4 s instead of 1.5 on two cores.
        self.model = model.eval().requires_grad_(False).to(self.device).to(memory_format=torch.channels_last)
        self.size = size
        self.kept_photos = 4
        self._fitted: Fitted | None = None
        self._kept: OrderedDict[Any, tuple[Tensor, QueryState | PyramidState]] = OrderedDict()

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike[str], device: torch.device | str = "cpu", size: int = SIZE
    ) -> "Segmenter":
        """A trained model.

        Raises:
            FileNotFoundError, ValueError: no such file; not a checkpoint of this package.
        """
        return cls(load_model(path)[0], device, size)

    @classmethod
    def from_pretrained_backbone(
        cls,
        backbone: str = "resnet50",
        weights: str | os.PathLike[str] | None = "IMAGENET1K_V1",
        device: torch.device | str = "cpu",
        size: int = SIZE,
    ) -> "Segmenter":
        """BiOpt on the frozen features of a network that was trained for something else; nothing is trained.

        The init module mixes the prototypes of support and query half and half (omega = 0.5, as untrained), then the
        inner loop runs.

        Args:
            backbone: a name for :func:`fewseg_ext.models.build_backbone`: torchvision's, or any of timm's.
            weights: a name of torchvision's weights ("pretrained" for timm), the path of a file, or None for random
                features, which are of use in tests only.
            device: where it runs.
            size: see the class.

        Raises:
            ValueError, FileNotFoundError, ImportError, OSError: see ``build_backbone``.
        """
        return cls(BiOpt(backbone, None if weights is None else os.fspath(weights)), device, size)

    # --- support -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        images: Sequence[Photo] | Photo,
        masks: Sequence[Mask] | Mask,
        labels: Sequence[str] | str | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "Segmenter":
        """Take labelled photos as the support. A second call replaces the first.

        Args:
            images: one photo or several: paths, Pillow images, arrays [h,w,3] or tensors [3,h,w] (uint8, or floating
                in [0, 1]).
            masks: one per photo, of the same size: paths, Pillow images, arrays or tensors [h,w]. Masks of nothing but
                0 and 1, or 0 and 255, or bool, show one object. Otherwise they are label maps: 0 background, 255
                ignored, every other number a class, which the results' masks call by the same number.
            labels: class of every mask, or one name for all: the masks then show one object each, grey values from 128
                (or the only number that is neither 0 nor 255). The same photo may come several times with different
                classes, but counts as background of the others then; a label map says more.
            class_names: names of 1..N in label maps.

        Returns:
            The segmenter itself.

        Raises:
            FileNotFoundError, ValueError, TypeError: a file that is missing or no image; a mask of another size than
                its photo, without foreground, or of which nothing is left at ``size``; names that do not fit. Nothing
                changes then.

        Example:
            >>> import numpy as np, fewseg_ext
            >>> segmenter = fewseg_ext.Segmenter(fewseg_ext.BiOpt("conv4"), size=64)
            >>> cat, dog = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
            >>> mask = np.zeros((48, 64), bool)
            >>> mask[10:30, 20:50] = True
            >>> segmenter.fit([cat, dog], [mask, mask], labels=["cat", "dog"]).class_names
            ['cat', 'dog']
        """
        images, masks = _as_list(images), _as_list(masks)
        support = read_support(images, masks, labels, class_names)
        small = [self._squash_mask(mask, index) for index, mask in enumerate(support.masks)]
        with torch.no_grad():
            # One by one, so that memory does not grow with their number.
            features = [self.model.encode(self._normalized(image))[-1][0] for image in support.images]
            state = self._pool(features, small, support)
        self._fitted = Fitted(state, support.class_names, support.values)
        return self

    @property
    def fitted(self) -> Fitted:
        """The support; raises RuntimeError before ``fit``."""
        if self._fitted is None:
            raise RuntimeError("segmenter: not fitted yet; call fit(images, masks) with one or more labelled photos")
        return self._fitted

    @property
    def class_names(self) -> list[str]:
        """Of the classes, without background."""
        return list(self.fitted.class_names)

    # --- prediction --------------------------------------------------------------------------------------------------

    def predict(self, photo: Photo, steps: int | None = None) -> SegmentationResult:
        """Segment a photo.

        The features of the last few photos are kept (``kept_photos``): another number of steps for one of them takes
        only the inner loop and the upsampling.

        Args:
            photo: as in ``fit``.
            steps: inner steps instead of the model's own.

        Raises:
            RuntimeError: before ``fit``.
            ValueError: steps that are negative, or asked of a model without an inner loop.
            FileNotFoundError, ValueError, TypeError: a photo that cannot be read.

        Example:
            >>> import numpy as np, fewseg_ext
            >>> segmenter = fewseg_ext.Segmenter(fewseg_ext.BiOpt("conv4"), size=64)
            >>> photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
            >>> mask = np.zeros((48, 64), bool)
            >>> mask[10:30, 20:50] = True
            >>> results = [segmenter.fit(photo, mask).predict(photo, steps=steps) for steps in (0, 10)]
            >>> results[0].probabilities.shape, results[0].uncertainty.shape, results[0].overlay().size
            ((2, 48, 64), (48, 64), (64, 48))
        """
        self._check_steps(steps)
        key = photo_key(photo)
        if key not in self._kept:
            pixels = open_photo(photo)
            with torch.no_grad():
                self._kept[key] = pixels, self.model.encode_query(self._normalized(pixels))
            while len(self._kept) > self.kept_photos:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        pixels, query = self._kept[key]
        with torch.no_grad():
            logits = self._logits(query, steps)
            return self._result(pixels, logits, photo_name(photo))

    def predict_many(
        self,
        photos: Iterable[Photo],
        steps: int | None = None,
        batch_size: int = 4,
        on_error: Callable[[Photo, Exception], None] | None = None,
    ) -> Iterator[SegmentationResult]:
        """Segment any number of photos, one result after the other, in their order.

        Args:
            photos: as in ``fit``; read while they are needed.
            steps: inner steps instead of the model's own.
            batch_size: photos that go through the backbone together.
            on_error: is told of a photo that cannot be read, which then has no result; without it the error is raised.

        Raises:
            RuntimeError, ValueError, FileNotFoundError, TypeError: see ``predict``; the first two at once.

        Example:
            >>> import numpy as np, fewseg_ext
            >>> segmenter = fewseg_ext.Segmenter(fewseg_ext.BiOpt("conv4"), size=64)
            >>> labelled, *others = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), np.uint8)
            >>> segmenter = segmenter.fit(labelled, labelled[..., 0] > 100)
            >>> [result.mask.shape for result in segmenter.predict_many(others)]
            [(48, 64), (48, 64), (48, 64)]
        """
        self._check_steps(steps)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        return self._predict_many(photos, steps, batch_size, on_error)

    def _predict_many(
        self,
        photos: Iterable[Photo],
        steps: int | None,
        batch_size: int,
        on_error: Callable[[Photo, Exception], None] | None,
    ) -> Iterator[SegmentationResult]:
        batch: list[tuple[Tensor, str | None]] = []
        for photo in photos:
            try:
                batch.append((open_photo(photo), photo_name(photo)))
            except (OSError, ValueError, TypeError) as error:
                if on_error is None:
                    raise
                on_error(photo, error)
            if len(batch) == batch_size:
                yield from self._predict_batch(batch, steps)
                batch = []
        if batch:
            yield from self._predict_batch(batch, steps)

    def _predict_batch(self, batch: list[tuple[Tensor, str | None]], steps: int | None) -> Iterator[SegmentationResult]:
        with torch.no_grad():
            query = self.model.encode_query(torch.cat([self._normalized(pixels) for pixels, _ in batch]))
        for index, (pixels, path) in enumerate(batch):
            # One by one: each has its own size, and VPI's samples must not depend on the neighbours.
            with torch.no_grad():
                result = self._result(pixels, self._logits(_one_of(query, index), steps), path)
            yield result

    def _check_steps(self, steps: int | None) -> None:
        _ = self.fitted
        if steps is None:
            return
        if not isinstance(self.model, BiOpt):
            raise ValueError(f"steps: {type(self.model).__name__} has no inner loop")
        if steps < 0:
            raise ValueError(f"steps: expected 0 or more, got {steps}")

    # --- stages ------------------------------------------------------------------------------------------------------

    def _normalized(self, pixels: Tensor) -> Tensor:
        """uint8 [3,h,w] -> what the model sees, float32 [1,3,size,size]."""
        image = pixels[None].to(self.device)
        if image.shape[-2:] != (self.size, self.size):
            image = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)
        return normalize(image.float() / 255).contiguous(memory_format=torch.channels_last)

    def _squash_mask(self, mask: Tensor, index: int) -> Tensor:
        """uint8 [h,w] -> [size,size], every class still there."""
        small = squash_labels(mask, self.size)
        lost = set(mask.unique().tolist()) - set(small.unique().tolist()) - {0, MASK_IGNORE}
        if lost:
            pixels = int((mask == min(lost)).sum())
            raise ValueError(
                f"masks[{index}]: an object of {pixels} pixels is too small to be seen at size={self.size}; "
                "choose a larger size"
            )
        return small.to(self.device)

    def _pool(self, features: list[Tensor], masks: list[Tensor], support: Labelled) -> SupportState | GaussianState:
        """The state of one task from the features [C,H,W] and masks [size,size] of any number of photos."""
        ways = len(support.class_names)
        if isinstance(self.model, PrototypeModel):
            # Every photo counts for every class that it shows, in whichever place of [B,N,S] it is: places that stay
            # free are filled with a photo of which everything is ignored.
            free = -len(features) % ways
            features = features + [features[0]] * free
            masks = masks + [torch.full_like(masks[0], MASK_IGNORE)] * free
            shape = (1, ways, len(features) // ways)
            return self.model.pool_support(
                torch.stack(features).unflatten(0, shape), torch.stack(masks).unflatten(0, shape)
            )
        shown = [[i for i, mask in enumerate(masks) if (mask == way).any()] for way in range(1, ways + 1)]
        if len({len(photos) for photos in shown}) > 1:
            counts = ", ".join(f"{len(p)} of {name}" for p, name in zip(shown, support.class_names, strict=True))
            raise ValueError(f"fit: VPI needs equally many photos of every class, got {counts}")
        return self.model.pool_support(
            torch.stack([torch.stack([features[i] for i in photos]) for photos in shown])[None],
            torch.stack([torch.stack([masks[i] for i in photos]) for photos in shown])[None],
        )

    def _logits(self, query: QueryState | PyramidState, steps: int | None = None) -> Tensor:
        """Of one photo: [1,L,K,H,W] at the model's own resolution; one sample, but with VPI."""
        return sample_logits(self.model, self.fitted.state, query, steps)

    def _result(self, pixels: Tensor, logits: Tensor, path: str | None) -> SegmentationResult:
        height, width = pixels.shape[-2:]
        probabilities, _, entropy, information = ops.mc_uncertainty(logits, (height, width))
        classes = probabilities.shape[1]
        # argmax over two planes takes PyTorch ten times as long.
        chosen = probabilities[0, 1] > probabilities[0, 0] if classes == 2 else probabilities[0].argmax(0)
        numbers = torch.tensor([0, *self.fitted.values], dtype=torch.uint8, device=self.device)
        mask = chosen * numbers[1] if classes == 2 else numbers[chosen]
        return SegmentationResult(
            photo=pixels.permute(1, 2, 0).numpy(),
            mask=mask.cpu().numpy(),
            probabilities=probabilities[0].cpu().numpy(),
            uncertainty=entropy[0].cpu().numpy(),
            mutual_information=information[0].cpu().numpy() if isinstance(self.model, VPI) else None,
            class_names=self.class_names,
            values=list(self.fitted.values),
            path=path,
        )

    # --- files -------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write model and support to a folder: safetensors and JSON.

        The folder appears whole or not at all; one that ``save`` wrote before is replaced.

        Raises:
            RuntimeError: before ``fit``.
            ValueError: a model whose backbone was a module without a name, which could not be built again.
            FileExistsError: the folder holds something else.

        Example:
            >>> import numpy as np, fewseg_ext
            >>> segmenter = fewseg_ext.Segmenter(fewseg_ext.BiOpt("conv4"), size=64)
            >>> photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
            >>> segmenter.fit(photo, photo[..., 0] > 100, labels="cat").save("cats")
            >>> fewseg_ext.Segmenter.load("cats").class_names
            ['cat']
        """
        from fewseg_ext.segment.files import save_segmenter

        save_segmenter(self, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> "Segmenter":
        """Read what ``save`` wrote; runs no code from it.

        Raises:
            FileNotFoundError, ValueError: no such folder; not a saved segmenter, or damaged.
        """
        from fewseg_ext.segment.files import load_segmenter

        return load_segmenter(folder, device)

    def export(self, path: str | os.PathLike[str], steps: int | None = None, *, compiled: bool = False) -> None:
        """Write model and support as one file that runs without this package, see docs/own_photos.md.

        Args:
            path: a file ``.pt2``.
            steps: inner steps instead of the model's own.
            compiled: by AOTInductor for this kind of machine, instead of ``torch.export``'s portable program. It needs
                contiguous input, and does not look.
        """
        from fewseg_ext.segment.export import export_segmenter

        export_segmenter(self, path, steps, compiled)


def sample_logits(
    model: PrototypeModel | VPI,
    state: SupportState | GaussianState,
    query: QueryState | PyramidState,
    steps: int | None,
) -> Tensor:
    """Logits [B,L,K,H,W] before upsampling."""
    if isinstance(model, PrototypeModel):
        assert isinstance(state, SupportState) and isinstance(query, QueryState)
        return model.sample_logits(state, query, steps)
    assert isinstance(state, GaussianState) and isinstance(query, PyramidState)
    # The same photo gives the same answer.
    generator = torch.Generator(device=state.mean.device).manual_seed(0)
    return model.sample_logits(state, query, generator=generator)


def _one_of(query: QueryState | PyramidState, index: int) -> QueryState | PyramidState:
    one = slice(index, index + 1)
    if isinstance(query, QueryState):
        return QueryState(query.features[one], query.size)
    return PyramidState(tuple(x[one] for x in query.pyramid), query.size)


def _as_list(given: Any) -> list[Any]:
    """Several things as a list, one thing as a list of one."""
    return list(given) if isinstance(given, list | tuple) else [given]
