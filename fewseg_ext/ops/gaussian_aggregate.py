"""One Gaussian from those of several support images."""

from typing import Any

import torch
from torch import Tensor

from fewseg_ext.ops import _checks, _gaussians, _library

_OP = "fewseg_ext.gaussian_aggregate"
_op = torch.ops.fewseg.gaussian_aggregate.default
_backward = _library.define_backward("gaussian_aggregate")
_WEIGHTINGS = ("precision", "uniform")


def gaussian_aggregate(
    mean: Tensor, variance: Tensor, mean_weighting: str = "precision", variance_weighting: str = "precision"
) -> tuple[Tensor, Tensor]:
    r"""Aggregates the Gaussians that S support images gave a task into one, channel by channel.

    .. math:: \mu = \sum_i \mu_i \sigma_i^{-2} / \sum_i \sigma_i^{-2}, \qquad \sigma^2 = S / \sum_i \sigma_i^{-2}

    Eq. 6 of the VPI paper; with ``"uniform"`` plain averages (Eq. 10), each of mean and variance on its own.
    Differentiable in both. See docs/math.md.

    Args:
        mean: [B,S,C] the means of the S shots; float32, float64, bfloat16 or float16.
        variance: [B,S,C] their variances, in the dtype of ``mean``, or float32 beside a 16-bit one. Below 1e-12 they
            are taken as 1e-12 and get no gradient.
        mean_weighting: ``"precision"`` or ``"uniform"``.
        variance_weighting: ``"precision"`` or ``"uniform"``.

    Returns:
        Mean and variance [B,C], in the wider of the two dtypes.

    Raises:
        ValueError: sizes, devices or options that do not fit.
        TypeError: a dtype that is not supported.
        NotImplementedError: when the gradient is itself differentiated.

    Example:
        >>> import torch, fewseg_ext
        >>> mean, variance = torch.tensor([[[0.0], [4.0]]]), torch.tensor([[[1.0], [3.0]]])
        >>> fewseg_ext.gaussian_aggregate(mean, variance)
        (tensor([[1.]]), tensor([[1.5000]]))
    """
    args = (mean, variance, mean_weighting, variance_weighting)
    if _library.through_dispatcher(mean):
        return torch.ops.fewseg.gaussian_aggregate(*args)
    return _apply(*args)


def _check(mean: Tensor, variance: Tensor, mean_weighting: str, variance_weighting: str) -> None:
    _gaussians.check(_OP, mean, variance, "B,S,C")
    _checks.choice(_OP, "mean_weighting", mean_weighting, _WEIGHTINGS)
    _checks.choice(_OP, "variance_weighting", variance_weighting, _WEIGHTINGS)


class _GaussianAggregate(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        with _library.below_autograd():
            return _op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        mean, variance, *weightings = inputs
        ctx.save_for_backward(mean, variance)
        ctx.weightings = weightings

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        d_mean, d_variance = _backward(*gradients, *ctx.saved_tensors, *ctx.weightings)
        return _library.wanted_as(d_mean, ctx, 0), _library.wanted_as(d_variance, ctx, 1), None, None


_differentiable = _library.differentiable(_GaussianAggregate, results=2)
_apply = _library.checked_late(_op, _differentiable, _check, differentiable=2)


def _fake(mean: Tensor, variance: Tensor, *weightings: str) -> tuple[Tensor, Tensor]:
    _check(mean, variance, *weightings)
    size, dtype = (mean.shape[0], mean.shape[2]), _gaussians.result_dtype(mean, variance)
    return mean.new_empty(size, dtype=dtype), mean.new_empty(size, dtype=dtype)


def _fake_backward(
    d_mean: Tensor, d_variance: Tensor, mean: Tensor, variance: Tensor, *weightings: str
) -> tuple[Tensor, Tensor]:
    dtype = _library.accumulator_dtype(mean)
    return mean.new_empty(mean.shape, dtype=dtype), mean.new_empty(mean.shape, dtype=dtype)


_library.register_autograd("gaussian_aggregate", _apply)
_library.register_autocast("gaussian_aggregate", features=False)
_library.register_fake("gaussian_aggregate", _fake)
_library.register_fake("_gaussian_aggregate_backward", _fake_backward)
