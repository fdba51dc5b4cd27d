"""Helpers that several test files use."""

from torch import Tensor


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected| over the whole tensor, in float64; |actual - expected| where expected is 0."""
    actual, expected = actual.double(), expected.double()
    assert actual.shape == expected.shape
    norm = expected.norm().item()
    return (actual - expected).norm().item() / (norm if norm > 1e-12 else 1.0)
