"""What the operators of Gaussian prototypes share: checks of their arguments, and the key of the noise."""

import torch
from torch import Tensor

from fewseg_ext.ops import _checks

# torch.randint leaves out the upper end; no key is missed but the largest.
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


def check(op: str, mean: Tensor, variance: Tensor, dimensions: str) -> None:
    """``dimensions``: "B,C", or "B,S,C" for the Gaussians of several shots."""
    _checks.rank(op, "mean", mean, dimensions)
    _checks.rank(op, "variance", variance, dimensions)
    if mean.dtype not in _checks.FEATURE_DTYPES:
        raise TypeError(f"{op}: mean must be float32, float64, bfloat16 or float16, got {mean.dtype}")
    _checks.companion(op, "variance", variance, mean, "mean")
    if variance.shape != mean.shape:
        raise ValueError(
            f"{op}: variance must have the sizes of mean, {_checks.shape(mean)}, got {_checks.shape(variance)}"
        )
    if dimensions == "B,S,C" and mean.shape[1] == 0:
        raise ValueError(f"{op}: mean must hold at least one shot, got {_checks.shape(mean)}")


def check_noise(op: str, mean: Tensor, num_samples: int, key: Tensor) -> None:
    if num_samples < 1:
        raise ValueError(f"{op}: num_samples must be at least 1, got {num_samples}")
    _checks.rank(op, "key", key, "2")
    if key.shape[0] != 2:
        raise ValueError(f"{op}: key must be [2], got {_checks.shape(key)}")
    if key.dtype != torch.int64:
        raise TypeError(f"{op}: key must be int64, got {key.dtype}")
    _checks.same_device(op, "key", key, mean, "mean")


def key_of(op: str, mean: Tensor, key: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """The key as given, or one drawn on the device of ``mean``."""
    if key is None:
        if not isinstance(mean, Tensor):
            raise TypeError(f"{op}: mean must be a tensor, got {type(mean).__name__}")
        return torch.randint(_LOWEST, _HIGHEST, (2,), device=mean.device, dtype=torch.int64, generator=generator)
    if generator is not None:
        raise ValueError(f"{op}: got both key and generator; the generator only serves to draw a key")
    return key


def result_dtype(mean: Tensor, variance: Tensor) -> torch.dtype:
    return torch.promote_types(mean.dtype, variance.dtype)
