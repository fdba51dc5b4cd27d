"""The regression check fails on a lost ratio, and on nothing else."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from check_regression import compare

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "check_regression.py"
RESULT = {
    "environment": {"processor": "a processor", "threads": 2, "instruction_set": "avx2", "device": "cpu"},
    "cases": [{"name": "an op", "ms": {"ours": {"p50": 2.0}, "eager": {"p50": 10.0}}}],
    "call_overhead_us": {"x.clone()": 10.0, "an op": 20.0},
}


def changed(ours: float = 2.0, overhead: float = 20.0, **facts: object) -> dict:
    result = copy.deepcopy(RESULT)
    result["cases"][0]["ms"]["ours"]["p50"] = ours
    result["call_overhead_us"]["an op"] = overhead
    result["environment"] |= facts
    return result


def test_a_small_loss_and_a_gain_pass() -> None:
    assert compare(RESULT, changed(ours=2.15, overhead=5.0), 0.1) == []


@pytest.mark.parametrize(("after", "name"), [(changed(ours=2.3), "an op: eager"), (changed(overhead=30), "tiny call")])
def test_a_large_loss_is_named(after: dict, name: str) -> None:
    (line,) = compare(RESULT, after, 0.1)
    assert line.startswith(name)


def test_exit_status(tmp_path: Path) -> None:
    def status(after: dict) -> int:
        for name, content in (("before", RESULT), ("after", after)):
            (tmp_path / name).write_text(json.dumps(content))
        command = [sys.executable, str(SCRIPT), str(tmp_path / "before"), str(tmp_path / "after")]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert [status(RESULT), status(changed(ours=4.0)), status(changed(threads=4))] == [0, 1, 2]
