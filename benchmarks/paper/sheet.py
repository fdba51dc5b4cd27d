"""Masks of the trained models side by side (BiOpt's Fig. 6, VPI's Fig. 3 left), on generated pictures: photos are not
ours to show. With photos of your own, call `draw_sheet` with a lab whose test source they are."""

from pathlib import Path

from fewseg_ext.data.episodes import EpisodeDataset, ImageSource
from fewseg_ext.data.fss1000 import FSS1000
from fewseg_ext.data.synthetic import SyntheticConfig, generate_synthetic
from fewseg_ext.data.transforms import PairTransform
from fewseg_ext.evaluation.evaluate import example_rows
from fewseg_ext.evaluation.pictures import draw_grid, save_figure
from paper.lab import Lab
from paper.vpi import bench_of

ROWS = 5


def draw_sheet(lab: Lab, path: Path, source: ImageSource | None = None) -> None:
    """One episode of each of some classes, not chosen by how well it went; VPI with two single samples and entropy."""
    if source is None:
        root = generate_synthetic(lab.work / "generated", SyntheticConfig(train_classes=2, unseen_classes=ROWS))
        source = FSS1000(root / "unseen")
    seed = lab.effort.seeds[0]
    models = {
        "baseline": lab.trained(f"baseline-{seed}"),
        "BiOpt": lab.trained(f"inopt-{seed}"),
        "VPI": bench_of(lab).trained(f"vpi-{seed}", lab.recipe("ablation-vpi", seed)),
    }
    episodes = EpisodeDataset(source, 50 * ROWS, transform=PairTransform(lab.size))
    save_figure(path, draw_grid(example_rows(episodes, models, ROWS)))
