"""A training that is killed, stopped or starved of disk goes on as if nothing had happened."""

import json
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fewseg_ext.training.checkpoint import load_checkpoint, save_checkpoint
from fewseg_ext.training.recipe import parse_arguments
from fewseg_ext.training.run import STOPPED_STATUS, run_training
from tiny import ENVIRONMENT, LAUNCH, options, write_photos

ITERATIONS = 24


def start(method: str, root: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    command = [*LAUNCH, *options(method, root, ITERATIONS, "--out", str(out), *more)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT)


def iterations_logged(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_text().count('"loss"') if log.exists() else 0


def run_until(process: "subprocess.Popen[str]", out: Path, iteration: int) -> None:
    deadline = time.monotonic() + 120
    while iterations_logged(out) < iteration and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def run_here(method: str, root: Path, out: Path, iterations: int = ITERATIONS, *more: str) -> None:
    recipe, _, _ = parse_arguments(options(method, root, iterations, *more))
    run_training(recipe, out)


def kill_and_go_on(method: str, folder: Path, kill_after: list[int]) -> None:
    """Kills after these many iterations on the log, finishes, and compares with a run without interruption."""
    root = write_photos(folder / "photos")
    out = folder / "killed"
    for iteration in kill_after:
        process = start(method, root, out)
        run_until(process, out, iteration)
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
        process.stderr.close()
    process = start(method, root, out)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

    whole = start(method, root, folder / "whole")
    _, errors = whole.communicate(timeout=120)
    assert whole.returncode == 0, errors
    for name in ("last.ckpt", "best.ckpt"):
        killed, expected = load_checkpoint(out / name), load_checkpoint(folder / "whole" / name)
        assert killed.iteration == expected.iteration > 0
        assert killed.history == expected.history
        assert killed.scores == expected.scores
        assert killed.weights.keys() == expected.weights.keys()
        assert all(torch.equal(killed.weights[key], expected.weights[key]) for key in killed.weights)
    # Every iteration is on the log once, and nothing that a killed process left lies about.
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == list(range(1, ITERATIONS + 1))
    expected = {"last.ckpt", "best.ckpt", "log.jsonl", "loss.png", "recipe.yaml"}
    assert {path.name for path in out.iterdir()} == expected


def test_two_kills_change_no_bit(tmp_path: Path) -> None:
    kill_and_go_on("biopt", tmp_path, [5, 14])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["biopt", "vpi"])
def test_ten_kills_change_no_bit(method: str, tmp_path: Path) -> None:
    """At random places, some of them before the first checkpoint."""
    kill_and_go_on(method, tmp_path, sorted(random.Random(0).sample(range(ITERATIONS - 1), 10)))


def test_sigterm_writes_a_checkpoint_and_tells(tmp_path: Path) -> None:
    root, out = write_photos(tmp_path / "photos"), tmp_path / "run"
    process = start("biopt", root, out, "--run.save_every", "1000")
    run_until(process, out, 4)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == STOPPED_STATUS
    stopped = load_checkpoint(out / "last.ckpt")
    assert 4 <= stopped.iteration < ITERATIONS
    assert f"stopped in iteration {stopped.iteration}" in " ".join(errors.split())
    assert "Traceback" not in errors


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system refuses larger files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_leaves_the_previous_one(tmp_path: Path) -> None:
    run_here("biopt", write_photos(tmp_path / "photos"), tmp_path / "run", 1)
    path = tmp_path / "run" / "last.ckpt"
    before = path.read_bytes()
    files = {file.name for file in path.parent.iterdir()}
    checkpoint = load_checkpoint(path)
    with files_up_to(20_000), pytest.raises(OSError, match=r"last.ckpt could not be written: .*; the one before it"):
        save_checkpoint(path, checkpoint)
    assert path.read_bytes() == before
    assert {file.name for file in path.parent.iterdir()} == files


def test_a_damaged_checkpoint_is_an_error_and_stays(tmp_path: Path) -> None:
    root, out = write_photos(tmp_path / "photos"), tmp_path / "run"
    run_here("biopt", root, out, 1)
    damaged = (out / "last.ckpt").read_bytes()[:5000]
    (out / "last.ckpt").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"last.ckpt is not a checkpoint of fewseg_ext, or is damaged; nothing was"):
        run_here("biopt", root, out, 1)
    assert (out / "last.ckpt").read_bytes() == damaged


def test_other_settings_do_not_go_on(tmp_path: Path) -> None:
    root, out = write_photos(tmp_path / "photos"), tmp_path / "run"
    run_here("biopt", root, out, 1)
    with pytest.raises(ValueError, match=r"other settings \(training.lr: 0.004 there, 0.1 here\)"):
        run_here("biopt", root, out, 1, "--training.lr", "0.1")
    run_here("biopt", root, out, 1, "--run.log_every", "7")  # which changes no weight
