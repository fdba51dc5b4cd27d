"""VPI against its deterministic counterpart (the paper's Table 1), aggregation (Table 2), samples (Fig. 3), classes
(Fig. 5)."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from fewseg_ext.evaluation.evaluator import Evaluator
from fewseg_ext.evaluation.metrics import SegmentationScore
from fewseg_ext.models.backbones import build_backbone
from fewseg_ext.models.vpi import VPI
from fewseg_ext.training.checkpoint import load_checkpoint, save_checkpoint
from fewseg_ext.training.engine import Trainer
from fewseg_ext.training.recipe import Recipe
from measure import time_ms
from paper.kept import NumberedEpisodes, NumberedPhotos
from paper.lab import Lab, score, settings_of, spread

VARIANTS = ("vpi", "vpi-deterministic")
SHOTS = (1, 5)
METRICS = ("miou", "fb_iou")
SAMPLES = (1, 2, 4, 6, 10)
WEIGHTINGS = ("uniform", "precision")
AGGREGATIONS = [(mean, variance) for mean in WEIGHTINGS for variance in WEIGHTINGS]  # of means, of variances
BATCH = 20


class Bench:
    """What trainings and scores of VPI share: the frozen backbone, and the maps that it gave."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.size = lab.recipe("ablation-vpi").data.size

    @cached_property
    def photos(self) -> tuple[NumberedPhotos, NumberedPhotos]:
        """To train on, and of the held-out base classes."""
        self.lab.say("the backbone sees every training photo once")
        torch.manual_seed(0)
        backbone = build_backbone(self.lab.backbone, self.lab.weights).eval()
        train, validation = (NumberedPhotos(s, backbone, self.size) for s in self.lab.training_photos())
        return train, validation

    @cached_property
    def evaluator(self) -> Evaluator:
        """One for all models, since they have the same backbone: it keeps the maps of every scored photo."""
        return self.lab.evaluator(self.model(self.lab.recipe("ablation-vpi")), self.lab.protocol(0, 1))

    def model(self, recipe: Recipe) -> VPI:
        torch.manual_seed(0)  # of a random backbone
        backbone = build_backbone(self.lab.backbone, self.lab.weights)
        arguments = {key: value for key, value in recipe.model.items() if key not in ("backbone", "weights")}
        return VPI(backbone, **arguments).eval()

    def train(self, name: str, recipe: Recipe) -> dict[str, Any]:
        """As `fewseg train`, but for the backbone, which does not run."""
        folder, every = self.lab.folder(name), recipe.run.validate_every

        def run() -> dict[str, Any]:
            train, validation = self.photos
            torch.manual_seed(recipe.training.seed)
            arguments = {key: value for key, value in recipe.model.items() if key not in ("backbone", "weights")}
            model = VPI(train.backbone, **arguments)
            config = replace(recipe.training, frozen=(), channels_last=False)
            trainer = Trainer(model, NumberedEpisodes(train, config.seed), config, console=self.lab.console)
            episodes = NumberedEpisodes(validation, 0, recipe.run.validation_episodes, flip=False)
            if (folder / "last.ckpt").is_file():
                trainer.restore(load_checkpoint(folder / "last.ckpt"))

            def validate() -> None:
                if trainer.iteration % every and trainer.iteration < (config.iterations or 0):
                    return
                best = max((s["miou"] for s in trainer.scores), default=0.0)
                trainer.scores.append({"iteration": trainer.iteration, "miou": _validate(model, validation, episodes)})
                if trainer.scores[-1]["miou"] > best:
                    save_checkpoint(folder / "best.ckpt", trainer.checkpoint())
                save_checkpoint(folder / "last.ckpt", trainer.checkpoint())

            trainer.run(f"training {name}", validate)
            return {"losses": trainer.history, "validation": trainer.scores, "seconds": trainer.seconds}

        return self.lab.cached(f"train-{name}", settings_of(recipe), run)

    def trained(self, name: str, recipe: Recipe) -> VPI:
        """On the backbone itself, at the best validation score."""
        model = self.model(recipe)
        head = load_checkpoint(self.lab.folder(name) / "best.ckpt").weights
        backbone = {key: value for key, value in model.state_dict().items() if key.startswith("backbone.")}
        model.load_state_dict({**backbone, **head})
        return model


@torch.inference_mode()
def _validate(model: VPI, photos: NumberedPhotos, episodes: NumberedEpisodes) -> float:
    """mIoU in per cent. The samples are the same every time; the training's random numbers are left alone."""
    backbone, was_training = model.backbone, model.training
    model.backbone = photos.backbone
    model.eval()
    score = SegmentationScore(len(photos.source.class_names))
    for start in range(0, len(episodes), BATCH):
        batch = default_collate([episodes[i] for i in range(start, min(start + BATCH, len(episodes)))])
        state = model.encode_support(batch["support_images"], batch["support_masks"])
        query = model.encode_query(batch["query_images"])
        size = (photos.size, photos.size)
        output = model.predict(state, query, size=size, generator=torch.Generator().manual_seed(0))
        score.update(output.logits.argmax(1), batch["query_masks"], batch["class_ids"])
    model.backbone = backbone
    model.train(was_training)
    return 100 * float(score.compute()["miou"])


def run(lab: Lab) -> dict[str, Any]:
    seeds = lab.effort.seeds
    every = [(variant, seed) for seed in seeds for variant in VARIANTS]
    made = dict(zip(every, lab.map(one, every), strict=True))
    scores = {v: [made[v, seed]["scores"] for seed in seeds] for v in VARIANTS}
    trainings = {v: [made[v, seed]["training"] for seed in seeds] for v in VARIANTS}
    names = lab.test.class_names
    return {
        "trained": {
            v: {str(k): {m: spread([row[str(k)][m] for row in rows]) for m in METRICS} for k in SHOTS}
            for v, rows in scores.items()
        },
        "class_iou": {
            v: {name: spread([row["1"]["class_iou"][name] for row in rows]) for name in names}
            for v, rows in scores.items()
        },
        "aggregation": {
            f"{mean} {variance}": {
                m: spread([row["aggregation"][f"{mean} {variance}"][m] for row in scores["vpi"]]) for m in METRICS
            }
            for mean, variance in AGGREGATIONS
        },
        "samples": {
            "samples": list(SAMPLES),
            "miou": [spread([row["samples"][i]["miou"] for row in scores["vpi"]]) for i in range(len(SAMPLES))],
            "ms": lab.cached("samples-times", settings_of(lab.recipe("ablation-vpi")), lambda: times(lab)),
        },
        "validation": {v: [training["validation"] for training in trainings[v]] for v in VARIANTS},
        "training_seconds": {v: spread([training["seconds"] for training in trainings[v]]) for v in VARIANTS},
    }


def one(lab: Lab, variant: str, seed: int) -> dict[str, Any]:
    """A training and all its scores."""
    bench, name, recipe = bench_of(lab), f"{variant}-{seed}", lab.recipe(f"ablation-{variant}", seed)
    training = bench.train(name, recipe)
    few = lab.effort.curve_episodes // 2

    def scores() -> dict[str, Any]:
        model, evaluator = bench.trained(name, recipe), bench.evaluator
        evaluator.model = model
        result: dict[str, Any] = {}
        for shots in SHOTS:
            evaluator.protocol = lab.protocol(seed, shots)
            result[str(shots)] = score(evaluator, seed)
        if not model.deterministic:
            evaluator.protocol = lab.protocol(seed, 5, few)
            result["aggregation"] = {}
            for mean, variance in AGGREGATIONS:
                model.mean_weighting, model.variance_weighting = mean, variance
                result["aggregation"][f"{mean} {variance}"] = score(evaluator, seed)
            evaluator.protocol = lab.protocol(seed, 1, few)
            result["samples"] = []
            for samples in SAMPLES:
                model.num_samples = samples
                result["samples"].append(score(evaluator, seed))
        return result

    settings = [settings_of(recipe), str(lab.protocol(seed, 1)), few]
    return {"training": training, "scores": lab.cached(f"scores-{name}", settings, scores)}


_benches: dict[Path, Bench] = {}


def bench_of(lab: Lab) -> Bench:
    """The same one in every call of a process: the kept maps are large."""
    return _benches.setdefault(lab.work, Bench(lab))


def times(lab: Lab) -> list[float]:
    """Milliseconds of one prediction without the backbone, by the number of samples."""
    model, side = bench_of(lab).model(lab.recipe("ablation-vpi")), lab.size
    image = torch.randn(1, 3, side, side)
    masks = torch.zeros(1, 1, 1, side, side, dtype=torch.uint8)
    masks[..., : side // 2] = 1
    with torch.inference_mode():
        state, query = model.encode_support(image[:, None, None], masks), model.encode_query(image)
        return [time_ms(lambda n=n: model.predict(state, query, num_samples=n))["p50"] for n in SAMPLES]
