"""BiOpt's ablation (the paper's Table 4), inner steps (Fig. 5), several scales (Table 5), training loss (Fig. 7)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.transforms import PairTransform
from fewseg_ext.evaluation.evaluator import Evaluator
from fewseg_ext.evaluation.protocol import MULTI_SCALE
from fewseg_ext.models.biopt import BiOpt
from paper.lab import Lab, score, settings_of, spread

# By the end of the recipe's name.
VARIANTS = {
    "baseline": "prototypes of the support (baseline)",
    "init": "init module, no inner steps",
    "dagger": "inner steps from the support's prototypes (InOpt-dagger)",
    "first-order": "InOpt, first-order gradient",
    "inopt": "InOpt, second-order gradient",
}
# Those that run without training too; the order of the gradient makes no difference there.
UNTRAINED = ("baseline", "init", "dagger", "inopt")
# Trainings of those that the papers have no figure for; the others have as many as there are seeds.
FEWER = {"init": 2, "first-order": 2}
STEPPED = ("dagger", "inopt")
STEPS = tuple(range(11))
SHOTS = (1, 5)
GEOMETRY_EPISODES = 100
METRICS = ("miou", "fb_iou")


def run(lab: Lab) -> dict[str, Any]:
    seeds = lab.effort.seeds
    # Seed by seed, so that a run that was stopped has whole rows first.
    every = [(v, seed) for seed in seeds for v in VARIANTS if seed in seeds_of(lab, v)]
    made = dict(zip(every, lab.map(one, every), strict=True))
    trainings = {v: [made[v, seed]["training"] for seed in seeds_of(lab, v)] for v in VARIANTS}
    stepped = {v: [made[v, seed]["scores"]["steps"] for seed in seeds] for v in STEPPED}
    scales = [made["inopt", seed]["scores"]["scales"] for seed in seeds]
    return {
        "trained": {v: _row([made[v, seed]["scores"] for seed in seeds_of(lab, v)]) for v in VARIANTS},
        "untrained": {v: _row(rows) for v, rows in _untrained(lab).items()},
        "steps": {
            v: {m: [spread([row[steps][m] for row in rows]) for steps in STEPS] for m in METRICS}
            for v, rows in stepped.items()
        },
        "multi_scale": {which: _row([row[which] for row in scales]) for which in ("single", "several")},
        "losses": {v: [training["losses"] for training in trainings[v]] for v in ("baseline", "dagger", "inopt")},
        "validation": {v: [training["validation"] for training in trainings[v]] for v in VARIANTS},
        "geometry": {which: _geometry(lab, which) for which in ("untrained", "trained")},
        "training_seconds": {v: spread([training["seconds"] for training in trainings[v]]) for v in VARIANTS},
    }


def seeds_of(lab: Lab, variant: str) -> tuple[int, ...]:
    """The seeds that a variant is trained with."""
    return lab.effort.seeds[: FEWER.get(variant, len(lab.effort.seeds))]


def one(lab: Lab, variant: str, seed: int) -> dict[str, Any]:
    """A training and all its scores, which one evaluator makes, so that every photo is encoded once."""
    name, recipe = f"{variant}-{seed}", lab.recipe(f"ablation-{variant}", seed)
    training = lab.train(name, recipe)

    def scores() -> dict[str, Any]:
        model = lab.trained(name)
        evaluator = lab.evaluator(model, lab.protocol(seed, 1))
        result = _by_shots(lab, evaluator, seed)
        if variant in STEPPED:
            assert isinstance(model, BiOpt)
            trained_with = model.inner_steps
            evaluator.protocol = lab.protocol(seed, 1, lab.effort.curve_episodes)
            result["steps"] = []
            for steps in STEPS:
                model.inner_steps = steps
                result["steps"].append(score(evaluator, seed))
            model.inner_steps = trained_with
        if variant == "inopt":
            few = lab.effort.curve_episodes
            result["scales"] = {
                "single": _by_shots(lab, evaluator, seed, few),
                "several": _by_shots(lab, evaluator, seed, few, MULTI_SCALE),
            }
        return result

    settings = [settings_of(recipe), str(lab.protocol(seed, 1)), lab.effort.curve_episodes]
    return {"training": training, "scores": lab.cached(f"scores-{name}", settings, scores)}


def _untrained(lab: Lab) -> dict[str, list[dict[str, Any]]]:
    """By variant and seed. All share one backbone and one evaluator, which encodes every photo once."""

    def make() -> dict[str, list[dict[str, Any]]]:
        models = {variant: lab.untrained(lab.recipe(f"ablation-{variant}")) for variant in UNTRAINED}
        evaluator = lab.evaluator(models["inopt"], lab.protocol(0, 1))
        rows: dict[str, list[dict[str, Any]]] = {}
        for variant, model in models.items():
            evaluator.model = model
            rows[variant] = [_by_shots(lab, evaluator, seed) for seed in lab.effort.seeds]
        return rows

    settings = [lab.backbone, lab.effort.seeds, str(lab.protocol(0, 1))]
    return lab.cached("scores-untrained", settings, make)


def _geometry(lab: Lab, which: str) -> dict[str, float]:
    """How near the prototypes of object and background are, and how far the inner loop moves them, of InOpt.

    All vectors have length 1 before the loop, so that a cosine c is a distance of sqrt(2 - 2c).
    """
    seed = lab.effort.seeds[0]
    recipe, episodes = lab.recipe("ablation-inopt", seed), min(GEOMETRY_EPISODES, lab.effort.episodes)

    @torch.inference_mode()
    def make() -> dict[str, float]:
        model = lab.untrained(recipe) if which == "untrained" else lab.trained(f"inopt-{seed}")
        dataset = EpisodeDataset(lab.test, episodes, seed=seed, transform=PairTransform(lab.size))
        rows = []
        for index in range(episodes):
            batch = default_collate([dataset[index]])
            state = model.encode_support(batch["support_images"], batch["support_masks"])
            query = model.encode_query(batch["query_images"])
            start, one, ten = (model.predict(state, query, steps=steps).prototypes[0] for steps in (0, 1, 10))
            moved = [float((end - start).norm(dim=1).mean()) for end in (one, ten)]
            rows.append([float(F.cosine_similarity(start[0], start[1], dim=0)), *moved])
        means = torch.tensor(rows).mean(0).tolist()
        return dict(zip(("cosine", "moved_1", "moved_10"), means, strict=True))

    return lab.cached(f"geometry-{which}", [settings_of(recipe), episodes], make)


def _by_shots(
    lab: Lab, evaluator: Evaluator, seed: int, episodes: int | None = None, scales: Sequence[float] = (1.0,)
) -> dict[str, Any]:
    result = {}
    for shots in SHOTS:
        evaluator.protocol = lab.protocol(seed, shots, episodes, scales)
        result[str(shots)] = score(evaluator, seed)
    return result


def _row(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    return {str(k): {m: spread([scores[str(k)][m] for scores in seeds]) for m in METRICS} for k in SHOTS}
