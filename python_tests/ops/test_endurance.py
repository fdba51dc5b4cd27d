"""20,000 calls of every operator, forward and backward: the process does not grow."""

import pytest
import torch

from samples import SAMPLES, Sample, results
from support import resident_memory

CALLS = 20_000
WARM_UP = 2_000
# What the allocator may take and keep in the course of them. A leak of as little as 64 bytes a call is 1.2 MB.
GROWTH = 1_000_000


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
    before = resident_memory()
    call(CALLS)
    assert resident_memory() - before < GROWTH
