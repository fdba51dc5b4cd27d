"""What a training leaves behind for those who use its model."""

import sys
from pathlib import Path

import pytest

from fewseg_ext.evaluation.command import ModelChoice, run_evaluation
from fewseg_ext.evaluation.protocol import EvaluationProtocol
from fewseg_ext.training.checkpoint import load_checkpoint
from fewseg_ext.training.recipe import parse_arguments
from fewseg_ext.training.run import run_training
from tiny import options, write_photos


def test_without_torchmetrics_a_validation_is_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not by the first validation, which loses all iterations since the last checkpoint."""
    photos = write_photos(tmp_path / "photos")
    monkeypatch.setitem(sys.modules, "fewseg_ext.evaluation.metrics", None)
    recipe, _, _ = parse_arguments(options("biopt", photos, 2))
    with pytest.raises(ImportError, match="metrics"):
        run_training(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    recipe, _, _ = parse_arguments(options("biopt", photos, 2, "--data.validation_classes", "0"))
    assert run_training(recipe, tmp_path / "run").iteration == 2


def test_an_evaluation_knows_the_photos_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_photos(tmp_path / "photos")
    recipe, _, _ = parse_arguments(options("biopt", photos, 2))
    run_training(recipe, tmp_path / "run")
    # What was hashed once is not read again.
    monkeypatch.setattr("fewseg_ext.training.run.photo_hashes", None)
    run_training(recipe, tmp_path / "run")
    # Those of the validation class too: the model was selected by them.
    assert len(load_checkpoint(tmp_path / "run" / "last.ckpt").photo_hashes or []) == 4 * 3

    (photos / "class1" / "0.jpg").write_bytes((photos / "class1" / "0.jpg").read_bytes() + b"now another photo")
    choice = ModelChoice(str(tmp_path / "run" / "best.ckpt"))
    protocol = EvaluationProtocol(episodes=1, seeds=(0,), input_size=32, square_size=None)
    report = run_evaluation(tmp_path / "out", choice, "folder", photos, [None], protocol)
    assert len(report.shared_photos) == 4 * 3 - 1
    assert "11 of the scored photos were in the training too" in (tmp_path / "out" / "evaluation.md").read_text()
