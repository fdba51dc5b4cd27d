"""Argument checks shared by the operators' public functions, autograd kernels and fake kernels.

Every message says which operator, which argument, what it was and what was expected.
"""

import math
import os

import torch
from torch import Tensor

FEATURE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LABEL_DTYPES = (torch.int64, torch.int32, torch.uint8)

_debug = os.environ.get("FEWSEG_CHECK", "0") not in ("", "0")


def set_debug(enabled: bool) -> None:
    """Switches the checks of label values on CUDA on or off (``FEWSEG_CHECK=1`` switches them on from the start).

    On the CPU a label outside 0..K-1 that is not ``ignore_index`` always raises ValueError. On CUDA finding one costs a
    synchronisation, so by default that task's result is NaN instead.
    """
    global _debug
    _debug = enabled


def debug() -> bool:
    """Whether they are switched on."""
    return _debug


def shape(x: Tensor) -> str:
    return "[" + ", ".join(str(n) for n in x.shape) + "]"


def rank(op: str, name: str, x: Tensor, dimensions: str) -> None:
    expected = dimensions.count(",") + 1
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor [{dimensions}], got {type(x).__name__}")
    if x.dim() != expected:
        raise ValueError(f"{op}: {name} must be [{dimensions}], got {x.dim()} dimensions: {shape(x)}")


def same_size(op: str, name: str, size: int, other: str, other_size: int, what: str) -> None:
    if size != other_size:
        raise ValueError(f"{op}: {name} has {size} {what}, but {other} has {other_size}")


def not_empty(op: str, name: str, x: Tensor, what: str) -> None:
    """The two last sizes must be at least one: there is no average over no pixels."""
    if x.shape[-1] == 0 or x.shape[-2] == 0:
        raise ValueError(f"{op}: {name} must have at least one {what}, got {shape(x)}")


def same_device(op: str, name: str, x: Tensor, features: Tensor, other: str = "features") -> None:
    if x.device != features.device:
        raise ValueError(f"{op}: {name} is on {x.device}, but {other} is on {features.device}")


def features(op: str, x: Tensor) -> None:
    rank(op, "features", x, "B,C,H,W")
    if x.dtype not in FEATURE_DTYPES:
        raise TypeError(f"{op}: features must be float32, float64, bfloat16 or float16, got {x.dtype}")
    not_empty(op, "features", x, "pixel")


def companion(op: str, name: str, x: Tensor, features: Tensor, other: str = "features") -> None:
    """A floating argument beside the features (or ``other``): their dtype, or float32 beside 16-bit features."""
    same_device(op, name, x, features, other)
    if x.dtype == features.dtype:
        return
    if features.dtype == torch.float32 or features.dtype == torch.float64:
        raise TypeError(f"{op}: {name} must be {features.dtype} like {other}, got {x.dtype}")
    if x.dtype != torch.float32:
        raise TypeError(f"{op}: {name} must be float32 or {features.dtype} like {other}, got {x.dtype}")


def prototypes(op: str, x: Tensor, features: Tensor) -> None:
    rank(op, "prototypes", x, "B,K,C")
    companion(op, "prototypes", x, features)
    same_size(op, "prototypes", x.shape[0], "features", features.shape[0], "tasks")
    same_size(op, "prototypes", x.shape[2], "features", features.shape[1], "channels")
    if x.shape[1] == 0:
        raise ValueError(f"{op}: prototypes must hold at least one class, got {shape(x)}")


def target(op: str, x: Tensor, features: Tensor, classes: int, ignore_index: int, grid: str) -> None:
    """``grid``: "H,W" where the target must have the features' grid, "h,w" where it may have its own."""
    rank(op, "target", x, f"B,{grid}")
    same_device(op, "target", x, features)
    same_size(op, "target", x.shape[0], "features", features.shape[0], "tasks")
    if x.dtype not in LABEL_DTYPES:
        raise TypeError(f"{op}: target must be int64, int32 or uint8, got {x.dtype}")
    if grid == "H,W":
        if x.shape[1:] != features.shape[2:]:
            raise ValueError(
                f"{op}: target must have the features' grid {features.shape[2]} x {features.shape[3]}, "
                f"got {x.shape[1]} x {x.shape[2]}"
            )
    else:
        not_empty(op, "target", x, "pixel")
    if _debug and x.is_cuda:
        wrong = (x != ignore_index) & ((x < 0) | (x >= classes))
        if bool(wrong.any()):
            raise ValueError(
                f"{op}: target has the label {int(x[wrong][0])}; "
                f"expected 0..{classes - 1} or ignore_index = {ignore_index}"
            )


def finite(op: str, name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{op}: {name} must be finite, got {value}")


def choice(op: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
