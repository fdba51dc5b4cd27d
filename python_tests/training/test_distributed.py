"""Two processes on the CPU do what one does."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from fewseg_ext.models.biopt import BiOpt
from fewseg_ext.training.checkpoint import Checkpoint, load_checkpoint
from fewseg_ext.training.engine import EndlessBatches
from fewseg_ext.training.recipe import parse_arguments
from fewseg_ext.training.run import run_training
from support import relative_error
from tiny import ENVIRONMENT, options, scores_in_a_process, scores_of_vpi, write_photos


@pytest.mark.parametrize(("world_size", "iteration"), [(2, 0), (3, 4)])
def test_processes_cut_every_batch_into_parts(world_size: int, iteration: int) -> None:
    def batches(rank: int, processes: int) -> list[list[int]]:
        endless = iter(EndlessBatches(10, 6, iteration, rank, processes))
        return [next(endless) for _ in range(5)]

    parts = zip(*(batches(rank, world_size) for rank in range(world_size)), strict=True)
    assert [list(itertools.chain(*batch)) for batch in parts] == batches(0, 1)


def torchrun(arguments: list[str], timeout: int = 120) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "fewseg_ext.cli", "train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint, Path]:
    """One iteration of plain gradient descent with learning rate 1, in two processes and in one."""
    folder = tmp_path_factory.mktemp("distributed")
    plain = {
        "optimizer": "sgd",
        "lr": "1",
        "head_lr": "null",
        "momentum": "0",
        "weight_decay": "0",
        "schedule": "constant",
        "warmup": "0",
        "support_first": "0",
        "max_grad_norm": "null",
        "batch_size": "4",
    }
    arguments = options(
        "biopt", write_photos(folder / "photos"), 1, *(f"--training.{name}={value}" for name, value in plain.items())
    )
    result = torchrun([*arguments, "--out", str(folder / "two")])
    assert result.returncode == 0, result.stderr
    recipe, _, _ = parse_arguments(arguments)
    run_training(recipe, folder / "one")
    return load_checkpoint(folder / "one" / "last.ckpt"), load_checkpoint(folder / "two" / "last.ckpt"), folder


def test_gradients_are_those_of_the_whole_batch(runs: tuple[Checkpoint, Checkpoint, Path]) -> None:
    one, two, _ = runs
    torch.manual_seed(0)
    before = BiOpt("conv4").state_dict()
    for name, weights in before.items():
        assert (one.weights[name] - weights).abs().max() > 0
        # The difference of two weights after a step of length 1 is that of the gradients.
        assert relative_error(two.weights[name] - weights, one.weights[name] - weights) < 1e-4, name
    assert two.history == pytest.approx(one.history, rel=1e-5)


def test_one_process_writes_and_all_states_are_kept(runs: tuple[Checkpoint, Checkpoint, Path]) -> None:
    one, two, folder = runs
    assert len(one.random_states) == 1
    assert len(two.random_states) == 2
    assert not torch.equal(two.random_states[0]["cpu"], two.random_states[1]["cpu"])
    assert (folder / "two" / "log.jsonl").read_text().count('"loss"') == 1


def test_a_batch_that_cannot_be_shared_evenly_is_refused(tmp_path: Path) -> None:
    result = torchrun(
        [*options("biopt", write_photos(tmp_path / "photos"), 1, "--training.batch_size", "3"), "--out", str(tmp_path)]
    )
    assert result.returncode != 0
    assert "batch_size: 3 episodes cannot be divided among 2 processes evenly" in " ".join(result.stderr.split())


def test_scores_of_two_processes_are_those_of_one_exactly(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    mp.spawn(scores_in_a_process, (tmp_path,), nprocs=2)
    expected = scores_of_vpi(tmp_path / "photos")
    assert 0 < expected["miou"] < 100
    for rank in range(2):
        assert torch.load(tmp_path / f"scores{rank}.pt") == expected
