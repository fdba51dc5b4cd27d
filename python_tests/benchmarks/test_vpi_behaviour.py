"""What a VPI that ignores its support, or whose Gaussian collapsed, would fail."""

from pathlib import Path

import pytest
import torch
from vpi_behaviour import Settings, of_other_class, run, table

from fewseg_ext.data.synthetic import SyntheticConfig
from fewseg_ext.models.vpi import GaussianState


def test_measures_both_models(tmp_path: Path) -> None:
    data = SyntheticConfig(train_classes=4, unseen_classes=3, images_per_class=4, size=48, rivals=True)
    results = run(Settings(backbone_iterations=1, iterations=2, episodes=40, data=data), tmp_path)
    assert {"median deviation", "auroc of entropy", "auroc of mutual information"} <= results["VPI"].keys()
    # Without a distribution there is nothing that samples could disagree about.
    assert "auroc of mutual information" not in results["deterministic"]
    assert table(results).count("\n") == 2 + len(results["VPI"])


def test_other_support_is_of_another_class() -> None:
    classes = torch.tensor([[0], [0], [1], [2], [0]])
    state = GaussianState(*(classes.float()[:, :, None, None].expand(5, 1, 1, 1) for _ in range(2)))
    assert (of_other_class(state, classes).mean.flatten() != classes.flatten()).all()


@pytest.mark.slow
def test_uses_its_support_and_knows_where_it_is_wrong(tmp_path: Path) -> None:
    """After 2,000 iterations, on classes never seen. About ten minutes on two cores."""
    results = run(Settings(), tmp_path)
    vpi = results["VPI"]
    assert 1e-2 < vpi["median deviation"] < 10
    assert vpi["spread of the class means"] > 0.3 * vpi["median deviation"]
    assert vpi["difference of two samples"] > 1e-3
    assert vpi["miou"] - vpi["miou_other_class"] > 0.10
    assert vpi["auroc of entropy"] > 0.6
    assert vpi["auroc of mutual information"] > 0.5
