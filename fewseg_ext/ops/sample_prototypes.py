"""Samples of the Gaussian prototype of several support images."""

from typing import Any

import torch
from torch import Tensor

from fewseg_ext.ops import _gaussians, _library

_OP = "fewseg_ext.sample_prototypes"
_op = torch.ops.fewseg.sample_prototypes.default
_backward = _library.define_backward("sample_prototypes")


def sample_prototypes(
    mean: Tensor,
    variance: Tensor,
    num_samples: int,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Aggregates the Gaussians of S support images (by their precision) and samples the result, in one launch.

    Equals ``gaussian_sample(*gaussian_aggregate(mean, variance), num_samples, key)`` without rounding in between, with
    the same noise. Differentiable in mean and variance. See docs/math.md.

    Args:
        mean: [B,S,C] the means of the S shots; float32, float64, bfloat16 or float16.
        variance: [B,S,C] their variances, in the dtype of ``mean``, or float32 beside a 16-bit one. Below 1e-12 they
            are taken as 1e-12 and get no gradient.
        num_samples: L, at least 1.
        key: [2] int64 on the device of ``mean``; drawn where it is not given.
        generator: what the key is drawn with, of the device of ``mean``; torch's own by default.

    Returns:
        [B,L,C] the samples, in the wider of the two dtypes.

    Raises:
        ValueError: sizes or devices that do not fit; both ``key`` and ``generator`` given.
        TypeError: a dtype that is not supported.
        NotImplementedError: when the gradient is itself differentiated.

    Example:
        >>> import torch, fewseg_ext
        >>> fewseg_ext.sample_prototypes(torch.zeros(2, 5, 256), torch.ones(2, 5, 256), num_samples=6).shape
        torch.Size([2, 6, 256])
    """
    key = _gaussians.key_of(_OP, mean, key, generator)
    if _library.through_dispatcher(mean):
        return torch.ops.fewseg.sample_prototypes(mean, variance, num_samples, key)
    return _apply(mean, variance, num_samples, key)


def _check(mean: Tensor, variance: Tensor, num_samples: int, key: Tensor) -> None:
    _gaussians.check(_OP, mean, variance, "B,S,C")
    _gaussians.check_noise(_OP, mean, num_samples, key)


class _SamplePrototypes(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        with _library.below_autograd():
            return _op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        mean, variance, _, key = inputs
        ctx.save_for_backward(mean, variance, key)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        d_mean, d_variance = _backward(gradient, *ctx.saved_tensors)
        return _library.wanted_as(d_mean, ctx, 0), _library.wanted_as(d_variance, ctx, 1), None, None


_differentiable = _library.differentiable(_SamplePrototypes)
_apply = _library.checked_late(_op, _differentiable, _check, differentiable=2)


def _fake(mean: Tensor, variance: Tensor, num_samples: int, key: Tensor) -> Tensor:
    _check(mean, variance, num_samples, key)
    size = (mean.shape[0], num_samples, mean.shape[2])
    return mean.new_empty(size, dtype=_gaussians.result_dtype(mean, variance))


def _fake_backward(gradient: Tensor, mean: Tensor, variance: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    dtype = _library.accumulator_dtype(mean)
    return mean.new_empty(mean.shape, dtype=dtype), mean.new_empty(mean.shape, dtype=dtype)


_library.register_autograd("sample_prototypes", _apply)
_library.register_autocast("sample_prototypes", features=False)
_library.register_fake("sample_prototypes", _fake)
_library.register_fake("_sample_prototypes_backward", _fake_backward)
