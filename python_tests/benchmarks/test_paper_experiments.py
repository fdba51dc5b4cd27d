"""The papers' experiments at the size of a test: every part runs, what is finished is not done again."""

import json
import random
from pathlib import Path

import paper_experiments
import pytest
import torch
from paper import charts, tables, uncertainty
from paper.kept import NumberedEpisodes, NumberedPhotos
from paper.lab import Effort, Lab
from paper.sheet import draw_sheet

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.fss1000 import FSS1000
from fewseg_ext.data.synthetic import SyntheticConfig, generate_synthetic
from fewseg_ext.data.transforms import PairTransform
from fewseg_ext.models.conv4 import Conv4
from fewseg_ext.models.vpi import VPI

CHANGES = (  # nothing of what makes a training good
    *("--data.size", "48", "--training.iterations", "2", "--training.batch_size", "2", "--training.frozen", "[]"),
    *("--run.validation_episodes", "3"),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    config = SyntheticConfig(train_classes=9, unseen_classes=3, images_per_class=7, size=48)
    root = generate_synthetic(folder / "data", config)
    without = (FSS1000(root / "train").class_names[0],)
    effort = Effort(seeds=(0,), episodes=12, curve_episodes=3, changes=CHANGES)
    return Lab(root / "train", without, FSS1000(root / "unseen"), "conv4", None, folder / "work", effort)


def test_every_experiment_and_its_tables_and_charts(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = json.loads(json.dumps(paper_experiments.run(lab)))
    result["search"] = []
    for table in tables.TABLES.values():
        assert all(line.count("|") in (0, line.count("|")) for line in table(result))
    charts.draw_all(result, tmp_path)
    draw_sheet(lab, tmp_path / "sheet.png", lab.test)
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        "inner_steps", "training_loss", "samples", "classes", "calibration", "sheet",
    }  # fmt: skip

    # A second run takes everything from the work folder, figures and seconds alike.
    monkeypatch.setattr(Lab, "trained", None)
    monkeypatch.setattr("paper.vpi.Bench.photos", None)
    monkeypatch.setattr("paper.vpi.Bench.trained", None)
    again = paper_experiments.run(lab)
    assert {**again, "search": []} == {**result, "environment": again["environment"]}


def test_other_settings_are_not_taken_for_the_same(lab: Lab) -> None:
    made = [lab.cached("name", {"lr": lr}, lambda lr=lr: [lr]) for lr in (1, 1, 2, 1)]
    assert made == [[1], [1], [2], [1]]
    calls: list[int] = []
    for _ in range(2):
        lab.cached("other", {}, lambda: calls.append(1))
    assert calls == [1]


def test_kept_maps_are_those_of_the_backbone(lab: Lab) -> None:
    """A model on numbers of photos gives what it gives on the photos."""
    torch.manual_seed(0)
    backbone = Conv4().eval()
    photos = NumberedPhotos(lab.test, backbone, 48)
    kept = VPI(photos.backbone, latent_dim=8, width=8).eval()
    plain = VPI(backbone, latent_dim=8, width=8).eval()
    plain.load_state_dict(kept.state_dict(), strict=False)
    image, _ = PairTransform(48)(*lab.test.read(1, 2), random.Random(0))
    number = torch.full((1, 1, 1, 1), float(photos.number(1, 2)))
    for one, other in zip(kept.encode(number), plain.encode(image[None]), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    for one, other in zip(kept.encode(number + 1), plain.encode(image[None].flip(-1)), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_numbered_episodes_are_those_of_the_source_some_mirrored(lab: Lab) -> None:
    photos = NumberedPhotos(lab.test, Conv4().eval(), 48)
    episodes = NumberedEpisodes(photos, seed=0, episodes=20)
    plain = EpisodeDataset(lab.test, 20, transform=PairTransform(48))
    mirrored = 0
    for i in range(len(episodes)):
        (class_id,), query = episodes.plans.plan(i).class_ids, episodes.plans.plan(i).query
        number = int(episodes[i]["query_images"])
        flipped = number - photos.number(class_id, query)
        mask = plain[i]["query_masks"]
        assert torch.equal(episodes[i]["query_masks"], mask.flip(-1) if flipped else mask)
        mirrored += flipped
    assert 0 < mirrored < 20


def test_temperature_undoes_a_factor_and_calibration_error_is_zero_for_honest_probabilities() -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(50_000, 1, 2)
    labels = torch.bernoulli(logits.softmax(2)[:, 0, 1]).long()
    assert uncertainty.fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)
    assert uncertainty.reliability(uncertainty.probabilities(logits), labels)["ece"] < 0.01
    measures = uncertainty.measures(3 * logits, labels, 3.0)
    assert measures["before"]["ece"] > 0.05 > 0.01 > measures["after"]["ece"]
    # Where the model is wrong half the time it says so.
    assert measures["auroc_entropy"] > 0.7
    assert "auroc_mutual_information" not in measures
