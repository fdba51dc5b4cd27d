"""20,000 calls of every operator, forward and backward: the process does not grow."""

import os
from pathlib import Path

import pytest
import torch

from samples import SAMPLES, Sample, results

CALLS = 20_000
WARM_UP = 2_000
# What the allocator may take and keep in the course of them. A leak of as little as 64 bytes a call is 1.2 MB.
GROWTH = 1_000_000


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: "-".join(filter(None, (s.name, s.variant))))
def test_memory_does_not_grow(sample: Sample, backend: str) -> None:
    if backend != "cpu":
        pytest.skip("about the CPU kernels")
    args = sample.arguments(dtype=torch.float32, gradients=True)
    inputs = [args[i] for i in sample.differentiable]

    def call(times: int) -> None:
        for _ in range(times):
            first = results(sample.public(*args))[0]
            torch.autograd.grad(first.sum(), inputs)

    call(WARM_UP)
    before = resident()
    call(CALLS)
    assert resident() - before < GROWTH
