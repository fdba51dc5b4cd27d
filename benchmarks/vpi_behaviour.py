"""Does VPI use its support, do its samples differ, and does its uncertainty tell where it is wrong?

    python benchmarks/vpi_behaviour.py --results benchmarks/results       about ten minutes on two cores

On generated pictures in which another object is as large as the one that is meant, so that only the support tells
which of the two it is. A prototype baseline is trained first; VPI and its deterministic counterpart stand on its frozen
backbone. Everything is measured on classes that no training saw.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import default_collate
from torchmetrics.functional.classification import binary_auroc

import fewseg_ext
from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.fss1000 import FSS1000
from fewseg_ext.data.synthetic import SyntheticConfig, generate_synthetic
from fewseg_ext.data.transforms import PairTransform
from fewseg_ext.evaluation.metrics import SegmentationScore
from fewseg_ext.models.vpi import GaussianState, UncertainOutput
from fewseg_ext.training.engine import Trainer, TrainingConfig
from measure import environment, write_json

RESULTS = Path(__file__).parent / "results"
BATCH = 20


@dataclass(frozen=True)
class Settings:
    backbone_iterations: int = 600
    iterations: int = 2000
    episodes: int = 400
    latent_dim: int = 32
    width: int = 64
    kl_warmup: int = 1000
    lr: float = 2e-3
    data: SyntheticConfig = field(default_factory=lambda: SyntheticConfig(rivals=True))


def run(settings: Settings, folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Trains both and returns what was measured, by model."""
    root = generate_synthetic(folder / "data", settings.data)
    train = EpisodeDataset(FSS1000(root / "train", cache=True), 10**7, transform=PairTransform(flip=True))
    test = EpisodeDataset(FSS1000(root / "unseen", cache=True), settings.episodes)
    torch.manual_seed(0)
    baseline = fewseg_ext.PrototypeBaseline("conv4")
    config = TrainingConfig(iterations=settings.backbone_iterations, lr=4e-3)
    Trainer(baseline, train, config, console=console).run("training the backbone")
    results = {}
    for name, deterministic in (("VPI", False), ("deterministic", True)):
        torch.manual_seed(0)
        model = fewseg_ext.VPI(
            "conv4",
            latent_dim=settings.latent_dim,
            width=settings.width,
            kl_warmup=settings.kl_warmup,
            deterministic=deterministic,
        )
        model.backbone.load_state_dict(baseline.backbone.state_dict())
        model.backbone.requires_grad_(False)
        trainer = Trainer(model, train, TrainingConfig(iterations=settings.iterations, lr=settings.lr), console=console)
        trainer.run(f"training {name}")
        results[name] = {"seconds": trainer.seconds, **measure(model.eval(), test)}
    return results


@torch.no_grad()
def measure(model: fewseg_ext.VPI, test: EpisodeDataset) -> dict[str, float]:
    """What is asked of a VPI, on the episodes of ``test``."""
    right, wrong = (SegmentationScore(len(test.source.class_names)) for _ in range(2))
    uncertainty: dict[str, list[Tensor]] = {"entropy": [], "mutual information": []}
    errors, means, deviations, differences = [], [], [], []
    class_ids: list[int] = []
    for episodes, classes in batches(test):
        state = model.encode_support(episodes["support_images"], episodes["support_masks"])
        query, truth = model.encode_query(episodes["query_images"]), episodes["query_masks"]
        output = segment(model, state, query)
        assert output.entropy is not None and output.mutual_information is not None
        prediction = output.logits.argmax(1)
        right.update(prediction, truth, classes)
        wrong.update(segment(model, of_other_class(state, classes), query).logits.argmax(1), truth, classes)
        valid = truth != 255
        errors.append((prediction != truth)[valid])
        uncertainty["entropy"].append(output.entropy[valid])
        uncertainty["mutual information"].append(output.mutual_information[valid])
        means.append(state.mean[:, 0, 0])
        deviations.append(state.variance.sqrt().flatten())
        class_ids += classes.flatten().tolist()
        if output.sample_logits is not None and output.sample_logits.shape[1] > 1:
            samples = output.sample_logits.softmax(2)[:, :, 1]
            differences.append((samples[:, 0] - samples[:, 1]).abs().mean())
    result = {
        "miou": float(right.compute()["miou"]),
        "miou_other_class": float(wrong.compute()["miou"]),
    }
    wrong_pixels = torch.cat(errors).int()
    for name, values in uncertainty.items():
        scores = torch.cat(values)
        if scores.max() > 1e-6:  # one sample does not disagree with itself
            result[f"auroc of {name}"] = float(binary_auroc(scores / scores.max(), wrong_pixels, thresholds=500))
    if differences:
        per_class = torch.stack(
            [torch.cat(means)[torch.tensor(class_ids) == c].mean(0) for c in sorted(set(class_ids))]
        )
        result["median deviation"] = float(torch.cat(deviations).median())
        result["spread of the class means"] = float(per_class.std(0).median())
        result["difference of two samples"] = float(torch.stack(differences).mean())
    return result


def batches(test: EpisodeDataset) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Episodes, and the class of each [B,1]."""
    for start in range(0, len(test), BATCH):
        indices = range(start, min(start + BATCH, len(test)))
        classes = torch.tensor([test.plan(i).class_ids for i in indices])
        yield default_collate([test[i] for i in indices]), classes


def segment(model: fewseg_ext.VPI, state: GaussianState, query: Any) -> UncertainOutput:
    return model.predict(state, query, generator=torch.Generator().manual_seed(0))


def of_other_class(state: GaussianState, classes: Tensor) -> GaussianState:
    """Every task with the support of the next task of another class."""
    flat = classes.flatten().tolist()
    tasks = len(flat)
    order = [next(j % tasks for j in range(i + 1, i + tasks) if flat[j % tasks] != flat[i]) for i in range(tasks)]
    return GaussianState(state.mean[order], state.variance[order])


def table(results: dict[str, dict[str, float]]) -> str:
    names = list(results["VPI"])
    lines = ["| | " + " | ".join(results) + " |", "| --- |" + " ---: |" * len(results)]
    for name in names:
        cells = [f"{row[name]:.3g}" if name in row else "" for row in results.values()]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of vpi_behaviour.json and .md")
    options = parser.parse_args()
    settings, console = Settings(), Console()
    with tempfile.TemporaryDirectory() as folder:
        results = run(settings, Path(folder), console)
    write_json(
        options.results / "vpi_behaviour.json",
        {"environment": environment(), "settings": repr(settings), "results": results},
    )
    (options.results / "vpi_behaviour.md").write_text(table(results))
    console.print(table(results), markup=False)


if __name__ == "__main__":
    main()
