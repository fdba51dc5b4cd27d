"""The benchmark compares like with like: every baseline computes what the operator computes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gaussian_baselines
import kernel_speed
import pytest
import torch
from cases import SCALING, Case
from gaussian_cases import GaussianCase, gaussian_cases
from kernel_speed import draw, measure, table_of, verdict_table
from targets import met, verdicts

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


@pytest.mark.parametrize("op", gaussian_baselines.OPS)
@pytest.mark.parametrize("baselines", [gaussian_baselines.EAGER, gaussian_baselines.NAIVE], ids=["eager", "naive"])
def test_baselines_of_vpi_compute_the_same(op: str, baselines) -> None:
    case = GaussianCase(op, False, tasks=2, samples=3, latent=5, channels=4, width=6, grid=7, image=16, dtype="float64")
    args, options = case.inputs(), case.options
    if "num_samples" in options:
        # Both draw their own noise: what can be compared is where there is next to none.
        args = (args[0], torch.full_like(args[1], 1e-12))
    ours, theirs = getattr(fewseg_ext, op)(*args, **options), baselines[op](*args, **options)
    for x, y in zip(*((r if isinstance(r, tuple) else (r,)) for r in (ours, theirs)), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-4 if "num_samples" in options else 1e-9)


FACTS = {"processor": "a processor", "threads": 1, "torch": "2", "device": "cpu", "instruction_set": "avx2"}


def test_measures_prints_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A process for every row, of which `test_memory_of_the_inner_loop_does_not_grow_with_the_steps` starts some.
    monkeypatch.setattr(kernel_speed, "memory_in_fresh_process", lambda case: 1.5)
    rows = [measure(Case(op, backward, **SMALL), False, rate=1e6) for op in EAGER for backward in (False, True)]
    assert all({"ours", "eager", "naive", "read sweep"} <= row["ms"].keys() for row in rows)
    small = {"latent": 4, "channels": 4, "width": 4, "grid": 5, "image": 9}
    rows += [measure(replace(case, **small), False) for case in gaussian_cases("cpu")]
    assert all({"ours", "eager", "naive"} <= row["ms"].keys() for row in rows)
    assert table_of(rows).row_count == len(rows)
    point = {"value": 2, "backward": False, "ms": {name: {"p50": 1.0} for name in ("ours", "eager")}}
    result = {"environment": FACTS, "cases": rows, "scaling": {axis: [point] for axis in SCALING}}
    drawn = draw(result, tmp_path / "chart.json")
    assert [path.name for path in drawn] == ["chart.png", "chart_scaling.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_targets_are_judged_by_their_rows() -> None:
    times = {"ours": 2.0, "compiled": 10.0, "naive": 500.0, "one step": 0.2, "read sweep": 0.1}
    name = "inner_opt B=1 K=2 C=2048 53x53 float32"
    result = {"cases": [{"name": name, "ms": {key: {"p50": ms} for key, ms in times.items()}}]}
    result["call_overhead_us"] = {"x.clone()": 10.0, "inner_opt": 40.0}
    found = {verdict["what"]: (verdict["value"], met(verdict)) for verdict in verdicts(result)}
    assert found == {
        "inner_opt, compiled / ours": (5.0, True),
        "inner_opt, naive / ours": (250.0, False),
        "inner_opt, a step / read sweep": (pytest.approx(2.0), True),
        "tiny call of inner_opt, ours / clone": (4.0, False),
    }
    assert verdict_table(result).row_count == 4


def test_memory_of_the_inner_loop_does_not_grow_with_the_steps() -> None:
    """The backward keeps T (K-1) (C + N) numbers beside the gradient, not T copies of the features."""
    case = {"op": "inner_opt", "backward": True, "channels": 2048, "grid": 53}
    command = [sys.executable, str(SCRIPT), "--memory", json.dumps(case)]
    extra = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert extra < Case(**case).features_mib() / 4


def test_help_has_examples() -> None:
    result = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "kernel_speed.py --quick" in result.stdout
