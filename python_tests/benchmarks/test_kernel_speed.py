"""The benchmark compares like with like: every baseline computes what the operator computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_speed import Case, draw_chart, measure, table_of

import fewseg_ext
from baselines import EAGER, NAIVE
from support import relative_error

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kernel_speed.py"
SMALL = {"channels": 24, "grid": 7, "image": 30}


@pytest.mark.parametrize("op", EAGER)
@pytest.mark.parametrize("baselines", [EAGER, NAIVE], ids=["eager", "naive"])
def test_baselines_compute_the_same(op: str, baselines) -> None:
    args = [x.detach().double() if x.is_floating_point() else x for x in Case(op, True, tasks=2, **SMALL).inputs()]
    leaves = [x.requires_grad_() for x in args if x.is_floating_point()]
    ours, theirs = getattr(fewseg_ext, op)(*args), baselines[op](*args)
    assert relative_error(ours, theirs) < 1e-10
    weights = torch.randn_like(ours)
    gradients, expected = (torch.autograd.grad((x * weights).sum(), leaves) for x in (ours, theirs))
    assert all(relative_error(x, y) < 1e-10 for x, y in zip(gradients, expected, strict=True))


def test_measures_prints_and_draws(tmp_path: Path) -> None:
    rows = [measure(Case(op, backward, **SMALL), compiled=False) for op in EAGER for backward in (False, True)]
    assert all({"ours", "eager", "naive", "read sweep"} <= row["ms"].keys() for row in rows)
    assert table_of(rows).row_count == len(rows)
    facts = {"processor": "a processor", "threads": 1, "torch": torch.__version__}
    draw_chart({"environment": facts, "cases": rows}, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_memory_of_the_inner_loop_does_not_grow_with_the_steps() -> None:
    """The backward keeps T (K-1) (C + N) numbers beside the gradient, not T copies of the features."""
    case = {"op": "inner_opt", "backward": True, "channels": 1024, "grid": 53}
    command = [sys.executable, str(SCRIPT), "--memory", json.dumps(case)]
    extra = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert extra < Case(**case).features_mib() / 4


def test_help_has_examples() -> None:
    result = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "kernel_speed.py --quick" in result.stdout
