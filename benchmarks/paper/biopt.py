"""BiOpt's ablation (the paper's Table 4), inner steps (Fig. 5), several scales (Table 5), training loss (Fig. 7)."""

from typing import Any

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
STEPS = tuple(range(11))
SHOTS = (1, 5)


def run(lab: Lab) -> dict[str, Any]:
    seeds = lab.effort.seeds
    # Seed by seed, so that a run that was stopped has whole rows first.
    made = lab.train_all({f"{v}-{s}": lab.recipe(f"ablation-{v}", s) for s in seeds for v in VARIANTS})
    trainings = {v: [made[f"{v}-{s}"] for s in seeds] for v in VARIANTS}
    return {
        "trained": {v: _table_row([_scores(lab, v, seed) for seed in seeds]) for v in VARIANTS},
        "untrained": {v: _table_row([_scores(lab, v, seed, untrained=True) for seed in seeds]) for v in UNTRAINED},
        "steps": {v: _steps(lab, v) for v in ("dagger", "inopt")},
        "multi_scale": _multi_scale(lab),
        "losses": {v: [training["losses"] for training in trainings[v]] for v in ("baseline", "dagger", "inopt")},
        "validation": {v: [training["validation"] for training in trainings[v]] for v in VARIANTS},
        "training_seconds": {v: spread([training["seconds"] for training in trainings[v]]) for v in VARIANTS},
    }


def _scores(lab: Lab, variant: str, seed: int, untrained: bool = False) -> dict[str, Any]:
    """By number of shots."""
    recipe = lab.recipe(f"ablation-{variant}", seed)

    def make() -> dict[str, Any]:
        model = lab.untrained(recipe) if untrained else lab.trained(f"{variant}-{seed}")
        evaluator = lab.evaluator(model, lab.protocol(seed, SHOTS[0]))
        result = {}
        for shots in SHOTS:
            evaluator.protocol = lab.protocol(seed, shots)
            result[str(shots)] = score(evaluator, seed)
        return result

    name = f"{'untrained' if untrained else 'scores'}-{variant}-{seed}"
    return lab.cached(name, [settings_of(recipe), str(lab.protocol(seed, 1))], make)


def _table_row(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        str(shots): {metric: spread([scores[str(shots)][metric] for scores in seeds]) for metric in ("miou", "fb_iou")}
        for shots in SHOTS
    }


def _steps(lab: Lab, variant: str) -> dict[str, Any]:
    """mIoU by the number of inner steps at the test; the training's stays the same."""
    rows = []
    for seed in lab.effort.seeds:
        recipe, protocol = lab.recipe(f"ablation-{variant}", seed), lab.protocol(seed, 1, lab.effort.curve_episodes)

        def make(variant: str = variant, seed: int = seed, protocol: Any = protocol) -> list[dict[str, Any]]:
            model = lab.trained(f"{variant}-{seed}")
            assert isinstance(model, BiOpt)
            evaluator = lab.evaluator(model, protocol)
            rows = []
            for steps in STEPS:
                model.inner_steps = steps
                rows.append(score(evaluator, seed))
            return rows

        rows.append(lab.cached(f"steps-{variant}-{seed}", [settings_of(recipe), str(protocol)], make))
    return {metric: [spread([row[steps][metric] for row in rows]) for steps in STEPS] for metric in ("miou", "fb_iou")}


def _multi_scale(lab: Lab) -> dict[str, Any]:
    """InOpt at one scale and at three, on the same episodes."""
    result: dict[str, Any] = {}
    for shots in SHOTS:
        rows = []
        for seed in lab.effort.seeds:
            recipe = lab.recipe("ablation-inopt", seed)
            protocol = lab.protocol(seed, shots, lab.effort.curve_episodes, MULTI_SCALE)

            def make(seed: int = seed, shots: int = shots, protocol: Any = protocol) -> dict[str, Any]:
                evaluator = lab.evaluator(lab.trained(f"inopt-{seed}"), protocol)
                several = score(evaluator, seed)
                evaluator.protocol = lab.protocol(seed, shots, lab.effort.curve_episodes)
                return {"several": several, "single": score(evaluator, seed)}

            rows.append(lab.cached(f"scales-{shots}-{seed}", [settings_of(recipe), str(protocol)], make))
        result[str(shots)] = {
            which: {metric: spread([row[which][metric] for row in rows]) for metric in ("miou", "fb_iou")}
            for which in ("single", "several")
        }
    return result
