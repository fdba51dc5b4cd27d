"""What a training leaves behind for those who use its model."""

import io
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import run_cli
from rich.console import Console

from fewseg_ext.evaluation.command import ModelChoice, run_evaluation
from fewseg_ext.evaluation.protocol import EvaluationProtocol
from fewseg_ext.training.checkpoint import load_checkpoint
from fewseg_ext.training.engine import TrainingDiverged
from fewseg_ext.training.log import TrainingLog
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


def test_a_budget_of_seconds_in_a_thread_and_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a program trains that does other things meanwhile: SIGTERM stays the main thread's."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    budget = ["--training.iterations", "null", "--training.seconds", "0.2", "--data.validation_classes", "0"]
    recipe, _, _ = parse_arguments(options("biopt", write_photos(tmp_path / "photos"), 1, *budget))
    console = Console(record=True, width=200, file=io.StringIO())
    trainers = []
    for _ in range(2):
        thread = threading.Thread(
            target=lambda: trainers.append(run_training(recipe, tmp_path / "run", console=console))
        )
        thread.start()
        thread.join()
    first, again = trainers
    assert first.seconds >= 0.2
    assert again.iteration == first.iteration
    text = console.export_text()
    assert "No loss.png: pictures need matplotlib" in text
    assert f"Going on from iteration {first.iteration}" in text
    assert not (tmp_path / "run" / "loss.png").exists()


def test_the_log_goes_on_after_the_last_whole_line_and_to_tensorboard_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"iteration": iteration, "loss": 1.0}) for iteration in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, lines[0][:9]]))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"run.tensorboard needs TensorBoard: pip install"):
        TrainingLog(tmp_path, tensorboard=True)
    told: list[tuple] = []

    class Writer:
        def __init__(self, folder: Path, purge_step: int) -> None:
            told.append((folder, purge_step))

        def add_scalar(self, *scalar: object) -> None:
            told.append(scalar)

        def close(self) -> None:
            told.append(("closed",))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    log = TrainingLog(tmp_path, 2, tensorboard=True)
    log.write(3, loss=0.5)
    log.close()
    assert told == [(tmp_path / "tensorboard", 3), ("loss", 0.5, 3), ("closed",)]
    assert (tmp_path / "log.jsonl").read_text().splitlines() == [*lines[:2], json.dumps({"iteration": 3, "loss": 0.5})]


def test_a_loss_that_is_not_finite_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge(*arguments: object, **options: object) -> None:
        raise TrainingDiverged("the loss became nan in iteration 2")

    monkeypatch.setattr("fewseg_ext.training.run.run_training", diverge)
    told = (1, "", "fewseg: the loss became nan in iteration 2\n")
    assert run_cli(capsys, "train", "--config", "laptop/biopt") == told
