"""VPI against its deterministic counterpart (the paper's Table 1), aggregation (Table 2), samples (Fig. 3), classes
(Fig. 5)."""

from dataclasses import replace
from functools import cached_property
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
SAMPLES = (1, 2, 4, 6, 10)
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


def run(bench: Bench) -> dict[str, Any]:
    lab, seeds = bench.lab, bench.lab.effort.seeds
    trainings = {v: [bench.train(f"{v}-{seed}", lab.recipe(f"ablation-{v}", seed)) for seed in seeds] for v in VARIANTS}
    rows = {v: [_scores(bench, v, seed) for seed in seeds] for v in VARIANTS}
    names = lab.test.class_names
    return {
        "trained": {
            v: {str(k): {m: spread([row[str(k)][m] for row in rows[v]]) for m in ("miou", "fb_iou")} for k in SHOTS}
            for v in VARIANTS
        },
        "class_iou": {
            v: {name: spread([row["1"]["class_iou"][name] for row in rows[v]]) for name in names} for v in VARIANTS
        },
        "aggregation": _aggregation(bench),
        "samples": _samples(bench),
        "validation": {v: [training["validation"] for training in trainings[v]] for v in VARIANTS},
        "training_seconds": {v: spread([training["seconds"] for training in trainings[v]]) for v in VARIANTS},
    }


def _scores(bench: Bench, variant: str, seed: int) -> dict[str, Any]:
    lab, recipe = bench.lab, bench.lab.recipe(f"ablation-{variant}", seed)

    def make() -> dict[str, Any]:
        bench.evaluator.model = bench.trained(f"{variant}-{seed}", recipe)
        result = {}
        for shots in SHOTS:
            bench.evaluator.protocol = lab.protocol(seed, shots)
            result[str(shots)] = score(bench.evaluator, seed)
        return result

    return lab.cached(f"scores-{variant}-{seed}", [settings_of(recipe), str(lab.protocol(seed, 1))], make)


def _aggregation(bench: Bench) -> dict[str, Any]:
    """5-shot, by how means and variances of the shots are weighted."""
    lab = bench.lab
    result = {}
    for mean in ("uniform", "precision"):
        for variance in ("uniform", "precision"):
            rows = []
            for seed in lab.effort.seeds:
                recipe = lab.recipe("ablation-vpi", seed)
                protocol = lab.protocol(seed, 5, lab.effort.curve_episodes)

                def make(mean: str = mean, variance: str = variance, seed: int = seed, protocol: Any = protocol,
                         recipe: Recipe = recipe) -> dict[str, Any]:  # fmt: skip
                    model = bench.trained(f"vpi-{seed}", recipe)
                    model.mean_weighting, model.variance_weighting = mean, variance
                    bench.evaluator.model, bench.evaluator.protocol = model, protocol
                    return score(bench.evaluator, seed)

                name = f"aggregation-{mean}-{variance}-{seed}"
                rows.append(lab.cached(name, [settings_of(recipe), str(protocol)], make))
            result[f"{mean} {variance}"] = {m: spread([row[m] for row in rows]) for m in ("miou", "fb_iou")}
    return result


def _samples(bench: Bench) -> dict[str, Any]:
    """By the number of samples L: mIoU, and milliseconds of one prediction without the backbone."""
    lab = bench.lab
    rows = []
    for seed in lab.effort.seeds:
        recipe, protocol = lab.recipe("ablation-vpi", seed), lab.protocol(seed, 1, lab.effort.curve_episodes)

        def make(seed: int = seed, protocol: Any = protocol, recipe: Recipe = recipe) -> list[dict[str, Any]]:
            model = bench.trained(f"vpi-{seed}", recipe)
            bench.evaluator.model, bench.evaluator.protocol = model, protocol
            rows = []
            for samples in SAMPLES:
                model.num_samples = samples
                rows.append(score(bench.evaluator, seed))
            return rows

        rows.append(lab.cached(f"samples-{seed}", [settings_of(recipe), str(protocol)], make))

    def times() -> list[float]:
        model = bench.model(lab.recipe("ablation-vpi"))
        image = torch.randn(1, 3, bench.size, bench.size)
        masks = torch.zeros(1, 1, 1, bench.size, bench.size, dtype=torch.uint8)
        masks[..., : bench.size // 2] = 1
        with torch.inference_mode():
            state, query = model.encode_support(image[:, None, None], masks), model.encode_query(image)
            return [time_ms(lambda n=n: model.predict(state, query, num_samples=n))["p50"] for n in SAMPLES]

    return {
        "samples": list(SAMPLES),
        "miou": [spread([row[i]["miou"] for row in rows]) for i in range(len(SAMPLES))],
        "ms": lab.cached("samples-times", settings_of(lab.recipe("ablation-vpi")), times),
    }
