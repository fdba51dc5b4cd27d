"""`make gpu-check` where it cannot work: a line at once, and nothing is built."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gpu_check

SCRIPT = Path(gpu_check.__file__)


def run(*options: str) -> str:
    result = subprocess.run([sys.executable, *options, SCRIPT], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    assert "torch sees no GPU here" in run()


def test_without_torch_it_says_how_to_name_another_python() -> None:
    assert "has no torch; name one that has with `make gpu-check PYTHON=...`" in run("-S")


def test_all_that_is_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "MODULES", ("json", "no_such_module"))
    monkeypatch.setattr(gpu_check, "PROGRAMS", ("no-such-program",))
    with pytest.raises(SystemExit, match=r"lack no_such_module, no-such-program$"):
        gpu_check.import_torch()
