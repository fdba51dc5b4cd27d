import io
import json
import sys

import pytest
from PIL import Image
from rich.console import Console

from fewseg_ext.data.synthetic import SyntheticConfig
from fewseg_ext.demo import run_demo, run_demo_seeds, summarize
from fewseg_ext.evaluation.pictures import draw_losses
from fewseg_ext.models.registry import build_model
from fewseg_ext.training.checkpoint import load_checkpoint

SMALL = {
    "iterations": 3,
    "baseline_iterations": 4,
    "vpi_iterations": 2,
    "batch_size": 2,
    "episodes": 10,
    "data": SyntheticConfig(train_classes=3, unseen_classes=2, images_per_class=3, size=48),
}


def test_writes_everything_it_promises(tmp_path):
    out = tmp_path / "demo"
    report = run_demo(out, **SMALL)
    expected = {"data", "grid.png", "loss.png", "report.json", "biopt.ckpt", "baseline.ckpt", "vpi.ckpt"}
    assert {path.name for path in out.iterdir()} == expected
    assert min(Image.open(out / "grid.png").size) > 300
    assert min(Image.open(out / "loss.png").size) > 300
    content = json.loads((out / "report.json").read_text())
    assert content["seed"] == 0
    assert content["iterations"] == {"biopt": 3, "baseline": 4, "vpi": 2}
    assert content["seconds"]["biopt"] > 0
    assert set(content["scores"]) == {"untrained", "baseline", "biopt", "vpi"}
    for name, score in content["scores"].items():
        assert score["miou"] == report.scores[name].miou
        assert 0 <= score["miou"] <= 100
        assert "10 episodes" in score["protocol"]
        assert "1-way 1-shot; images at their own size" in score["protocol"]
    assert content["gain_over_baseline"] == pytest.approx(report.scores["biopt"].miou - report.scores["baseline"].miou)
    assert content["settings"]["data"]["size"] == 48
    assert content["environment"]["threads"] >= 1


def test_the_loss_is_marked_where_its_other_terms_begin():
    figure = draw_losses({"biopt": [3.0, 2.0, 4.0], "baseline": [3.0, 2.0]}, {"biopt": 2})
    assert [[text.get_text().strip() for text in ax.texts] for ax in figure.axes] == [["all terms"], []]


def test_without_matplotlib_it_does_not_begin(tmp_path, monkeypatch):
    """The pictures are drawn at the end, after minutes of training."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pictures need matplotlib: pip install matplotlib"):
        run_demo(tmp_path / "demo", **SMALL)
    assert not (tmp_path / "demo").exists()


def test_checkpoints_build_the_models_again(tmp_path):
    run_demo(tmp_path, **SMALL)
    for name, class_name, iterations in (
        ("biopt", "BiOpt", 3),
        ("baseline", "PrototypeBaseline", 4),
        ("vpi", "VPI", 2),
    ):
        checkpoint = load_checkpoint(tmp_path / f"{name}.ckpt")
        model = build_model(checkpoint.model)
        model.load_state_dict(checkpoint.weights)
        assert type(model).__name__ == class_name
        assert checkpoint.iteration == len(checkpoint.history) == iterations


def test_the_scores_repeat_with_the_seed_and_the_baseline_gets_the_same_time(tmp_path):
    first = run_demo(tmp_path / "a", **SMALL)
    again = run_demo(tmp_path / "b", **SMALL)
    assert first.scores == again.scores
    timed = run_demo(tmp_path / "c", **{**SMALL, "baseline_iterations": None})
    assert timed.scores["biopt"] == first.scores["biopt"]
    assert timed.settings["baseline_budget"] == "the seconds of biopt"
    assert timed.seconds["baseline"] >= timed.seconds["biopt"]


def test_several_seeds_print_mean_and_spread(tmp_path):
    console = Console(record=True, width=160, file=io.StringIO())
    reports = run_demo_seeds(tmp_path, seeds=(1, 2), console=console, **SMALL)
    text = console.export_text()
    assert "mean ± std" in text
    content = json.loads((tmp_path / "seeds.json").read_text())
    assert content["seeds"] == [1, 2]
    gains = [report.gain_over_untrained for report in reports]
    assert gains[0] != gains[1]
    assert content["gain_over_untrained"]["mean"] == pytest.approx(sum(gains) / 2)
    assert content["gain_over_untrained"]["std"] == pytest.approx(abs(gains[0] - gains[1]) / 2**0.5)
    assert content["biopt"]["min"] == min(report.scores["biopt"].miou for report in reports)


@pytest.mark.slow
def test_biopt_learns_and_beats_its_baseline_over_three_seeds(tmp_path):
    """The goal of the demonstration, on unseen classes. About a quarter of an hour on two cores.

    Generator and settings were chosen by looking at seeds 0 and 1, so the goal is held to on others.
    """
    console = Console()
    summary = summarize(run_demo_seeds(tmp_path, seeds=(10, 11, 12), console=console))
    assert summary["gain_over_untrained"]["mean"] >= 10
    assert summary["gain_over_baseline"]["mean"] >= 2
