"""The operators' numbers under every instruction set that this processor has, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fewseg_ext  # noqa: F401  (loads the operators)

HERE = Path(__file__).parent
CHOSEN, USABLE = (text.split(",") for text in torch.ops.fewseg._instruction_sets().split(";"))
OTHERS = [name for name in USABLE if name not in CHOSEN]

# What does not depend on the kernels' bodies need not be repeated, nor what takes long and asks nothing new of them.
LEFT_OUT = (
    "compile or export or opcheck or schema or error or refused or forward_mode or instruction_sets or func or "
    "autocast or vmap or deterministic or concurrency or gradcheck or full_size"
)


@pytest.mark.skipif("FEWSEG_CPU_ISA" in os.environ, reason="FEWSEG_CPU_ISA has chosen one already")
@pytest.mark.parametrize("name", OTHERS)
def test_op_tests_pass_under(name: str, backend: str) -> None:
    if backend == "cuda":
        pytest.skip("the CPU kernels are tested by --backend=cpu")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-k", f"not ({LEFT_OUT})", str(HERE)]
    # From another folder: `python -m pytest` would import the package's source from the current one.
    result = subprocess.run(
        command, env={**os.environ, "FEWSEG_CPU_ISA": name}, cwd=HERE, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


def test_the_chosen_set_is_the_best_or_the_forced_one(backend: str) -> None:
    if backend == "emulated":
        assert CHOSEN == ["emulated"]
        return
    assert [os.environ.get("FEWSEG_CPU_ISA", USABLE[0])] == CHOSEN
