"""Helpers that several test files use."""

import os
from pathlib import Path

from torch import Tensor


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected| over the whole tensor, in float64; |actual - expected| where expected is 0."""
    actual, expected = actual.double(), expected.double()
    assert actual.shape == expected.shape
    norm = expected.norm().item()
    return (actual - expected).norm().item() / (norm if norm > 1e-12 else 1.0)


def resident_memory() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
