"""What mc_average and mc_uncertainty share: checks, and shapes."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fewseg_ext.ops import _checks


def check(op: str, logits: Tensor, size: Sequence[int] | None) -> None:
    _checks.rank(op, "logits", logits, "B,L,K,H,W")
    if logits.dtype not in _checks.FEATURE_DTYPES:
        raise TypeError(f"{op}: logits must be float32, float64, bfloat16 or float16, got {logits.dtype}")
    _checks.not_empty(op, "logits", logits, "pixel")
    if logits.shape[1] == 0 or logits.shape[2] == 0:
        raise ValueError(f"{op}: logits must hold at least one sample and one class, got {_checks.shape(logits)}")
    if size is not None and (len(size) != 2 or size[0] < 1 or size[1] < 1):
        raise ValueError(f"{op}: size must be two numbers of at least 1, got {tuple(size)}")


def probabilities(logits: Tensor, size: Sequence[int] | None) -> Tensor:
    """An empty result [B,K,h,w]."""
    grid = logits.shape[3:] if size is None else size
    return logits.new_empty((logits.shape[0], logits.shape[2], grid[0], grid[1]))


def fake_backward(gradient: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    return logits.new_empty(logits.shape)
