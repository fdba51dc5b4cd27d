"""Does the uncertainty tell where the prediction is wrong, and are the probabilities what they say?

Everything is computed from a table of pixels: the samples' logits at some pixels of every query, and the truth there.
"""

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate
from torchmetrics.functional.classification import binary_auroc

from fewseg_ext.data.episodes import IGNORE_INDEX, EpisodeDataset, ImageSource
from fewseg_ext.data.transforms import PairTransform
from fewseg_ext.evaluation.evaluator import sample_generator
from fewseg_ext.models.episode_model import EpisodeModel
from fewseg_ext.models.prototypes import upsample
from paper.lab import Lab, settings_of, spread
from paper.vpi import bench_of

MODELS = ("vpi", "vpi-deterministic", "inopt")
EPISODES = 100  # of each table
PIXELS = 400  # of a query
BINS = 10


@torch.inference_mode()
def pixel_table(
    model: EpisodeModel[Any, Any, Any], source: ImageSource, size: int, episodes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Logits [n,L,2] at random pixels of 1-way 1-shot queries at the model's size, and labels [n], none ignored."""
    dataset = EpisodeDataset(source, episodes, seed=seed, transform=PairTransform(size))
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for index in range(episodes):
        batch = default_collate([dataset[index]])
        state = model.encode_support(batch["support_images"], batch["support_masks"])
        query = model.encode_query(batch["query_images"])
        samples = model.sample_logits(state, query, generator=sample_generator(seed, index, "cpu"))[0]
        truth = batch["query_masks"].flatten()
        valid = (truth != IGNORE_INDEX).nonzero().flatten().tolist()
        chosen = random.Random(f"{seed}/{index}/pixels").sample(valid, min(PIXELS, len(valid)))
        logits.append(upsample(samples, (size, size)).flatten(2)[..., chosen].permute(2, 0, 1))
        labels.append(truth[chosen].long())
    return torch.cat(logits).float(), torch.cat(labels)


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Averaged over the samples (Eq. 5): [n,2]."""
    return (logits / temperature).softmax(2).mean(1)


def entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The one that makes the labels likeliest, to one per cent, by ever finer grids."""
    low, high = -1.0, 1.0  # of the decimal logarithm
    for _ in range(3):
        grid = torch.linspace(low, high, 13).tolist()
        losses = [float(F.nll_loss(probabilities(logits, 10**t).clamp(min=1e-12).log(), labels)) for t in grid]
        best = min(range(len(grid)), key=losses.__getitem__)
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return float(10 ** grid[best])


def reliability(p: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy by confidence in equal bins, and their mean distance (expected calibration error)."""
    confidence, predicted = p.max(1)
    right = (predicted == labels).double()
    # The confidence of two classes is at least one half.
    which = ((confidence - 0.5) * 2 * BINS).long().clamp(0, BINS - 1)
    count = torch.bincount(which, minlength=BINS).double()
    mean_confidence = torch.bincount(which, confidence.double(), BINS) / count.clamp(min=1)
    accuracy = torch.bincount(which, right, BINS) / count.clamp(min=1)
    error = float(((accuracy - mean_confidence).abs() * count).sum() / count.sum())
    return {
        "confidence": mean_confidence.tolist(),
        "accuracy": accuracy.tolist(),
        "share": (count / count.sum()).tolist(),
        "ece": error,
        "nll": float(F.nll_loss(p.clamp(min=1e-12).log(), labels)),
    }


def measures(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, Any]:
    p = probabilities(logits)
    wrong = (p.argmax(1) != labels).int()
    total = entropy(p)
    result: dict[str, Any] = {
        "accuracy": float((p.argmax(1) == labels).double().mean()),
        "auroc_entropy": float(binary_auroc(total, wrong)),
        "temperature": temperature,
        "before": reliability(p, labels),
        "after": reliability(probabilities(logits, temperature), labels),
    }
    if logits.shape[1] > 1:
        information = (total - entropy(logits.softmax(2)).mean(1)).clamp(min=0)
        result["auroc_mutual_information"] = float(binary_auroc(information, wrong))
        result["mean_mutual_information"] = float(information.mean())
    return result


def run(lab: Lab) -> dict[str, Any]:
    every = [(name, seed) for name in MODELS for seed in lab.effort.seeds]
    made = dict(zip(every, lab.map(one, every), strict=True))
    return {name: _summary([made[name, seed] for seed in lab.effort.seeds]) for name in MODELS}


def one(lab: Lab, name: str, seed: int) -> dict[str, Any]:
    recipe, episodes = lab.recipe(f"ablation-{name}", seed), min(EPISODES, lab.effort.episodes)

    def make() -> dict[str, Any]:
        run_name = f"{name}-{seed}"
        model = lab.trained(run_name) if name == "inopt" else bench_of(lab).trained(run_name, recipe)
        _, validation = lab.training_photos()
        # The temperature never sees a test class.
        temperature = fit_temperature(*pixel_table(model, validation, lab.size, episodes, seed))
        return measures(*pixel_table(model, lab.test, lab.size, episodes, seed), temperature)

    return lab.cached(f"uncertainty-{name}-{seed}", [settings_of(recipe), episodes], make)


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = [key for key, value in rows[0].items() if isinstance(value, float)]
    summary: dict[str, Any] = {key: spread([row[key] for row in rows]) for key in numbers}
    for when in ("before", "after"):
        summary[when] = {key: spread([row[when][key] for row in rows]) for key in ("ece", "nll")}
        # The curve of the first seed: a mean of bins would hide how full they are.
        summary[when].update({key: rows[0][when][key] for key in ("confidence", "accuracy", "share")})
    return summary
