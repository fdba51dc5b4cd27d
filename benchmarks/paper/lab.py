"""What all experiments share: the photos, and trainings and scores that are made once and kept."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fewseg_ext.data.pascal import Pascal5i
from fewseg_ext.data.photos import PhotoSource
from fewseg_ext.data.prepare.pascal5i import prepare_pascal5i
from fewseg_ext.evaluation.evaluator import Evaluator
from fewseg_ext.evaluation.protocol import EvaluationProtocol
from fewseg_ext.files import write_text
from fewseg_ext.models.episode_model import EpisodeModel
from fewseg_ext.models.registry import MODELS, build_model
from fewseg_ext.training.checkpoint import load_checkpoint
from fewseg_ext.training.data import hold_out, open_base_classes, validation_episodes
from fewseg_ext.training.recipe import Recipe, parse_arguments, recipe_names
from fewseg_ext.training.run import BEST, LAST, run_training
from fewseg_ext.training.validation import validate

CLASSES = ("cat", "cow", "dog", "horse", "sheep")
# Animals of the training folder: the test classes and their nearest relatives.
WITHOUT = (*CLASSES, "video_camel", "video_goat", "video_horsejump_high")
VALIDATION_CLASSES = 6


@dataclass(frozen=True)
class Effort:
    """How much is done; what every figure's spread and the hours depend on."""

    seeds: tuple[int, ...] = (0, 1, 2)  # of training and of the scored episodes
    episodes: int = 500  # of every score
    curve_episodes: int = 200  # where many settings of one model are scored: inner steps, samples
    changes: tuple[str, ...] = ()  # of every training, as options of `fewseg train`


@dataclass
class Lab:
    """The photos, the folder for what was made, and how much to make.

    Args:
        train_root: class folders, as `open_folder` takes them.
        without: classes of them that are not trained on.
        test: the photos that are scored.
        backbone: its name.
        weights: of the backbone, a file or a name; None is random.
        work: gets trainings and scores; what is there is not made again.
        effort: how much.
        console: shows what is done.
        jobs: how many at a time, each with its part of the threads: a network of this size does not fill two cores.
    """

    train_root: Path
    without: tuple[str, ...]
    test: PhotoSource
    backbone: str
    weights: str | None
    work: Path
    effort: Effort = Effort()
    console: Console | None = None
    jobs: int = 1
    _recipes: dict[tuple[str, ...], Recipe] = field(default_factory=dict)

    def say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, highlight=False)

    def cached(self, name: str, settings: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` returned for the same settings, in this run or an earlier one: plain values of JSON."""
        path = self.work / "scores" / f"{name}.json"
        settings = json.loads(json.dumps(settings))
        if path.is_file():
            kept = json.loads(path.read_text())
            if kept["settings"] == settings:
                return kept["result"]
        self.say(name)
        start = time.perf_counter()
        result = make()
        content = {"settings": settings, "seconds": time.perf_counter() - start, "result": result}
        write_text(path, json.dumps(content, indent=1) + "\n")
        return json.loads(json.dumps(result))

    def seconds(self) -> float:
        """Spent on everything that is in the work folder."""
        scores = (json.loads(path.read_text())["seconds"] for path in (self.work / "scores").glob("*.json"))
        return sum(scores)

    def arguments(self, recipe: str, seed: int, *changes: str) -> list[str]:
        """The options of `fewseg train`."""
        parts = [recipe, "1shot", *({self.backbone} & set(recipe_names()))]
        arguments = [
            *("--config", "/".join(parts)),
            *("--model.backbone", self.backbone),
            *("--data.name", "folder"),
            *("--data.root", str(self.train_root)),
            *("--data.without", f"[{','.join(self.without)}]"),
            *("--data.validation_classes", str(VALIDATION_CLASSES)),
            *("--training.seed", str(seed)),
        ]
        if self.weights is not None:
            arguments += ["--model.weights", self.weights]
        return [*arguments, *self.effort.changes, *changes]

    def recipe(self, name: str, seed: int = 0, *changes: str) -> Recipe:
        arguments = tuple(self.arguments(name, seed, *changes))
        if arguments not in self._recipes:  # a parser of all fields takes a tenth of a second
            self._recipes[arguments] = parse_arguments(arguments)[0]
        return self._recipes[arguments]

    def train(self, name: str, recipe: Recipe) -> dict[str, Any]:
        """What `fewseg train` does with the recipe; its losses and validation scores."""

        def run() -> dict[str, Any]:
            trainer = run_training(recipe, self.folder(name), console=self.console)
            return {"losses": trainer.history, "validation": trainer.scores, "seconds": trainer.seconds}

        return self.cached(f"train-{name}", settings_of(recipe), run)

    def map(self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> list[Any]:
        """``function(lab, *item)`` for every item, ``jobs`` at a time; a function of a module."""
        if self.jobs == 1:
            return [function(self, *item) for item in items]
        threads = max(1, torch.get_num_threads() // self.jobs)
        quiet = replace(self, console=None)
        with ProcessPoolExecutor(self.jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
            waiting = [pool.submit(function, quiet, *item) for item in items]
            results = []
            for item, one in zip(items, waiting, strict=True):
                results.append(one.result())
                self.say("done: " + " ".join(map(str, item)))
        return results

    def folder(self, name: str) -> Path:
        return self.work / "runs" / name

    def trained(self, name: str, last: bool = False) -> EpisodeModel[Any, Any, Any]:
        """The model of a training at its best validation score."""
        checkpoint = load_checkpoint(self.folder(name) / (LAST if last else BEST))
        model = build_model(checkpoint.model)
        model.load_state_dict(checkpoint.weights)
        return model.eval()

    def untrained(self, recipe: Recipe) -> EpisodeModel[Any, Any, Any]:
        torch.manual_seed(0)
        return MODELS[recipe.method](**recipe.model).eval()

    def validate(self, model: EpisodeModel[Any, Any, Any]) -> float:
        """mIoU on the held-out base classes, as a training computes it."""
        recipe, (_, validation) = self.recipe("ablation-inopt"), self.training_photos()
        episodes = validation_episodes(validation, recipe.data, recipe.run.validation_episodes)
        return validate(model, episodes, torch.device("cpu"))["miou"]

    def training_photos(self) -> tuple[PhotoSource, PhotoSource]:
        """Those of the classes to train on, and of the held-out base classes."""
        source = open_base_classes(self.recipe("ablation-baseline").data)
        train, validation = hold_out(source, VALIDATION_CLASSES)
        assert validation is not None
        return train, validation

    @property
    def size(self) -> int:
        return self.recipe("ablation-baseline").data.size

    def protocol(
        self, seed: int, shots: int, episodes: int | None = None, scales: Sequence[float] = (1.0,)
    ) -> EvaluationProtocol:
        return EvaluationProtocol(
            episodes=episodes or self.effort.episodes,
            seeds=(seed,),
            shots=shots,
            input_size=self.size,
            square_size=None,
            scales=tuple(scales),
        )

    def evaluator(self, model: EpisodeModel[Any, Any, Any], protocol: EvaluationProtocol) -> Evaluator:
        return Evaluator(model, self.test, protocol, cache_bytes=4 * 1024**3)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What the result of a training depends on: folders belong to the machine."""
    content = recipe.as_dict()
    content["data"].pop("root")
    weights = content["model"].get("weights")
    content["model"]["weights"] = None if weights is None else Path(weights).name
    return content


def score(evaluator: Evaluator, seed: int) -> dict[str, Any]:
    scores = evaluator.run(seed)["original"]
    return {"miou": scores.miou, "fb_iou": scores.fb_iou, "class_iou": scores.class_iou}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "per_seed": list(values),
    }


def real_lab(data: Path, work: Path, effort: Effort, console: Console | None, jobs: int = 1) -> Lab:
    """On the folder of real photos.

    Raises:
        FileNotFoundError: it is not there.
    """
    train_root, weights = data / "fss_like", data / "weights" / "mobilenet_v2.safetensors"
    for path in (train_root, weights, data / "VOCdevkit"):
        if not path.exists():
            raise FileNotFoundError(path)
    prepared = work / "prepared"
    if not (prepared / "index.json").is_file():
        prepare_pascal5i(data, prepared, console=console)
    test = Pascal5i(data, family="P3", classes=CLASSES, prepared=prepared)
    return Lab(train_root, WITHOUT, test, "mobilenet_v2", str(weights), work, effort, console, jobs)
