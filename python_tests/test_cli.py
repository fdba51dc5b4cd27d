"""The command line: help, exit statuses, messages."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import run_cli
from PIL import Image

import fewseg_ext
from fewseg_ext import cli
from fewseg_ext.interruptions import told_in_a_line
from photo_files import two_boxes, write_mask, write_photo, write_voc

FEWSEG = Path(sys.executable).with_name("fewseg")


def fewseg(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([FEWSEG, *arguments], capture_output=True, text=True, timeout=300)


def test_info_prints_what_was_built_and_what_runs() -> None:
    result = fewseg("info")
    assert result.returncode == 0
    for expected in (fewseg_ext.__version__, "CPU kernels used", "CUDA kernels built", "torch", "runs under"):
        assert expected in result.stdout


def test_help_of_every_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    status, overview, _ = run_cli(capsys, "--help")
    assert status == 0
    for command in (
        "info",
        "demo",
        "prepare",
        "prepare pascal5i",
        "prepare coco20i",
        "prepare fss1000",
        "train",
        "evaluate",
        "segment",
        "serve",
    ):
        assert command.split()[0] in overview
        status, output, _ = run_cli(capsys, *command.split(), "--help")
        assert status == 0
        assert f"Example: fewseg {command}" in output


def test_bad_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (
        ("no-such-command",),
        ("demo", "--no-such-option"),
        ("prepare", "coco20i", ".", "--year", "2015"),
    ):
        assert run_cli(capsys, *wrong)[0] == 2
    status, _, errors = run_cli(capsys, "train", "--config", "laptop/biopt", "--training.learning_rate", "1")
    assert status == 2
    assert "unknown field --training.learning_rate" in " ".join(errors.split())
    status, _, errors = run_cli(capsys, "evaluate", "--dataset", "fss1000", "--root", "photos")
    assert status == 2
    assert "either a checkpoint or a backbone" in errors


def test_a_user_error_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should go")
    result = fewseg("demo", "--out", str(tmp_path / "taken"))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("fewseg: ")
    assert "taken" in result.stderr
    assert (tmp_path / "taken").read_text() == "a file where a folder should go"


def test_prepare_prints_a_table_and_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, errors = run_cli(capsys, "prepare", "pascal5i", tmp_path)
    assert status == 1
    assert "VOCtrainval_11-May-2012.tar" in errors
    write_voc(tmp_path, {"val": {"2008_000001": two_boxes(1, 2)}})
    status, output, _ = run_cli(capsys, "prepare", "pascal5i", tmp_path, "--out", tmp_path / "out")
    assert status == 0
    assert "expected" in output
    assert "1,448 of the 1,449 names of" in output
    assert "WARNING: partial" in output
    assert (tmp_path / "out" / "index.json").is_file()


def test_fss1000_is_prepared_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photo(tmp_path / "bus" / "1.jpg")
    write_mask(tmp_path / "bus" / "1.png", two_boxes(255, 255), palette=False)
    status, output, _ = run_cli(capsys, "prepare", "fss1000", tmp_path, "--out", tmp_path / "out")
    assert status == 0
    assert "test: usable photos" in output
    assert (tmp_path / "out" / "lists" / "test.txt").read_text() == "bus/1.jpg\n"


def test_too_little_memory_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_much() -> None:
        raise MemoryError

    monkeypatch.setattr(cli, "app", too_much)
    assert run_cli(capsys, "info") == (1, "", "fewseg: not enough memory\n")


def test_signals_are_left_alone_outside_of_the_main_thread() -> None:
    """A program that runs the command in a thread of its own; Python would refuse to set them there."""
    ended: list[str] = []

    def run() -> None:
        with told_in_a_line():
            ended.append("well")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ended == ["well"]


def test_evaluate_prints_its_protocol(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            photo = Image.new("L", (20, 16), 40)
            photo.paste(200, (5, 4, 15, 12))
            photo.convert("RGB").save(tmp_path / "photos" / name / f"{i}.jpg")
            photo.save(tmp_path / "photos" / name / f"{i}.png")
    options = ["--dataset", "fss1000", "--root", "photos", "--backbone", "conv4", "--size", "16", "--episodes", "2"]
    status, output, errors = run_cli(capsys, "evaluate", *options, "--seeds", "1", "--multi-scale", "--out", "out")
    assert status == 0, errors
    assert "2 episodes for each seed of 0; 1-way 1-shot" in output
    assert "0.7, 1, 1.3" in " ".join(output.split())
    assert (tmp_path / "out" / "evaluation.json").is_file()
    status, _, errors = run_cli(capsys, "evaluate", "none.ckpt", "--dataset", "fss1000", "--root", "photos")
    assert status == 1
    assert errors == "fewseg: checkpoint not found: none.ckpt\n"
