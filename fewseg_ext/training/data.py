"""What a training sees: the base classes of a data set, some of them held out to select the model by."""

from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from fewseg_ext.data.coco import COCO20i
from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.folder import open_folder
from fewseg_ext.data.fss1000 import FSS1000
from fewseg_ext.data.pascal import Pascal5i
from fewseg_ext.data.photos import PhotoSource
from fewseg_ext.data.subset import ClassSubset
from fewseg_ext.data.synthetic import SyntheticConfig, generate_synthetic
from fewseg_ext.data.transforms import PairTransform, biopt_transforms, vpi_transforms
from fewseg_ext.progress import progress_bar

# More than any training draws, so that it never sees an episode twice.
EPISODES = 10**9


@dataclass(frozen=True)
class DataConfig:
    """The photos, and how episodes are made of them.

    Args:
        name: The data set; "folder" is a folder of your own photos, "generated" draws pictures into root first.
        root: Its folder; for "generated" by default runs/generated.
        fold: 0 to 3; its test classes are not trained on. For pascal5i and coco20i.
        family: Lists of pascal5i: "P1", "P2" or "P3".
        variant: How coco20i is cut into folds: "A" or "B".
        year: Of coco20i: 2014 or 2017.
        split: Classes of fss1000: "train" (520) or "trainval" (760).
        held_out: What pixels of the fold's test classes are in training photos: "background" as in the papers,
            "ignore", or "exclude", which leaves these photos out.
        ways: Classes per episode.
        shots: Labelled photos per class.
        size: Side of the square that the model sees, in pixels.
        augmentation: "biopt" scales and crops supports, "vpi" rotates, flips and crops all, "resize" does neither.
        flip: Mirrors at random, with "biopt" or "resize"; "vpi" always does.
        without: Names of classes that are not trained on, so that they can be scored later; their pixels are
            ignored.
        validation_classes: How many of the training classes are held out to select the best checkpoint by; 0 trains on
            all of them and selects none. The fold's test classes are never looked at.
    """

    name: Literal["pascal5i", "coco20i", "fss1000", "folder", "generated"] = "generated"
    root: str | None = None
    fold: int = 0
    family: Literal["P1", "P2", "P3"] = "P2"
    variant: Literal["A", "B"] = "A"
    year: int = 2014
    split: Literal["train", "trainval"] = "trainval"
    held_out: Literal["background", "ignore", "exclude"] = "background"
    ways: int = 1
    shots: int = 1
    size: int = 417
    augmentation: Literal["biopt", "vpi", "resize"] = "biopt"
    flip: bool = False
    without: tuple[str, ...] = ()
    validation_classes: int = 0

    def __post_init__(self) -> None:
        if self.root is None and self.name != "generated":
            raise ValueError(f"data.root: give the folder of {self.name}, for example --data.root data")
        if self.validation_classes < 0:
            raise ValueError(f"data.validation_classes: expected 0 or more, got {self.validation_classes}")


def open_base_classes(config: DataConfig, console: Console | None = None) -> PhotoSource:
    """The photos of all base classes: of the training split, never of the test classes or those of ``without``.

    Raises:
        ValueError, FileNotFoundError, ImportError: see the data sets.
    """
    source = _open(config, console)
    if not config.without:
        return source
    unknown = sorted(set(config.without) - set(source.class_names))
    if unknown:
        known = ", ".join(source.class_names)
        raise ValueError(f"data.without: {', '.join(unknown)} not in the data, which has {known}")
    kept = [class_id for class_id, name in enumerate(source.class_names) if name not in config.without]
    return ClassSubset(source, kept, ignored=sorted(set(range(len(source.class_names))) - set(kept)))


def _open(config: DataConfig, console: Console | None) -> PhotoSource:
    root = config.root or "runs/generated"
    if config.name == "pascal5i":
        return Pascal5i(root, config.fold, "train", family=config.family, held_out=config.held_out)
    if config.name == "coco20i":
        return COCO20i(root, config.fold, "train", variant=config.variant, year=config.year, held_out=config.held_out)
    if config.name == "fss1000":
        return FSS1000(root, split=config.split)
    if config.name == "folder":
        return open_folder(root, min_images=config.shots + 1)
    with progress_bar(console, "drawing pictures") as progress:
        generate_synthetic(root, SyntheticConfig(), progress=progress)
    return FSS1000(f"{root}/train", cache=True)


def hold_out(source: PhotoSource, count: int) -> tuple[PhotoSource, PhotoSource | None]:
    """The classes to train on, and ``count`` classes, evenly spread over the source, to validate on.

    Pixels of the validation classes are ignored in training photos. A photo of several classes can be in both parts:
    the classes are new in validation, the photos need not be.

    Raises:
        ValueError: no class would be left to train on.
    """
    total = len(source.class_names)
    if count == 0:
        return source, None
    if count >= total:
        raise ValueError(f"data.validation_classes: {count} of {total} classes leave none to train on")
    validation = [(2 * i + 1) * total // (2 * count) for i in range(count)]
    train = [class_id for class_id in range(total) if class_id not in set(validation)]
    return ClassSubset(source, train, ignored=validation), ClassSubset(source, validation)


def training_episodes(source: PhotoSource, config: DataConfig, seed: int) -> EpisodeDataset:
    """Augmented episodes without end."""
    if config.augmentation == "biopt":
        transform, query_transform = biopt_transforms(config.size, config.flip)
    elif config.augmentation == "vpi":
        transform, query_transform = vpi_transforms(config.size)
    else:
        transform = query_transform = PairTransform(config.size, flip=config.flip)
    return EpisodeDataset(source, EPISODES, config.ways, config.shots, seed, transform, query_transform)


def validation_episodes(source: PhotoSource, config: DataConfig, count: int) -> EpisodeDataset:
    """The same resized episodes every time."""
    return EpisodeDataset(source, count, config.ways, config.shots, 0, PairTransform(config.size))
